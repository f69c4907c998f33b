"""Sweeps that go on: over a job that fails, and after an interruption.

python src/train.py -m <choices>                  # a failed job is marked, the others run
python src/train.py -m <choices> ckpt_path=last   # later: only what is not finished

A finished job is not run again, an interrupted one goes on from its last checkpoint, and a failed
one is tried again. Job n of a sweep must stay the same job: another config is refused.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from matchtir.utils.run_dir import LAST, keep_config
from matchtir.utils.run_files import CHECKPOINT_FILE, CONFIG_FILE, RESULT_FILE
from matchtir.utils.sweep_record import (
    FAILED_FILE,
    SWEEP_FILE,
    job_folders,
    job_state,
    read_record,
    sweep_choices,
    write_record,
)

log = logging.getLogger(__name__)


def run_job(run: Callable[[DictConfig], float], config: DictConfig) -> float | None:
    """`run(config)`, as a job of a sweep where it is one.

    Returns:
        What `run` returned, now or when the job was finished earlier; None where it failed, which
        search algorithms take for a failed trial.

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
    if (folder / CHECKPOINT_FILE).exists():
        config.ckpt_path = LAST
    elif config.ckpt_path == LAST:
        config.ckpt_path = None
    failed.unlink(missing_ok=True)
    try:
        return run(config)
    except Exception as error:  # whatever it is, the other jobs have nothing to do with it
        folder.mkdir(parents=True, exist_ok=True)
        failed.write_text(traceback.format_exc(), encoding="utf-8")
        log.error(
            "job failed, see %s: %s", failed, str(error).splitlines()[0] if str(error) else error
        )
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
        choices = sweep_choices(config.hydra.overrides.task)
        if (folder / SWEEP_FILE).exists():
            done = [job_state(job) for job in job_folders(folder)].count("finished")
            print(f"going on with {folder}: {done} jobs are finished")
            return
        if config.get("ckpt_path") == LAST:
            sys.exit(f"ckpt_path=last: no unfinished sweep of these choices in {folder.parent}")
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, {"choices": choices, "finished": False})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show how the jobs ended."""
        folder = Path(config.hydra.sweep.dir)
        jobs = job_folders(folder)
        states = {job.name: job_state(job) for job in jobs}
        unfinished = sum(state != "finished" for state in states.values())
        record = read_record(folder) | {"finished": not unfinished, "jobs": states}
        write_record(folder, record)
        console = Console()
        console.width = max(console.width, 100)
        console.print(job_table(jobs))
        console.print(f"compare:  python scripts/compare.py {folder}", soft_wrap=True)
        if unfinished:
            sys.exit(
                f"{unfinished} of {len(jobs)} jobs are not finished. The same command with "
                "ckpt_path=last tries them again."
            )


def job_table(jobs: list[Path]) -> Table:
    """The jobs of a sweep with their names, states and objectives."""
    table = Table(title=f"{len(jobs)} jobs")
    for heading in ("job", "name", "state"):
        table.add_column(heading)
    table.add_column("objective", justify="right")
    colours = {"finished": "green", "failed": "red", "interrupted": "yellow"}
    for job in jobs:
        state = job_state(job)
        name, objective = "", ""
        if (job / CONFIG_FILE).exists():
            name = OmegaConf.select(OmegaConf.load(job / CONFIG_FILE), "identity.name") or ""
        if state == "finished":
            value = _objective(job)
            objective = "-" if value is None else f"{value:.4f}"
        why = f" ({_last_line(job / FAILED_FILE)})" if state == "failed" else ""
        table.add_row(job.name, name, f"[{colours[state]}]{state}[/]{why}", objective)
    return table


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").strip().splitlines()
    return lines[-1].replace("[", r"\[") if lines else ""
