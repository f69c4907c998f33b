"""What an evaluation says: means by scenario as a record and as a table, and traces."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from matchtir.evaluation.intervals import paired_bootstrap
from matchtir.evaluation.runner import Evaluation
from matchtir.reports.trace import trace_record
from matchtir.types import ResultStatus, Task

_WITH_INTERVAL = ("solve_p", "solve_r", "solve_f1", "answer_f1")  # in the table; the file has all
_RESAMPLES = 2_000
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over tasks: of all, by scenario, by quality of gold.

    Returns:
        `groups`: kind -> group -> {"tasks": count, measure: {"mean", "low", "high"}};
        `stop_reasons` and `result_statuses`: counts; `seconds`.
    """
    groups: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for trajectory, values in zip(evaluation.trajectories, evaluation.values, strict=True):
        for kind, group in _groups(trajectory.task).items():
            groups.setdefault(kind, {}).setdefault(group, []).append(values)
    trajectories = evaluation.trajectories
    return {
        "groups": {
            kind: {group: _means(values) for group, values in sorted(members.items())}
            for kind, members in groups.items()
        },
        "stop_reasons": dict(Counter(str(item.stop_reason) for item in trajectories)),
        "result_statuses": dict(
            Counter(str(result.status) for item in trajectories for result in item.results)
        ),
        "seconds": round(evaluation.seconds, 3),
    }


def table(summary: Mapping[str, Any], kind: str, title: str) -> Table:
    """The groups of one kind, one per row, and all tasks together below."""
    everything = summary["groups"]["all"]["all"]
    names = [name for name in everything if name != "tasks"]
    result = Table(title=title, caption="mean, and its 95 % bootstrap interval over tasks")
    result.add_column(kind.replace("_", " "), no_wrap=True)
    for name in ("tasks", *names):
        result.add_column(name, justify="right", no_wrap=True)
    for group, means in summary["groups"].get(kind, {}).items():
        result.add_row(group or "-", *_cells(means, names))
    result.add_section()
    result.add_row("all", *_cells(everything, names))
    return result


def trace_records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The trace of each trajectory, its advantages at zero, with its measures."""
    attempts = zip(evaluation.trajectories, evaluation.credits, evaluation.values, strict=True)
    return [
        {
            **trace_record(trajectory, credit, [0.0] * len(trajectory.turns), group=number),
            "sub_answers": [dataclasses.asdict(item) for item in trajectory.task.sub_answers],
            "values": dict(values),
        }
        for number, (trajectory, credit, values) in enumerate(attempts)
    ]


def missing_modules(evaluation: Evaluation) -> set[str]:
    """Python modules that tools wanted to import and this environment does not have.

    The scores would be others where they are installed.
    """
    return {
        found.group(1)
        for trajectory in evaluation.trajectories
        for result in trajectory.results
        if result.status in (ResultStatus.EXCEPTION, ResultStatus.BROKEN_TOOL)
        for found in _MISSING_MODULE.finditer(result.output)
    }


def _groups(task: Task) -> dict[str, str]:
    """The groups that a task is counted in, by kind."""
    groups = {"all": "all", "scenario": task.scenario}
    if task.metadata.get("gold_quality"):
        groups["gold_quality"] = task.metadata["gold_quality"]
    return groups


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means: dict[str, Any] = {"tasks": len(values)}
    for name in values[0]:
        column = [value[name] for value in values]
        # the mean itself: its difference from a policy that scores nothing
        mean = paired_bootstrap([0.0] * len(column), column, seed=0, samples=_RESAMPLES)
        means[name] = dataclasses.asdict(mean)
    return means


def _cells(means: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = [str(means["tasks"])]
    for name in names:
        mean, low, high = (means[name][key] for key in ("mean", "low", "high"))
        interval = f"\n[dim]{low:.3f}-{high:.3f}[/dim]" if name in _WITH_INTERVAL else ""
        cells.append(f"{mean:.3f}{interval}")
    return cells
