"""What is wrong with the settings of a run, beyond what each class says of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from inspect import formatannotation
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from matchtir.evaluation.metrics import MEASURES
from matchtir.evaluation.statistics import pass_names
from matchtir.utils.config_check import fits
from matchtir.utils.options import suggest

# Of what stands at the top of a config, before anything slow is imported; arguments of classes have
# their own annotations.
TYPES = {
    **dict.fromkeys(("seed", "partial_groups"), int),
    **dict.fromkeys(("iterations", "tasks_per_iteration", "group_size", "mini_batches"), int),
    **dict.fromkeys(("penalties.unmatched", "penalties.no_answer"), float),
    "ahead": bool,
    "dry_run": bool,
    "extras.print_config": bool,
    "extras.threads": int | None,
    "extras.matmul_precision": Literal["highest", "high", "medium"],
}
SIZES = (
    *("iterations", "tasks_per_iteration", "group_size", "mini_batches"),
    *("module.micro_batch_tokens", "datamodule.eval_batch_size"),
)
# Prefixes of metrics, besides val/; test/ is measured before and after: it chooses nothing.
OTHERS = ("train/", "credit/", "time/", "memory/")


def unfit_settings(config: DictConfig) -> Iterator[str]:
    """One line per key: another type, metrics that nobody measures, settings without effect."""
    for key, hint in TYPES.items():
        if not fits(value := OmegaConf.select(config, key), hint):
            yield f"  {key}: takes {formatannotation(hint)}, not {value!r}"
    for key in SIZES:
        if isinstance(value := OmegaConf.select(config, key), int | float) and value < 1:
            yield f"  {key}: must be 1 or more, not {value}"
    validation = OmegaConf.select(config, "validation") or {}
    attempts = validation.get("attempts") or OmegaConf.select(config, "datamodule.attempts") or 1
    measured = [*MEASURES, *(validation.get("scores") or ()), *(validation.get("statistics") or ())]
    measured += pass_names(attempts)
    names = [f"val/{name}" for name in measured]
    for key in ("objective", "callbacks.best_checkpoint.monitor"):
        name = OmegaConf.select(config, key)
        if name is not None and name not in names and not str(name).startswith(OTHERS):
            yield f"  {key}: nothing in training measures {name}{suggest(str(name), names)}"
    if config.ahead and config.trainer.offload != "none":
        yield (
            f"  ahead: with trainer.offload={config.trainer.offload} nothing would leave the "
            "device: groups are sampled during the update, which needs all of it"
        )
    if at_once := waiting_for_each_other(config):
        yield (
            f"  sandbox.max_sessions: with {config.sandbox.max_sessions} of them conversations "
            f"could wait for each other: rollout.engine.max_sessions={at_once} are under way, and "
            "each waits for the tools of all (rollout.engine.rejoin_after=null: it does not)"
        )
    model, precision = config.model, str(config.trainer.precision)
    if model.get("head_float32") and model.dtype == "float32" and precision.startswith("32"):
        yield "  model.head_float32: all computes in 32 bits already"
    if config.trainer.get("log_every_n_steps", 1) != 1:
        yield "  trainer.log_every_n_steps: every iteration is logged"


def waiting_for_each_other(config: DictConfig, max_concurrent: float = math.inf) -> float:
    """How many conversations could wait for each other's tools for ever; 0: none.

    Args:
        max_concurrent: so many are under way at most, besides the engine's limit.
    """
    engine, sessions = config.rollout.engine, config.sandbox.get("max_sessions")
    if sessions is None or engine.get("rejoin_after") is None:
        return 0
    at_once: float = min(engine.max_sessions, max_concurrent)
    return at_once if sessions < at_once else 0
