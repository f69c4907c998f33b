"""The folder of a run: where it lies, which one `ckpt_path=last` goes on with, and its config.

    <log_dir>/<experiment>/runs/<time>               one run
    <log_dir>/<experiment>/multiruns/<time>/<n>      job n of a sweep

`ckpt_path=last` continues the experiment's newest interrupted run in its own folder: one that has
`checkpoints/last.ckpt` but no `result.json` yet. With `-m` it continues the newest unfinished sweep
of the same choices; `matchtir.utils.sweep` says how.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from matchtir.utils import identity
from matchtir.utils.run_files import CHECKPOINT_FILE, CONFIG_FILE, RESULT_FILE, leaves
from matchtir.utils.sweep_record import newest_unfinished

LAST = "last"

# What may differ when a run is resumed: where, on how many processes and how long it runs, and who
# watches.
MAY_CHANGE = (
    "ckpt_path",
    "identity.*",
    "paths.*",
    "logger.*",
    "extras.*",
    "trainer.max_*",
    "trainer.limit_*",
    "trainer.enable_*",
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.strategy.*",
    "label",
    "against",
    "max_concurrent",
)


def register_resolvers() -> None:
    """Make the resolvers of `configs/` known; call it before `hydra.main`.

    The folders are kept for the life of a config, so that they are the same at every look.
    """
    OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)
    for function in (identity.group, identity.name, identity.tags):
        OmegaConf.register_new_resolver(f"run_{function.__name__}", function, replace=True)
    OmegaConf.register_new_resolver("joined", "+".join, replace=True)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("product", lambda *numbers: math.prod(numbers), replace=True)
    OmegaConf.register_new_resolver("sampler_dtype", sampler_dtype, replace=True)


def sampler_dtype(precision: str | int) -> str | None:
    """What a trainer of this precision computes in, by vLLM's name; None: what is stored."""
    kinds = {"bf16": "bfloat16", "16": "float16"}
    return kinds.get(str(precision).removesuffix("-mixed").removesuffix("-true"))


def run_dir(
    log_dir: str,
    job: str,
    overrides: Sequence[str],
    choices: DictConfig,
    ckpt_path: str | None,
    started: str = str(CHECKPOINT_FILE),
) -> str:
    """The folder of a single run: the newest interrupted one for `ckpt_path=last`, else a new one.

    Args:
        log_dir: of all experiments.
        job: name of the program, which stands in where no experiment was chosen.
        overrides: of the command line.
        choices: Hydra's chosen option of each config group.
        ckpt_path: "last" to go on with an interrupted run. Where there is none the folder is a
            new one, so that `checkpoint_to_load` raises, inside the program.
        started: the file that an interrupted run has; it has no `result.json`.
    """
    runs = Path(log_dir, _experiment(job, overrides, choices), "runs")
    interrupted = [
        str(folder)
        for folder in runs.glob("*/")
        if (folder / started).exists() and not (folder / RESULT_FILE).exists()
    ]
    return max(interrupted) if ckpt_path == LAST and interrupted else str(_new(runs))


def sweep_dir(
    log_dir: str, job: str, overrides: Sequence[str], choices: DictConfig, ckpt_path: str | None
) -> str:
    """The folder of a sweep; experiments that are swept over are joined by `+`.

    With `ckpt_path=last` that of the newest unfinished sweep of these overrides, if there is one.
    """
    sweeps = Path(log_dir, _experiment(job, overrides, choices), "multiruns")
    unfinished = newest_unfinished(sweeps, overrides) if ckpt_path == LAST else None
    return str(unfinished or _new(sweeps))


def _experiment(job: str, overrides: Sequence[str], choices: DictConfig) -> str:
    for override in overrides:
        group, _, chosen = override.partition("=")
        if group == "experiment" and "," in chosen:
            return chosen.replace(",", "+")
    return choices.get("experiment") or job


def _new(parent: Path) -> Path:
    """A folder named after the time, which no other run has."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}_{number}"
    return folder


def folder_to_resume(ckpt_path: str | None, folder: str | Path) -> None:
    """Check that there is something to go on with, in a program without checkpoints.

    Raises:
        FileNotFoundError: no interrupted run, though `ckpt_path=last` asks for one.
        ValueError: another `ckpt_path`.
    """
    if ckpt_path not in (None, LAST):
        raise ValueError(f"ckpt_path={ckpt_path}: an evaluation has no checkpoints, only {LAST}")
    if ckpt_path == LAST and not Path(folder, CONFIG_FILE).exists():
        raise FileNotFoundError(
            f"ckpt_path=last: no interrupted run in {Path(folder).parent} (one that has "
            f"{CONFIG_FILE} and no {RESULT_FILE})"
        )


def checkpoint_to_load(ckpt_path: str | None, folder: str | Path) -> Path | None:
    """The checkpoint that the run starts from, None for a fresh start.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == LAST:
        path = Path(folder, CHECKPOINT_FILE)
        if not path.exists():
            raise FileNotFoundError(
                f"ckpt_path=last: no interrupted run in {Path(folder).parent} (one that has "
                f"{CHECKPOINT_FILE} and no {RESULT_FILE})"
            )
        return path
    if not Path(ckpt_path).exists():
        raise FileNotFoundError(f"ckpt_path: there is no {ckpt_path}")
    return Path(ckpt_path)


@rank_zero_only
def keep_config(config: DictConfig, folder: str | Path) -> None:
    """Write the resolved config into the run's folder; a resumed run's must be the same.

    Raises:
        ValueError: the folder has another config; the message names the keys that differ.
    """
    path = Path(folder, CONFIG_FILE)
    new = OmegaConf.to_container(config, resolve=True)
    if path.exists():
        old_leaves, new_leaves = leaves(OmegaConf.to_container(OmegaConf.load(path))), leaves(new)
        differing = [
            f"  {key}: {old_leaves.get(key, 'absent')} -> {new_leaves.get(key, 'absent')}"
            for key in sorted(old_leaves.keys() | new_leaves.keys())
            if old_leaves.get(key, "absent") != new_leaves.get(key, "absent")
            and not any(fnmatch.fnmatch(key, pattern) for pattern in MAY_CHANGE)
        ]
        if differing:
            raise ValueError("\n".join([f"{folder} was started with another config:", *differing]))
    OmegaConf.save(OmegaConf.create(new), path)
