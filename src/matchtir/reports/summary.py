"""The end of a run: what was measured before and after, as a table and as `result.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from matchtir.evaluation.statistics import Gain, paired_bootstrap
from matchtir.utils.run_folder import finite


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric on the same tasks before and after training."""

    metric: str
    before: float
    after: float
    gain: Gain


Scores = Mapping[str, Mapping[str, float]]  # of each task, by metric


def compare(before: Scores, after: Scores, seed: int) -> list[Comparison]:
    """Each metric's means over tasks, and the paired bootstrap interval of their difference.

    Args:
        before: scores of each task: {task id: {metric: score}}.
        after: the same, of the same tasks.
        seed: of the resampling.

    Raises:
        ValueError: there are no tasks, or the two have other tasks or metrics.
    """
    if not before or before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[:5]
        raise ValueError(
            f"{len(before)} tasks before, {len(after)} after; not in both: {', '.join(odd) or '-'}"
        )
    metrics = list(next(iter(before.values())))
    comparisons = []
    for metric in metrics:
        first, second = _column(before, metric, before), _column(after, metric, before)
        gain = paired_bootstrap(first, second, seed)
        comparisons.append(Comparison(metric, float(np.mean(first)), float(np.mean(second)), gain))
    return comparisons


def _column(scores: Scores, metric: str, tasks: Iterable[str]) -> list[float]:
    for task in tasks:
        if metric not in scores[task]:
            raise ValueError(f"task {task} has no {metric}")
    return [scores[task][metric] for task in tasks]


def final_table(comparisons: Sequence[Comparison], tasks: int) -> Table:
    """A rich table of the comparisons; a gain whose interval excludes 0 is set in colour."""
    table = Table(title=f"{tasks} test tasks")
    table.add_column("metric")
    for heading in ("before", "after", "gain", "95 % interval"):
        table.add_column(heading, justify="right")
    for row in comparisons:
        gain = row.gain
        colour = "green" if gain.low > 0 else "red" if gain.high < 0 else "default"
        table.add_row(
            row.metric,
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"[{colour}]{gain.mean:+.3f}[/]",
            rf"\[{gain.low:+.3f}, {gain.high:+.3f}]",
        )
    return table


def next_commands(folder: Path) -> list[str]:
    """What one may want to type once a run has ended, each with a remark."""
    here = Path.cwd()
    run = folder.relative_to(here) if folder.is_relative_to(here) else folder
    commands = {
        f"python scripts/view.py {run}": "its attempts, turn by turn",
        f"python scripts/compare.py {run.parent}": "with its neighbours",
        f"python src/eval.py benchmark=synthetic policy={run}": "on a benchmark",
    }
    if any(folder.glob("wandb/offline-run-*")):
        commands[f"wandb sync {run}/wandb/offline-run-*"] = "to W&B"
    if not any(folder.glob("traces/*.jsonl")):
        del commands[f"python scripts/view.py {run}"]
    width = max(map(len, commands))
    return [f"{command:{width}}  # {remark}" for command, remark in commands.items()]


def write_result(path: Path, comparisons: Sequence[Comparison], **facts: Any) -> None:
    """Write `result.json`: means before and after, gains with intervals, and the facts given.

    Numbers that are not finite become null, since JSON has none.
    """
    result = {
        "before": {row.metric: row.before for row in comparisons},
        "after": {row.metric: row.after for row in comparisons},
        "gain": {row.metric: asdict(row.gain) for row in comparisons},
        **facts,
    }
    text = json.dumps(finite(result), indent=2, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
