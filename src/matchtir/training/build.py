"""Puts training modules together from their configured parts."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from matchtir.policy.loading import LoadedPolicy
from matchtir.tools.sandbox import Sandbox
from matchtir.training.base import PolicyModule
from matchtir.training.callbacks.progress import Progress
from matchtir.training.warm_start import warm_start


def build_module(
    config: DictConfig, module: DictConfig, loaded: LoadedPolicy, sandbox: Sandbox
) -> PolicyModule:
    """The module of node `module` around a policy, with renderer and engine for its tokens."""
    renderer = instantiate(config.renderer)(tokenizer=loaded.tokenizer)
    engine = instantiate(config.rollout.engine)(stop_token_ids=renderer.stop_token_ids)
    parts: dict[str, Any] = {"renderer": renderer, "engine": engine, "sandbox": sandbox}
    return instantiate(module)(policy=loaded.policy, **parts)


def start_warm(config: DictConfig, loaded: LoadedPolicy, sandbox: Sandbox) -> None:
    """Give the policy the weights of the configured supervised fine-tuning, all of it.

    What cuts a run short (max_steps, limit_train_batches) is meant for the training behind it.
    Where it runs does not name other weights: a run that goes on elsewhere needs the same ones.
    """
    whole = {"max_steps": -1, "limit_train_batches": None}
    names = ("model", "renderer", "warm_start.module", "warm_start.datamodule")
    settings: dict[str, Any] = {
        name: OmegaConf.to_object(OmegaConf.select(config, name)) for name in names
    }
    settings["trainer.precision"] = config.trainer.precision
    warm_start(
        build_module(config, config.warm_start.module, loaded, sandbox),
        instantiate(config.warm_start.datamodule),
        lambda: instantiate(
            config.trainer,
            callbacks=[Progress("warm start")],
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,
            **whole,
        ),
        settings,
        config.warm_start.cache_dir,
    )
