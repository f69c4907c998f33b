"""The folder of a run: where it lies, what the run is called, what it leaves and how it is read.

    <log_dir>/<experiment>/runs/<time>               one run
    <log_dir>/<experiment>/multiruns/<time>/<n>      job n of a sweep

`ckpt_path=last` continues the experiment's newest interrupted run in its own folder: one that has
`checkpoints/last.ckpt` but no `result.json` yet. With `-m` it continues the newest unfinished sweep
of the same choices; `matchtir.utils.sweep` says how.
"""

from __future__ import annotations

import csv
import fnmatch
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
CHECKPOINT_FILE = Path("checkpoints", "last.ckpt")
SWEEP_FILE = "sweep.json"
LAST = "last"
MAX_TAG = 64  # characters, as W&B has it

# Settings that say where a run goes and who watches it, not what it computes.
WATCHING = (
    *("ckpt_path", "hparams_search", "identity.*", "paths.*", "logger.*", "callbacks.*"),
    *("extras.*", "*.cache_dir", "trainer.default_root_dir", "trainer.enable_*"),
)
# A resumed run may differ in these, too: on how many processes and how long it runs.
MAY_CHANGE = (
    *(*WATCHING, "trainer.max_*", "trainer.limit_*", "trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
    *("label", "against", "max_concurrent"),
)


def matches(key: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted key, or the section of that name, is one of the patterns."""
    return any(fnmatch.fnmatch(name, each) for each in patterns for name in (key, f"{key}."))


# -- where it lies ---------------------------------------------------------------------------------


def register_resolvers() -> None:
    """Make the resolvers of `configs/` known; call it before `hydra.main`."""
    resolvers: dict[str, Callable[..., Any]] = {
        "run_dir": run_dir,
        "sweep_dir": sweep_dir,
        "run_group": run_group,
        "run_name": run_name,
        "run_tags": run_tags,
        "joined": "+".join,
        "add": lambda *numbers: sum(numbers),
        "product": lambda *numbers: math.prod(numbers),
        "sampler_dtype": sampler_dtype,
    }
    for name, resolver in resolvers.items():
        looked_up_once = name.endswith("_dir")  # in the life of a config: they tell the time
        OmegaConf.register_new_resolver(name, resolver, use_cache=looked_up_once, replace=True)


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
        folder
        for folder in (runs.glob("*/") if ckpt_path == LAST else ())
        if (folder / started).exists() and not (folder / RESULT_FILE).exists()
    ]
    return str(max(interrupted, default=None) or _new(runs))


def sweep_dir(
    log_dir: str, job: str, overrides: Sequence[str], choices: DictConfig, ckpt_path: str | None
) -> str:
    """The folder of a sweep; experiments that are swept over are joined by `+`.

    With `ckpt_path=last` that of the newest unfinished sweep of these overrides, if there is one.
    """
    sweeps = Path(log_dir, _experiment(job, overrides, choices), "multiruns")
    unfinished = []
    for file in sweeps.glob(f"*/{SWEEP_FILE}") if ckpt_path == LAST else ():
        record = json.loads(file.read_text(encoding="utf-8"))
        if not record["finished"] and record["choices"] == sweep_choices(overrides):
            unfinished.append(file.parent)
    return str(max(unfinished, default=None) or _new(sweeps))


def sweep_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides that two command lines of one sweep have in common, in order of their keys."""
    return sorted(text for text in overrides if not text.startswith("ckpt_path="))


def _experiment(job: str, overrides: Sequence[str], choices: DictConfig) -> str:
    for override in overrides:
        group, _, chosen = override.partition("=")
        if group == "experiment" and "," in chosen:
            return chosen.replace(",", "+")
    return choices.get("experiment") or job


def _new(parent: Path) -> Path:
    """A folder named after the time, which no other run has."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(parent / each for each in names if not (parent / each).exists())


# -- what it is called -----------------------------------------------------------------------------


def run_group(experiment: str | None, overrides: Sequence[str]) -> str:
    """The name that runs share which differ in their seed alone: experiment and other choices."""
    return " ".join(_names(experiment, overrides))


def run_name(experiment: str | None, overrides: Sequence[str], seed: int) -> str:
    """The name of one run: that of its group, and the seed."""
    return f"{run_group(experiment, overrides)} seed={seed}"


def run_tags(experiment: str | None, overrides: Sequence[str], seed: int) -> list[str]:
    """The experiment, each choice and the seed; a long one is cut at its end."""
    every = [*_names(experiment, overrides), f"seed={seed}"]
    return list(dict.fromkeys(tag[:MAX_TAG] for tag in every))


def _names(experiment: str | None, overrides: Sequence[str]) -> list[str]:
    """The experiment, and the overrides that tell methods apart."""
    names = [experiment or "train"]
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        if not matches(key, (*WATCHING, "experiment", "seed")):
            names.append(override)
    return names


# -- what it goes on with --------------------------------------------------------------------------


def checkpoint_to_load(
    ckpt_path: str | None, folder: str | Path, started: str | Path = CHECKPOINT_FILE
) -> Path | None:
    """The file that the run goes on from, None for a fresh start.

    Args:
        ckpt_path: "last": the file `started` of the run's own folder; else a checkpoint of any run.
        folder: of the run.
        started: see `run_dir`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if ckpt_path is None:
        return None
    file = Path(folder, started) if ckpt_path == LAST else Path(ckpt_path)
    if file.exists():
        return file
    why = f"there is no {file}"
    if ckpt_path == LAST:
        why = f"no interrupted run in {file.parents[len(Path(started).parts)]}"
        why += f" (one that has {started} and no {RESULT_FILE})"
    raise FileNotFoundError(f"ckpt_path={ckpt_path}: {why}")


def keep_config(config: DictConfig, folder: str | Path) -> None:
    """Write the resolved config into the run's folder; a resumed run's must be the same.

    Raises:
        ValueError: the folder has another config; the message names the keys that differ.
    """
    from lightning.pytorch.utilities import rank_zero_only  # slow; reports do without it

    rank_zero_only(_keep_config)(config, Path(folder, CONFIG_FILE))


def _keep_config(config: DictConfig, path: Path) -> None:
    new = OmegaConf.to_container(config, resolve=True)
    if path.exists():
        old_leaves, new_leaves = leaves(OmegaConf.to_container(OmegaConf.load(path))), leaves(new)
        differing = [
            f"  {key}: {old_leaves.get(key, 'absent')} -> {new_leaves.get(key, 'absent')}"
            for key in sorted(old_leaves.keys() | new_leaves.keys())
            if old_leaves.get(key, "absent") != new_leaves.get(key, "absent")
            and not matches(key, MAY_CHANGE)
        ]
        if differing:
            head = f"{path.parent} was started with another config:"
            raise ValueError("\n".join([head, *differing]))
    OmegaConf.save(OmegaConf.create(new), path)


# -- what it leaves --------------------------------------------------------------------------------


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys; lists and empty mappings stay whole."""
    if isinstance(node, dict) and node:
        return {
            name: leaf
            for key, value in node.items()
            for name, leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: node}


def finite(value: Any) -> Any:
    """A value for JSON, with null in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table with its columns' names first; None is a blank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns, and rows without their blank cells; a last line cut short by a kill is left out.

    Raises:
        ValueError: the file is not such a table.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    columns = list(reader.fieldnames or [])
    if columns[:1] != ["step"]:
        raise ValueError(f"{path}: the first column must be `step`, found {columns[:1]}")
    return columns, [{name: cell for name, cell in row.items() if cell} for row in reader]


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a `metrics.csv`: for each metric its steps and its values, blanks left out."""
    columns, rows = read_rows(Path(path))
    measured = {name: [row for row in rows if name in row] for name in columns[1:]}
    return {
        name: ([int(row["step"]) for row in those], [float(row[name]) for row in those])
        for name, those in measured.items()
    }
