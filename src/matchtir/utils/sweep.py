"""Sweeps that go on: over a job that fails, and after an interruption.

python src/train.py -m <choices>                  # a failed job is marked, the others run
python src/train.py -m <choices> ckpt_path=last   # later: only what is not finished

A job is finished when its folder has `result.json`, failed when it has `failed.txt`, and otherwise
interrupted; `sweep.json` keeps the choices and, at the end, the state of each job. A finished job
is not run again, an interrupted one goes on from its last checkpoint, and a failed one is tried
again. Job n of a sweep must stay the same job: another config is refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from matchtir.utils.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    LAST,
    RESULT_FILE,
    SWEEP_FILE,
    keep_config,
    sweep_choices,
)

FAILED_FILE = "failed.txt"

log = logging.getLogger(__name__)


def run_job(run: Callable[[DictConfig], float], config: DictConfig) -> float | None:
    """`run(config)`, as a job of a sweep where it is one.

    Returns:
        What `run` returned, now or when the job was finished earlier; None where it failed or the
        number is NaN, which search algorithms take for a failed trial.

    Raises:
        SystemExit: the job was finished with another config, or wants to start processes itself.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run(config)
    _require_processes(config)
    folder = Path(config.paths.run_dir)
    failed = folder / FAILED_FILE
    if (folder / RESULT_FILE).exists():
        try:
            keep_config(config, folder)
        except ValueError as error:  # the whole sweep is another: nothing of it can be gone on with
            sys.exit(f"the sweep cannot go on: {error}")
        log.info("finished earlier: %s", folder)
        return _objective(folder)
    if failed.exists() and _is_search():
        log.info("failed earlier: %s", folder)
        return None
    if any((folder / file).exists() for file in CHECKPOINTS):
        config.ckpt_path = LAST
    elif config.ckpt_path == LAST:
        config.ckpt_path = None
    failed.unlink(missing_ok=True)
    try:
        value = run(config)
        if not math.isnan(value):
            return value
        log.warning("job without a number as its objective: %s", folder)
        return None
    except Exception as error:  # whatever it is, the other jobs have nothing to do with it
        folder.mkdir(parents=True, exist_ok=True)
        failed.write_text(traceback.format_exc(), encoding="utf-8")
        log.error("job failed, see %s: %s", failed, str(error).partition("\n")[0])
        return None


def _require_processes(config: DictConfig) -> None:
    """A second process that a job starts would run the whole sweep again."""
    devices = OmegaConf.select(config, "trainer.devices")
    started = "LOCAL_RANK" in os.environ or "SLURM_LOCALID" in os.environ
    if isinstance(devices, int) and devices > 1 and not started:
        sys.exit(
            f"trainer.devices={devices} in a sweep: run such jobs one by one, or with "
            "hydra/launcher=slurm hydra.launcher.tasks_per_node=<devices>"
        )


def _objective(job: Path) -> float | None:
    return json.loads((job / RESULT_FILE).read_text(encoding="utf-8")).get("objective")


def _is_search() -> bool:
    """Whether later jobs depend on how earlier ones ended, so that a failed one must stay so."""
    return not HydraConfig.get().sweeper._target_.endswith("BasicSweeper")


class SweepCallback(Callback):
    """Keeps the record of a sweep, and ends it with a table of its jobs.

    Raises:
        SystemExit: at the start, where `ckpt_path=last` finds no sweep to go on with; at the end,
            where jobs failed.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Begin the record, or go on with it."""
        folder = Path(config.hydra.sweep.dir)
        if (folder / SWEEP_FILE).exists():
            done = [*_states(folder).values()].count("finished")
            print(f"going on with {folder}: {done} jobs are finished")
            return
        if config.get("ckpt_path") == LAST:
            sys.exit(f"ckpt_path=last: no unfinished sweep of these choices in {folder.parent}")
        folder.mkdir(parents=True, exist_ok=True)
        choices = sweep_choices(config.hydra.overrides.task)
        _write_record(folder, {"choices": choices, "finished": False})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show how the jobs ended."""
        folder = Path(config.hydra.sweep.dir)
        states = _states(folder)
        unfinished = sum(state != "finished" for state in states.values())
        record = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        _write_record(folder, record | {"finished": not unfinished, "jobs": states})
        for number, state in states.items():
            print(f"{number:>4}  {state:11}  {_about(folder / number, state)}")
        print(f"compare:  python scripts/compare.py {folder}")
        if unfinished:
            sys.exit(
                f"{unfinished} of {len(states)} jobs are not finished. The same command with "
                "ckpt_path=last tries them again."
            )


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / SWEEP_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _states(folder: Path) -> dict[str, str]:
    """Of each job that was begun, by its number and in order: finished, failed or interrupted."""
    marks = {RESULT_FILE: "finished", FAILED_FILE: "failed"}
    jobs = sorted(
        (job for job in folder.iterdir() if job.name.isdigit()), key=lambda j: int(j.name)
    )
    return {
        job.name: next((s for file, s in marks.items() if (job / file).exists()), "interrupted")
        for job in jobs
    }


def _about(job: Path, state: str) -> str:
    """The objective of a finished job or the error of a failed one, and the job's name."""
    name, found = "", ""
    if (job / CONFIG_FILE).exists():
        name = OmegaConf.select(OmegaConf.load(job / CONFIG_FILE), "identity.name") or ""
    if state == "finished":
        value = _objective(job)
        found = "-" if value is None else f"{value:.4f}"
    elif state == "failed":
        found = (job / FAILED_FILE).read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return f"{found:<10}  {name}"
