"""The folder of a run: where it lies, what the run is called, what it leaves and how it is read.

    <log_dir>/<experiment>/runs/<time>               one run
    <log_dir>/<experiment>/multiruns/<time>/<n>      job n of a sweep

`ckpt_path=last` continues the experiment's newest interrupted run in its own folder: one that has
a checkpoint but no `result.json` yet. With `-m` it continues the newest unfinished sweep of the
same choices; `matchtir.utils.sweep` says how. One run at a time writes into a folder.
"""

from __future__ import annotations

import csv
import fcntl
import fnmatch
import itertools
import json
import logging
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from matchtir.utils.options import UserError

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
INPUTS_FILE = "inputs.json"  # hashes of what a run began with
LOCK_FILE = ".lock"
LAST_CHECKPOINT, PREVIOUS_CHECKPOINT = "last.ckpt", "previous.ckpt"
CHECKSUMS = "checksums_{}.json"  # in a folder of shards, of the files of one process
CHECKPOINTS = (f"checkpoints/{LAST_CHECKPOINT}", f"checkpoints/{PREVIOUS_CHECKPOINT}")
SWEEP_FILE = "sweep.json"
LAST = "last"
MAX_TAG = 64  # characters, as W&B has it

# Settings that say where a run goes and who watches it, not what it computes.
WATCHING = (
    *("ckpt_path", "tags", "hparams_search", "curve.*", "identity.*", "paths.*", "logger.*"),
    *("callbacks.*", "extras.*", "*.cache_dir", "trainer.default_root_dir", "trainer.enable_*"),
)
# A resumed run may differ in these, too: on how many processes and how long it runs. The schedule
# of a learning rate that falls until the end is then that of the new length.
MAY_CHANGE = (
    *(*WATCHING, "trainer.max_*", "trainer.limit_*", "trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
    *("iterations", "datamodule.stages.*.iterations"),
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
        "one_parameter": one_parameter,
    }
    for name, resolver in resolvers.items():
        looked_up_once = name.endswith("_dir")  # in the life of a config: they tell the time
        OmegaConf.register_new_resolver(name, resolver, use_cache=looked_up_once, replace=True)


def one_parameter(name: str | None, values: Sequence[Any]) -> dict[str, str]:
    """A sweep over the values of one key, as Hydra's sweeper takes it; nothing without a name."""
    return {name: ",".join("null" if v is None else str(v) for v in values)} if name else {}


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
    *markers: str,
) -> str:
    """The folder of a single run: the newest interrupted one for `ckpt_path=last`, else a new one.

    Args:
        log_dir: of all experiments.
        job: name of the program, which stands in where no experiment was chosen.
        overrides: of the command line.
        choices: Hydra's chosen option of each config group.
        ckpt_path: "last" to go on with an interrupted run. Where there is none the folder is a
            new one, so that `checkpoint_to_load` raises, inside the program.
        started: files of which an interrupted run has one (default: a checkpoint); it has no
            `result.json`.
    """
    runs = Path(log_dir, _experiment(job, overrides, choices), "runs")
    interrupted = [
        folder
        for folder in (runs.glob("*/") if ckpt_path == LAST else ())
        if any((folder / file).exists() for file in markers or CHECKPOINTS)
        and not (folder / RESULT_FILE).exists()
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


def run_tags(
    experiment: str | None, overrides: Sequence[str], seed: int, own: Sequence[str] = ()
) -> list[str]:
    """The user's own, the experiment, each choice and the seed; a long one is cut at its end."""
    every = [*own, *_names(experiment, overrides), f"seed={seed}"]
    return list(dict.fromkeys(tag[:MAX_TAG] for tag in every))


def _names(experiment: str | None, overrides: Sequence[str]) -> list[str]:
    """The experiment, and the overrides that tell methods apart."""
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    told = (*WATCHING, "experiment", "seed")
    chosen = [each for key, each in zip(keys, overrides, strict=True) if not matches(key, told)]
    return [experiment or "train", *chosen]


# -- what it goes on with --------------------------------------------------------------------------


def checkpoint_to_load(ckpt_path: str | None, folder: str | Path, *markers: str) -> Path | None:
    """The file that the run goes on from, None for a fresh start.

    A checkpoint that is damaged (truncated, or any bit of it changed) is not taken: of the run's
    own two the one before is, with an error in the log.

    Args:
        ckpt_path: "last": the first of the files `markers` in the run's own folder that is whole;
            else a checkpoint of any run.
        folder: of the run.
        started: see `run_dir`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: every such file is damaged.
    """
    if ckpt_path is None:
        return None
    names = markers or CHECKPOINTS
    places = [Path(folder, name) for name in names] if ckpt_path == LAST else [Path(ckpt_path)]
    found = [place for place in places if place.exists()]
    if not found and ckpt_path != LAST:
        raise FileNotFoundError(f"ckpt_path={ckpt_path}: there is no {ckpt_path}")
    if not found:
        runs, mark = Path(folder).parent, f"one that has {names[0]} and no {RESULT_FILE}"
        raise FileNotFoundError(f"ckpt_path={LAST}: no interrupted run in {runs} ({mark})")
    for place in found:
        if place.suffix != ".ckpt" or is_whole(place):
            return place
        log.error("%s IS DAMAGED and is not taken", place)
    raise UserError(f"ckpt_path={ckpt_path}: damaged: {', '.join(map(str, found))}")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read and all its checksums are right; reads all of it.

    One in a folder of shards has those that `keep_checksums` wrote.
    """
    import torch  # slow; reports do without it

    if checkpoint.is_dir():
        known: dict[str, int] = {}
        for file in checkpoint.glob(CHECKSUMS.format("*")):
            known |= json.loads(file.read_text(encoding="utf-8"))
        files = [file for file in checkpoint.iterdir() if not file.match(CHECKSUMS.format("*"))]
        return bool(known) and {file.name: _checksum(file) for file in files} == known
    try:
        torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        with zipfile.ZipFile(checkpoint) as archive:  # PyTorch itself does not check what it reads
            return archive.testzip() is None
    except Exception:  # what is damaged may fail in any way
        return False


def keep_checksums(checkpoint: Path, rank: int) -> None:
    """Write those of what a process wrote into a folder of shards, which are named by its rank.

    The first process has written all else, too.
    """
    written = [*checkpoint.glob(f"__{rank}_*")]
    if rank == 0:
        written += [checkpoint / ".metadata", checkpoint / "meta.pt"]
    sums = {file.name: _checksum(file) for file in written}
    replace_text(checkpoint / CHECKSUMS.format(rank), json.dumps(sums))


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            found = zlib.crc32(part, found)
    return found


@contextmanager
def opened(config: DictConfig, folder: Path) -> Iterator[None]:
    """Make the folder of a run, say where it is, keep other runs out of it, write its config.

    Other processes of the same run leave that to the first one.

    Raises:
        UserError: another run that still lives writes there, or the folder has another config; the
            message names the run or the keys that differ.
    """
    from matchtir.utils.processes import is_first  # slow; reports do without it

    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(f"{folder}: {lock.read().strip()} still writes here") from error
        lock.truncate(0)
        print(f"process {os.getpid()} of {os.uname().nodename}", file=lock, flush=True)
        print(f"run folder: {folder}", flush=True)
        keep_config(config, folder)
        yield


def keep_inputs(folder: str | Path, found: Mapping[str, str]) -> None:
    """Keep hashes of what the run works on; those of a resumed run must be the same.

    Raises:
        UserError: the run was begun with others; the message names them.
    """
    from matchtir.utils.processes import is_first

    file = Path(folder, INPUTS_FILE)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    changed = [name for name, value in found.items() if known.get(name, value) != value]
    if changed:
        raise UserError(f"{folder} was started with other {', '.join(changed)}")
    if is_first():
        replace_text(file, json.dumps({**known, **found}, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, and a reader sees no half."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def keep_config(config: DictConfig, folder: Path) -> None:
    """Write the resolved config into the run's folder; a resumed run's must be the same.

    Raises:
        UserError: the folder has another config; the message names the keys that differ.
    """
    path = folder / CONFIG_FILE
    new: Any = OmegaConf.to_container(config, resolve=True)
    if path.exists():
        old, now = leaves(OmegaConf.to_container(OmegaConf.load(path))), leaves(new)
        differing = [
            f"  {key}: {old.get(key, 'absent')} -> {now.get(key, 'absent')}"
            for key in sorted(old.keys() | now.keys())
            if old.get(key, "absent") != now.get(key, "absent") and not matches(key, MAY_CHANGE)
        ]
        if differing:
            head = f"{path.parent} was started with another config:"
            raise UserError("\n".join([head, *differing]))
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create(new)))


# -- what it leaves --------------------------------------------------------------------------------


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys; plain lists and empty mappings stay whole."""
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if isinstance(node, dict) and node:
        return {
            name: leaf
            for key, value in node.items()
            for name, leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: node}


def nan_to_null(value: Any) -> Any:
    """A value for JSON, with null in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(item) for item in value]
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
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in columns[1:]}
    for row in rows:
        for name in row.keys() & curves.keys():
            steps, values = curves[name]
            steps.append(int(row["step"]))
            values.append(float(row[name]))
    return curves
