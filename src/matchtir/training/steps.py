"""The parts of a run around its training: the module, starting weights, tests before and after."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from rich.tree import Tree
from safetensors.torch import load_model, save_model

import matchtir
from matchtir.policy.loading import LoadedPolicy
from matchtir.policy.weights import full_tensor
from matchtir.reports.progress import Scores, compare, final_table, next_commands, write_result
from matchtir.tools.sandbox import Sandbox
from matchtir.training.base import PolicyModule
from matchtir.training.callbacks.checkpoint import UNFINISHED
from matchtir.training.callbacks.display import Progress
from matchtir.training.data import TaskDataModule, existing
from matchtir.utils.processes import is_first, rank, wait_for_all
from matchtir.utils.run_folder import METRICS_FILE, RESULT_FILE, read_metrics, replace_text

log = logging.getLogger(__name__)

START_CHECKPOINT = "checkpoints/start.ckpt"  # of a run that began with those of another
# What starting weights depend on besides the settings: libraries, and folders of this package.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "lightning")
SOURCES = ("policy", "rollout", "tasks", "tools", "training")


def build_module(
    config: DictConfig, module: DictConfig, loaded: LoadedPolicy, sandbox: Sandbox
) -> PolicyModule:
    """The module of node `module` around a policy, with renderer and engine for its tokens."""
    renderer = instantiate(config.renderer)(tokenizer=loaded.tokenizer)
    engine = instantiate(config.rollout.engine)(stop_token_ids=renderer.stop_token_ids)
    parts: dict[str, Any] = {"renderer": renderer, "engine": engine, "sandbox": sandbox}
    return instantiate(module)(policy=loaded.policy, **parts)


def set_up(config: DictConfig) -> None:
    """What holds for the whole process; and the config on the screen, where that is wanted."""
    if config.extras.print_config and is_first():
        tree = Tree("config")
        for name, node in OmegaConf.to_container(config, resolve=True).items():  # type: ignore[union-attr]
            text = json.dumps(node) if not isinstance(node, dict) else OmegaConf.to_yaml(node)
            tree.add(str(name)).add(Syntax(text.rstrip(), "yaml", background_color="default"))
        Console().print(tree)
    if config.extras.threads is not None:
        torch.set_num_threads(config.extras.threads)
    torch.set_float32_matmul_precision(config.extras.matmul_precision)
    seed_everything(config.seed, workers=True, verbose=False)


# -- what a run works on -------------------------------------------------------------------------


def task_hashes(data: TaskDataModule) -> dict[str, str]:
    """A hash of all training, validation and test tasks; of tasks made on demand the first ones."""
    sets = {f"training tasks of stage {n}": s.training_tasks for n, s in enumerate(data.stages)}
    if data.held_out is not None:
        for split in ("validation", "test"):
            sets[f"{split} tasks"] = data.held_out.tasks(split)
    if data.validation is not None:
        sets["validation tasks"] = data.validation.select()
    return {
        name: _hash(repr(task).encode() for task in existing(tasks)) for name, tasks in sets.items()
    }


def policy_hashes(loaded: LoadedPolicy) -> dict[str, str]:
    """A hash of the weights as they were loaded, and one of the tokenizer with its template."""
    weights = (
        part
        for name, value in loaded.policy.state_dict().items()
        for part in (name.encode(), value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    )
    with TemporaryDirectory() as folder:
        loaded.tokenizer.save_pretrained(folder)
        tokenizer = _hash(file.read_bytes() for file in sorted(Path(folder).rglob("*.*")))
    if any(each.is_meta for each in loaded.policy.parameters()):  # the first process has them
        return {"tokenizer": tokenizer}
    return {"model weights": _hash(weights), "tokenizer": tokenizer}


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


# -- starting weights ----------------------------------------------------------------------------


def start_from(checkpoint: Path | None, loaded: LoadedPolicy, folder: Path) -> Path | None:
    """Give the policy the weights of a checkpoint that has nothing else, as `best.ckpt` has.

    The run's folder keeps a copy: what goes on there needs them again, for its reference.

    Returns:
        The checkpoint, where it is one of a run to go on with.
    """
    own = folder / START_CHECKPOINT
    if checkpoint and checkpoint.is_file() and "optimizer_states" not in _read(checkpoint):
        log.info("a new run from the weights of %s", checkpoint)
        _load_weights(checkpoint, loaded)
        if is_first():
            own.parent.mkdir(parents=True, exist_ok=True)
            os.replace(shutil.copyfile(checkpoint, f"{own}{UNFINISHED}"), own)
        return None
    if own.exists():
        _load_weights(own, loaded)
    return checkpoint


def _load_weights(checkpoint: Path, loaded: LoadedPolicy) -> None:
    prefix, state = "policy.", _read(checkpoint)["state_dict"]
    weights = {n.removeprefix(prefix): w for n, w in state.items() if prefix in n}
    loaded.policy.load_state_dict(weights)


def _read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)


def start_warm(config: DictConfig, loaded: LoadedPolicy, sandbox: Sandbox) -> None:
    """Give the policy the weights of the configured supervised fine-tuning, all of it.

    They come from `warm_start.cache_dir`, one file per fingerprint of what determines them, if they
    are there. What cuts a run short (limit_train_batches) is meant for the training behind
    them, and where it runs does not name other weights: a run that goes on elsewhere needs
    the same ones.
    """
    names = ("model", "renderer", "warm_start.module", "warm_start.datamodule")
    settings: dict[str, Any] = {
        name: OmegaConf.to_object(OmegaConf.select(config, name)) for name in names
    }
    settings["trainer.precision"] = config.trainer.precision
    file = Path(config.warm_start.cache_dir, f"{fingerprint(settings)}.safetensors")
    if not file.exists():
        log.info("warm start: no weights in %s yet, training them", file)
        copied = loaded._replace(policy=deepcopy(loaded.policy))  # the trainer may shard it
        module = build_module(config, config.warm_start.module, copied, sandbox)
        trainer: Trainer = instantiate(
            config.trainer,
            callbacks=[Progress("warm start")],
            logger=False,
            enable_checkpointing=False,
            **{"limit_val_batches": 0, "limit_train_batches": None},
        )
        trainer.fit(module, datamodule=instantiate(config.warm_start.datamodule))
        trained = module.policy.state_dict()
        loaded.policy.load_state_dict({name: full_tensor(trained[name]) for name in trained})
        if rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")
            save_model(loaded.policy, str(unfinished))
            os.replace(unfinished, file)  # another process sees all of it or nothing
        wait_for_all()
    else:
        log.info("warm start: weights from %s", file)
    load_model(loaded.policy, str(file))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, the files that they name, the code that reads them, its libraries."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in sorted(_files_in(settings)):
        digest.update(file.read_bytes())
    root = Path(matchtir.__file__).parent
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()[:16]


def _files_in(settings: Any) -> set[Path]:
    """The files that a setting names, as `file` or `file:name`: tasks and tools.

    A `quarantine` is written by the run, and no part of what it reads.
    """
    if isinstance(settings, Mapping):
        settings = [value for key, value in settings.items() if key != "quarantine"]
    if isinstance(settings, list | tuple):
        return set().union(*map(_files_in, settings))
    if not isinstance(settings, str):
        return set()
    names = (settings, settings.partition(":")[0])
    return {Path(name) for name in names if os.path.isfile(name)}


# -- test tasks before and after -----------------------------------------------------------------


def test_scores(trainer: Trainer, module: PolicyModule, datamodule: LightningDataModule) -> Scores:
    """The scores of each test task, attempted greedily."""
    trainer.test(module, datamodule=datamodule, verbose=False)
    return module.test_scores


def scores_before(
    trainer: Trainer, module: PolicyModule, datamodule: LightningDataModule, file: Path
) -> Scores:
    """The test scores of the weights that training starts from; a resumed run has them on file."""
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    with isolate_rng():  # training begins the same where they are on file
        scores = test_scores(trainer, module, datamodule)
    if trainer.is_global_zero:
        replace_text(file, json.dumps(scores))
    return scores


def last_value(name: str, trainer: Trainer, folder: Path) -> float:
    """What a metric was when it was measured last; NaN: never.

    A run that goes on behind its last validation has it only in its table.
    """
    if name in trainer.callback_metrics:
        return float(trainer.callback_metrics[name])
    table = folder / METRICS_FILE
    _, values = read_metrics(table).get(name, ([], [])) if table.exists() else ([], [])
    return values[-1] if values else float("nan")


def report(folder: Path, before: Scores, after: Scores, *, seed: int, **facts: Any) -> None:
    """Write `after.json` and `result.json`, show the table of paired differences."""
    replace_text(folder / "after.json", json.dumps(after))
    comparisons = compare(before, after, seed) if after else []  # no test tasks
    write_result(folder / RESULT_FILE, comparisons, tasks=len(after), seed=seed, **facts)
    console = Console()
    console.print(final_table(comparisons, len(after)))
    console.print(f"{facts['seconds']:.0f} s: {folder}", soft_wrap=True)
    for command in next_commands(folder):
        console.print(f"    {command}", soft_wrap=True, highlight=False, markup=False)
