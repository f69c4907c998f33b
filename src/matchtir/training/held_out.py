"""Test tasks before and after training: the scores, the table and the result of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from rich.console import Console

from matchtir.reports.summary import Scores, compare, final_table, next_commands, write_result
from matchtir.training.base import PolicyModule
from matchtir.utils.run_files import METRICS_FILE, RESULT_FILE, read_metrics


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
    scores = test_scores(trainer, module, datamodule)
    if trainer.is_global_zero:
        file.write_text(json.dumps(scores), encoding="utf-8")
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
    (folder / "after.json").write_text(json.dumps(after), encoding="utf-8")
    comparisons = compare(before, after, seed)
    write_result(folder / RESULT_FILE, comparisons, tasks=len(after), seed=seed, **facts)
    console = Console()
    console.print(final_table(comparisons, len(after)))
    console.print(f"{facts['seconds']:.0f} s: {folder}", soft_wrap=True)
    for command in next_commands(folder):
        console.print(f"    {command}", soft_wrap=True, highlight=False, markup=False)
