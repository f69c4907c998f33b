"""What an evaluation says of each benchmark: statistics by group, as a record, rows and a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from matchtir.evaluation.attempts import Record
from matchtir.evaluation.intervals import Gain
from matchtir.evaluation.statistics import Statistic, difference, estimate, resample_weights
from matchtir.types import ResultStatus

ALL = "all"  # the group of all tasks
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_CELL = len("0.00-1.00")  # characters of an interval
_BROKEN = (ResultStatus.EXCEPTION, ResultStatus.BROKEN_TOOL)

Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]  # kind -> group -> statistic -> number


def summarise(records: Sequence[Record], statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    """Every statistic with its 95 % interval, of all tasks and of each group of each kind.

    Returns:
        `groups`: kind -> group -> {"tasks": count, statistic: {"mean", "low", "high"}}, the kind
        "all" first; `stop_reasons` and `result_statuses`: counts.
    """
    members: dict[str, dict[str, list[Record]]] = {ALL: {ALL: list(records)}}
    for record in records:
        for kind, group in record["groups"].items():
            members.setdefault(kind, {}).setdefault(group, []).append(record)
    return {
        "groups": {
            kind: {group: _estimates(found, statistics) for group, found in sorted(groups.items())}
            for kind, groups in members.items()
        },
        "stop_reasons": dict(Counter(r["stop_reason"] for r in records if "stop_reason" in r)),
        "result_statuses": dict(Counter(c["result_status"] for r in records for c in _calls(r))),
    }


def _estimates(records: Sequence[Record], statistics: Mapping[str, Statistic]) -> dict[str, Any]:
    values = [record["values"] for record in records]
    weights = resample_weights(len(records))
    found = {name: estimate(s, values, weights) for name, s in statistics.items()}
    return {"tasks": len(records), **{name: asdict(number) for name, number in found.items()}}


def compare(
    before: Sequence[Record], after: Sequence[Record], statistics: Mapping[str, Statistic]
) -> tuple[int, dict[str, Gain]]:
    """On how many tasks two policies can be compared, and the difference of each statistic.

    Those are the tasks that both attempted. Where there are none, there are no differences.
    """
    earlier = {record["task"]: record["values"] for record in before}
    pairs = [(earlier[r["task"]], r["values"]) for r in after if r["task"] in earlier]
    if not pairs:
        return 0, {}
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    weights = resample_weights(len(pairs))
    return len(pairs), {n: difference(s, first, second, weights) for n, s in statistics.items()}


def group_table(summary: Mapping[str, Any], names: Sequence[str], title: str) -> Table:
    """Some statistics of one benchmark, a row for each group."""
    groups: Groups = summary["groups"]
    result = Table(title=title, caption="95 % bootstrap intervals over tasks below the numbers")
    result.add_column("", no_wrap=True)
    result.add_column("tasks", justify="right")
    for name in names:
        result.add_column(name.replace("_", " "), justify="right", min_width=_CELL)
    for kind in [*[kind for kind in groups if kind != ALL], ALL]:
        for group, numbers in groups[kind].items():
            cells = [_cell(numbers[name]) for name in names]
            label = ALL if kind == ALL else group
            result.add_row(label, str(numbers["tasks"]), *cells)
        result.add_section()
    return result


def _cell(number: Mapping[str, float]) -> str:
    mean, low, high = number["mean"], number["low"], number["high"]
    if np.isnan(mean):
        return "-"
    text = _digits(mean, 3)
    return text if low == high else f"{text}\n[dim]{_digits(low, 2)}-{_digits(high, 2)}[/dim]"


def _digits(number: float, decimals: int) -> str:
    """Fewer decimals for larger numbers."""
    return f"{number:.{decimals if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"


def score_rows(benchmark: str, summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One flat row for each statistic of each group, for a CSV file."""
    for kind, groups in summary["groups"].items():
        for group, numbers in groups.items():
            for name, number in numbers.items():
                if name != "tasks":
                    where = {"benchmark": benchmark, "kind": kind, "group": group}
                    yield {**where, "statistic": name, "tasks": numbers["tasks"], **number}


def missing_modules(records: Sequence[Record]) -> set[str]:
    """Python modules that tools wanted to import and this environment does not have.

    The scores would be others where they are installed.
    """
    return {
        found.group(1)
        for record in records
        for call in _calls(record)
        if call["result_status"] in _BROKEN
        for found in _MISSING_MODULE.finditer(call["output"])
    }


def _calls(record: Record) -> Iterator[Mapping[str, Any]]:
    return (call for turn in record["turns"] for call in turn["calls"])
