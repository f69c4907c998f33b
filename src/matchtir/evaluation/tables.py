"""What an evaluation says: statistics by group, tables on the screen, result.json and CSV files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from matchtir.evaluation.benchmark import Benchmark, BenchmarkResult
from matchtir.evaluation.statistics import (
    Estimate,
    Statistic,
    Values,
    by_task,
    difference,
    estimate,
    resample_weights,
)
from matchtir.evaluation.traces import Record
from matchtir.tasks.rows import read_jsonl
from matchtir.utils.run_folder import CONFIG_FILE, RESULT_FILE, nan_to_null, replace_text, write_csv

log = logging.getLogger(__name__)

ALL = "all"  # the group of all tasks
_CELL = len("0.00-1.00")  # characters of an interval
_WIDTH = 160  # of the tables in a file or a pipe, where it would be 80
# The paper's Table 1: the columns of each benchmark. "Avg" is the mean of the benchmarks, each the
# mean of its columns.
TABLE_1 = {"ftrl": ("Solve-P", "Solve-R", "Solve-F1"), "bfcl": ("BFCL",), "toolhop": ("mandatory",)}

ColumnKey = tuple[str, str]  # benchmark and heading of a column
AVERAGE: ColumnKey = ("", "Avg")
NOTHING = Estimate(np.nan, np.nan, np.nan)
Results = Sequence[tuple[Benchmark, BenchmarkResult]]


def _values(records: Sequence[Record], passed: str) -> dict[str, Values]:
    """The values of each task, in the order of the attempts."""
    return by_task(((record["task"], record["values"]) for record in records), passed)


def summarise(
    records: Sequence[Record], statistics: Mapping[str, Statistic], passed: str = "success"
) -> dict[str, Any]:
    """Every statistic with its 95 % interval, of all tasks and of each group of each kind.

    Returns:
        `groups`: kind -> group -> {"tasks": count, statistic: {"mean", "low", "high"}}, the kind
        "all" first; `stop_reasons` and `calls`: how episodes and calls ended, with counts.
    """
    members: dict[str, dict[str, list[Values]]] = {ALL: {ALL: []}}
    groups_of = {record["task"]: record["groups"] for record in records}
    for task, values in _values(records, passed).items():
        for kind, group in {ALL: ALL, **groups_of[task]}.items():
            members.setdefault(kind, {}).setdefault(group, []).append(values)
    calls = (call for record in records for turn in record["turns"] for call in turn["calls"])
    return {
        "groups": {
            kind: {
                group: {"tasks": len(tasks)}
                | {name: asdict(each) for name, each in _estimates(tasks, statistics).items()}
                for group, tasks in sorted(groups.items())
            }
            for kind, groups in members.items()
        },
        "stop_reasons": dict(Counter(record["stop_reason"] for record in records)),
        "calls": dict(Counter(map(_ending, calls))),
    }


def _estimates(tasks: Sequence[Values], statistics: Mapping[str, Statistic]) -> dict[str, Estimate]:
    weights = resample_weights(len(tasks))
    return {name: estimate(each, tasks, weights) for name, each in statistics.items()}


def _ending(call: Mapping[str, Any]) -> str:
    """How a traced call ended: what the parser refused it for, else how its execution ended."""
    if call["status"] != "ok":
        return call["status"]
    if call["result_status"] == "ok" and not call["succeeded"]:
        return "reports_error"
    return call["result_status"] or "no_result"


def compare(
    before: Sequence[Record],
    after: Sequence[Record],
    statistics: Mapping[str, Statistic],
    passed: str = "success",
) -> tuple[int, dict[str, Estimate]]:
    """On how many tasks two policies can be compared, and the difference of each statistic.

    Those are the tasks that both attempted. Where there are none, there are no differences.
    """
    earlier, later = _values(before, passed), _values(after, passed)
    both = [task for task in later if task in earlier]
    first, second = ([tasks[task] for task in both] for tasks in (earlier, later))
    compared = statistics.items() if both else ()
    weights = resample_weights(len(both))
    return len(both), {name: difference(s, first, second, weights) for name, s in compared}


# -- tables ----------------------------------------------------------------------------------------


def group_table(summary: Mapping[str, Any], names: Sequence[str], title: str) -> Table:
    """Some statistics of one benchmark, a row for each group."""
    table = Table(title=title, caption="95 % bootstrap intervals over tasks below the numbers")
    table.add_column("", no_wrap=True)
    table.add_column("tasks", justify="right")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", min_width=_CELL)
    groups = summary["groups"]
    for kind in sorted(groups, key=lambda kind: kind == ALL):  # all tasks last
        for group, numbers in groups[kind].items():
            cells = [_cell(**numbers[name]) for name in names]
            table.add_row(escape(group), str(numbers["tasks"]), *cells)
        table.add_section()
    return table


def _cell(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    text = _digits(mean, 3)
    return text if low == high else f"{text}\n[dim]{_digits(low, 2)}-{_digits(high, 2)}[/dim]"


def _digits(number: float, decimals: int) -> str:
    """Fewer decimals for larger numbers."""
    return f"{number:.{decimals if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"


def endings_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """How episodes and calls ended, a column for each benchmark."""
    table = _table("", summaries, "how episodes and calls ended")
    for kind, what in (("stop_reasons", "episodes"), ("calls", "calls")):
        total: Counter[str] = sum((Counter(s[kind]) for s in summaries.values()), Counter())
        for ending, _ in total.most_common():
            counts = [f"{summary[kind].get(ending, 0):,}" for summary in summaries.values()]
            table.add_row(f"{what}: {ending}", *counts)
        table.add_section()
    return table


def _table(first: str, headings: Iterable[str], title: str) -> Table:
    """An empty table with numbers in all columns but the first."""
    return Table(first, *[Column(heading, justify="right") for heading in headings], title=title)


@dataclass(frozen=True, slots=True)
class Row:
    """The numbers of one policy, or the differences to another, by benchmark and heading."""

    label: str
    numbers: Mapping[ColumnKey, Estimate]
    is_difference: bool = False

    def missing(self) -> list[ColumnKey]:
        """The columns of Table 1 that have no number."""
        columns = [(name, heading) for name, headings in TABLE_1.items() for heading in headings]
        return [each for each in columns if np.isnan(self.numbers.get(each, NOTHING).mean)]

    def with_average(self) -> Mapping[ColumnKey, Estimate]:
        """The numbers, and where they have any of Table 1 their average, NaN if one is missing."""
        if not any(name in TABLE_1 for name, _ in self.numbers):
            return self.numbers
        means = [
            np.mean([self.numbers.get((name, heading), NOTHING).mean for heading in headings])
            for name, headings in TABLE_1.items()
        ]
        return {**self.numbers, AVERAGE: replace(NOTHING, mean=float(np.mean(means)))}


def columns_of(rows: Sequence[Row]) -> list[ColumnKey]:
    """All columns of the rows: those of Table 1 in its order, their average, then the others."""
    found = dict.fromkeys(column for row in rows for column in row.with_average())
    order = [*TABLE_1, AVERAGE[0]]
    return sorted(found, key=lambda c: order.index(c[0]) if c[0] in order else len(order))


def overview(rows: Sequence[Row]) -> Table:
    """The table, in percent; below each number its interval."""
    columns = columns_of(rows)
    title = "in %, with 95 % bootstrap intervals over tasks"
    table = _table("policy", map("\n".join, columns), title)
    for row in rows:
        numbers = row.with_average()
        cells = [_percent(numbers.get(column, NOTHING), row.is_difference) for column in columns]
        table.add_row(escape(row.label), *cells, end_section=row.is_difference)
    if AVERAGE in columns:
        table.caption = "Avg: of FTRL (mean of Solve-P, -R and -F1), BFCL and ToolHop"
        if missing := dict.fromkeys(column for row in rows for column in row.missing()):
            table.caption += f"; blank without {', '.join(map(' '.join, missing))}"
    return table


def _percent(number: Estimate, is_difference: bool) -> str:
    mean, low, high = (100 * value for value in astuple(number))
    if np.isnan(mean):
        return "-"
    if not is_difference:
        return f"{mean:.2f}" + (f"\n[dim]{low:.1f}-{high:.1f}[/dim]" if low < high else "")
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    interval = f"\n[dim]{low:+.1f} to {high:+.1f}[/dim]" if low < high else ""
    return f"[{colour}]{mean:+.2f}[/]{interval}"


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for a CSV file: percentages, with the bounds of each interval."""
    result = []
    for row in rows:
        numbers = row.with_average()
        flat: dict[str, Any] = {"policy": row.label}
        for column in columns_of(rows):
            name = " ".join(column).strip()
            for bound, value in asdict(numbers.get(column, NOTHING)).items():
                if bound == "mean" or column != AVERAGE:
                    flat[name if bound == "mean" else f"{name} {bound}"] = round(100 * value, 4)
        result.append(nan_to_null(flat))
    return result


# -- the report ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PastEvaluation:
    """An evaluation that is on file."""

    folder: str
    label: str
    records: Mapping[str, Sequence[Record]]  # by benchmark

    @classmethod
    def load(cls, folder: str | Path) -> PastEvaluation:
        """The evaluation in a folder.

        Raises:
            FileNotFoundError: there is none.
        """
        config = Path(folder, CONFIG_FILE)
        files = sorted(Path(folder, "traces").glob("*.jsonl"))
        if not config.is_file() or not files:
            raise FileNotFoundError(f"against: {folder} has no evaluation ({CONFIG_FILE}, traces/)")
        settings = OmegaConf.load(config)
        label = OmegaConf.select(settings, "label") or OmegaConf.select(settings, "policy")
        return cls(str(folder), str(label), {file.stem: read_jsonl(file) for file in files})


def report(
    folder: Path,
    label: str,
    played: Results,
    earlier: Sequence[PastEvaluation],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the files, print the tables; returns what `result.json` holds.

    Args:
        label: the policy's name in the tables.
        earlier: evaluations that it is compared with, each on the tasks that both attempted.
        facts: more about the evaluation, for `result.json`.
    """
    summaries = {
        b.name: summarise(outcome.records, b.statistics, b.passed) for b, outcome in played
    }
    ours = {b.name: outcome.records for b, outcome in played}
    compared = [_compared(other, played) for other in earlier]
    rows = [_row(other.label, other.records, played) for other in earlier]
    rows += [_row(label, ours, played), *(row for row, _ in compared)]
    differences = {o.folder: details for o, (_, details) in zip(earlier, compared, strict=True)}
    benchmarks = {
        b.name: {
            "tasks": _tasks(outcome),
            "attempts": len(outcome.records),
            "seconds": round(outcome.seconds, 3),
            "notes": list(outcome.notes),
            **summaries[b.name],
        }
        for b, outcome in played
    }
    table = table_rows(rows)
    result = nan_to_null(
        {**facts, "benchmarks": benchmarks, "table": table, "differences": differences}
    )
    write_csv(folder / "table.csv", list(table[0]), (flat.values() for flat in table))
    replace_text(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")  # it is finished
    _show(folder, label, played, summaries, rows)
    return result


def overall(result: Mapping[str, Any]) -> dict[str, float]:
    """`<benchmark>/<statistic>` over all tasks, of what `report` returned."""
    return {
        f"{benchmark}/{name}": number["mean"]
        for benchmark, summary in result["benchmarks"].items()
        for name, number in summary["groups"][ALL][ALL].items()
        if name != "tasks" and number["mean"] is not None
    }


def _row(label: str, records: Mapping[str, Sequence[Record]], played: Results) -> Row:
    """The numbers of a policy on the benchmarks that it has records of."""
    numbers: dict[ColumnKey, Estimate] = {}
    for b, _ in played:
        if b.name in records:
            tasks = list(_values(records[b.name], b.passed).values())
            wanted = {name: b.statistics[name] for name in b.columns.values()}
            numbers |= _placed(b, _estimates(tasks, wanted))
    return Row(label, numbers)


def _placed(benchmark: Benchmark, found: Mapping[str, Estimate]) -> dict[ColumnKey, Estimate]:
    """The numbers that are in columns of the table."""
    return {(benchmark.name, heading): found[name] for heading, name in benchmark.columns.items()}


def _compared(other: PastEvaluation, played: Results) -> tuple[Row, dict[str, Any]]:
    """The row of differences to an earlier evaluation, and all of them for `result.json`."""
    numbers: dict[ColumnKey, Estimate] = {}
    details: dict[str, Any] = {}
    for b, outcome in played:
        first, last = other.records.get(b.name, ()), outcome.records
        tasks, gains = compare(first, last, b.statistics, b.passed)
        details[b.name] = {"tasks": tasks, **{name: asdict(gain) for name, gain in gains.items()}}
        numbers |= _placed(b, gains) if gains else {}
        if tasks < _tasks(outcome):
            counts = f"on {tasks} of {_tasks(outcome)} tasks, those that both attempted"
            log.warning("%s: compared with %s %s", b.name, other.label, counts)
    return Row(f"gain over {other.label}", numbers, is_difference=True), details


def _show(
    folder: Path,
    label: str,
    played: Results,
    summaries: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
) -> None:
    console = Console()
    console.width = max(console.width, _WIDTH)
    for b, outcome in played:
        each = len(outcome.records) // max(1, _tasks(outcome))
        title = f"{b.name}, policy {label}" + (f", means of {each} attempts" if each > 1 else "")
        table = group_table(summaries[b.name], b.details, title)
        whole = console.measure(table, options=console.options.update(width=1_000)).maximum
        console.print(table, width=max(console.width, whole), crop=False)
        for note in outcome.notes:
            console.print(f"{b.name}: {note}", soft_wrap=True)
    console.print(endings_table(summaries))
    console.print(overview(rows))
    seconds = sum(outcome.seconds for _, outcome in played)
    tasks = sum(_tasks(outcome) for _, outcome in played)
    console.print(f"{tasks} tasks in {seconds:.1f} s: {folder}", soft_wrap=True)


def _tasks(outcome: BenchmarkResult) -> int:
    return len({record["task"] for record in outcome.records})
