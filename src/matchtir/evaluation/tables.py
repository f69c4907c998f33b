"""What an evaluation says: statistics by group, tables on the screen, result.json and CSV files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from matchtir.evaluation.benchmark import Benchmark, Outcome
from matchtir.evaluation.statistics import (
    Gain,
    Statistic,
    difference,
    estimate,
    of_attempts,
    resample_weights,
)
from matchtir.evaluation.traces import Record
from matchtir.tasks.rows import read_jsonl
from matchtir.utils.run_folder import CONFIG_FILE, RESULT_FILE, finite, write_csv

log = logging.getLogger(__name__)

ALL = "all"  # the group of all tasks
_CELL = len("0.00-1.00")  # characters of an interval
_WIDTH = 160  # of the tables in a file or a pipe, where it would be 80
BOUNDS = ("mean", "low", "high")
# The paper's Table 1: the columns of each benchmark. "Avg" is the mean of the benchmarks, each the
# mean of its columns.
TABLE_1 = {"ftrl": ("Solve-P", "Solve-R", "Solve-F1"), "bfcl": ("BFCL",), "toolhop": ("mandatory",)}

Column = tuple[str, str]  # benchmark, heading
AVERAGE: Column = ("", "Avg")
Played = Sequence[tuple[Benchmark, Outcome]]


def by_task(records: Sequence[Record], passed: str) -> list[Record]:
    """Of each task, in the order of the attempts: its id, its groups, and `of_attempts`."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["task"], []).append(record)
    return [
        {
            "task": task,
            "groups": each[0]["groups"],
            "values": of_attempts([record["values"] for record in each], passed),
        }
        for task, each in found.items()
    ]


def summarise(
    records: Sequence[Record], statistics: Mapping[str, Statistic], passed: str = "success"
) -> dict[str, Any]:
    """Every statistic with its 95 % interval, of all tasks and of each group of each kind.

    Returns:
        `groups`: kind -> group -> {"tasks": count, statistic: {"mean", "low", "high"}}, the kind
        "all" first; `stop_reasons` and `calls`: how episodes and calls ended, with counts.
    """
    tasks = by_task(records, passed)
    members: dict[str, dict[str, list[Record]]] = {ALL: {ALL: tasks}}
    for record in tasks:
        for kind, group in record["groups"].items():
            members.setdefault(kind, {}).setdefault(group, []).append(record)
    return {
        "groups": {
            kind: {
                group: {
                    "tasks": len(found),
                    **{n: asdict(each) for n, each in _estimates(found, statistics).items()},
                }
                for group, found in sorted(groups.items())
            }
            for kind, groups in members.items()
        },
        "stop_reasons": dict(Counter(record["stop_reason"] for record in records)),
        "calls": dict(Counter(call_ending(call) for record in records for call in _calls(record))),
    }


def _estimates(tasks: Sequence[Record], statistics: Mapping[str, Statistic]) -> dict[str, Gain]:
    values = [task["values"] for task in tasks]
    weights = resample_weights(len(tasks))
    return {name: estimate(each, values, weights) for name, each in statistics.items()}


def _calls(record: Record) -> Iterator[Mapping[str, Any]]:
    return (call for turn in record["turns"] for call in turn["calls"])


def call_ending(call: Mapping[str, Any]) -> str:
    """How a traced call ended: what the parser refused it for, else how its execution ended."""
    if call["status"] != "ok":
        return call["status"]
    if call["result_status"] is None:
        return "no_result"
    reports_error = call["result_status"] == "ok" and not call["succeeded"]
    return "reports_error" if reports_error else call["result_status"]


def compare(
    before: Sequence[Record],
    after: Sequence[Record],
    statistics: Mapping[str, Statistic],
    passed: str = "success",
) -> tuple[int, dict[str, Gain]]:
    """On how many tasks two policies can be compared, and the difference of each statistic.

    Those are the tasks that both attempted. Where there are none, there are no differences.
    """
    earlier = {task["task"]: task["values"] for task in by_task(before, passed)}
    tasks = by_task(after, passed)
    pairs = [(earlier[t["task"]], t["values"]) for t in tasks if t["task"] in earlier]
    if not pairs:
        return 0, {}
    first, second = zip(*pairs, strict=True)
    weights = resample_weights(len(pairs))
    return len(pairs), {n: difference(s, first, second, weights) for n, s in statistics.items()}


# -- tables ----------------------------------------------------------------------------------------


def group_table(summary: Mapping[str, Any], names: Sequence[str], title: str) -> Table:
    """Some statistics of one benchmark, a row for each group."""
    groups = summary["groups"]
    result = Table(title=title, caption="95 % bootstrap intervals over tasks below the numbers")
    result.add_column("", no_wrap=True)
    result.add_column("tasks", justify="right")
    for name in names:
        result.add_column(name.replace("_", " "), justify="right", min_width=_CELL)
    for kind in [*[kind for kind in groups if kind != ALL], ALL]:
        for group, numbers in groups[kind].items():
            cells = [_cell(**numbers[name]) for name in names]
            result.add_row(group, str(numbers["tasks"]), *cells)
        result.add_section()
    return result


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
    table = Table("", *summaries, title="how episodes and calls ended")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, what in (("stop_reasons", "episodes"), ("calls", "calls")):
        total: Counter[str] = sum((Counter(s[kind]) for s in summaries.values()), Counter())
        for ending, _ in total.most_common():
            counts = [f"{summary[kind].get(ending, 0):,}" for summary in summaries.values()]
            table.add_row(f"{what}: {ending}", *counts)
        table.add_section()
    return table


@dataclass(frozen=True, slots=True)
class Row:
    """The numbers of one policy, or the differences to another."""

    label: str
    numbers: Mapping[Column, Gain]
    is_difference: bool = False

    def missing(self) -> list[Column]:
        """The columns of Table 1 that have no number."""
        columns = [(name, heading) for name, headings in TABLE_1.items() for heading in headings]
        known = {column for column, number in self.numbers.items() if not np.isnan(number.mean)}
        return [column for column in columns if column not in known]

    def with_average(self) -> Mapping[Column, Gain]:
        """The numbers, and where they have any of Table 1 their average, NaN if one is missing."""
        if not any(name in TABLE_1 for name, _ in self.numbers):
            return self.numbers
        means = (
            []
            if self.missing()
            else [
                np.mean([self.numbers[name, heading].mean for heading in headings])
                for name, headings in TABLE_1.items()
            ]
        )
        mean = float(np.mean(means)) if means else np.nan
        return {**self.numbers, AVERAGE: Gain(mean, np.nan, np.nan)}


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """All columns of the rows: those of Table 1 in its order, their average, then the others."""
    found = dict.fromkeys(column for row in rows for column in row.with_average())
    order = [*TABLE_1, AVERAGE[0]]
    return sorted(found, key=lambda c: order.index(c[0]) if c[0] in order else len(order))


def overview(rows: Sequence[Row]) -> Table:
    """The table, in percent; below each number its interval."""
    columns = columns_of(rows)
    title = "in %, with 95 % bootstrap intervals over tasks"
    table = Table("policy", *[f"{name}\n{heading}" for name, heading in columns], title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        numbers = row.with_average()
        cells = [_percent(numbers.get(column), row.is_difference) for column in columns]
        table.add_row(row.label, *cells, end_section=row.is_difference)
    if AVERAGE in columns:
        table.caption = "Avg: of FTRL (mean of Solve-P, -R and -F1), BFCL and ToolHop"
        if missing := dict.fromkeys(column for row in rows for column in row.missing()):
            table.caption += f"; blank without {', '.join(map(' '.join, missing))}"
    return table


def _percent(number: Gain | None, is_difference: bool) -> str:
    if number is None or np.isnan(number.mean):
        return "-"
    mean, low, high = (100 * value for value in (number.mean, number.low, number.high))
    has_interval = low < high
    if not is_difference:
        return f"{mean:.2f}" + (f"\n[dim]{low:.1f}-{high:.1f}[/dim]" if has_interval else "")
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    interval = f"\n[dim]{low:+.1f} to {high:+.1f}[/dim]" if has_interval else ""
    return f"[{colour}]{mean:+.2f}[/]{interval}"


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for a CSV file: percentages, with the bounds of each interval."""
    result = []
    for row in rows:
        numbers = row.with_average()
        flat: dict[str, Any] = {"policy": row.label}
        for column in columns_of(rows):
            name, number = " ".join(column).strip(), numbers.get(column)
            for bound in BOUNDS if column != AVERAGE else BOUNDS[:1]:
                key = name if bound == "mean" else f"{name} {bound}"
                flat[key] = None if number is None else round(100 * getattr(number, bound), 4)
        result.append(finite(flat))
    return result


# -- the report ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Earlier:
    """An evaluation that is on file."""

    folder: str
    label: str
    records: Mapping[str, Sequence[Record]]  # by benchmark

    @classmethod
    def load(cls, folder: str | Path) -> Earlier:
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
    folder: Path, label: str, played: Played, earlier: Sequence[Earlier], facts: Mapping[str, Any]
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
    rows = [_row(other.label, other.records, played) for other in earlier]
    rows.append(_row(label, {b.name: outcome.records for b, outcome in played}, played))
    differences = {}
    for other in earlier:
        row, differences[other.folder] = _difference(other, played)
        rows.append(row)
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
    result = finite({**facts, "benchmarks": benchmarks, "table": table, "differences": differences})
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_csv(folder / "table.csv", list(table[0]), (flat.values() for flat in table))
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


def _row(label: str, records: Mapping[str, Sequence[Record]], played: Played) -> Row:
    """The numbers of a policy on the benchmarks that it has records of."""
    numbers: dict[Column, Gain] = {}
    for b, _ in played:
        if b.name in records:
            wanted = {name: b.statistics[name] for name in b.columns.values()}
            found = _estimates(by_task(records[b.name], b.passed), wanted)
            numbers |= {(b.name, heading): found[name] for heading, name in b.columns.items()}
    return Row(label, numbers)


def _difference(other: Earlier, played: Played) -> tuple[Row, dict[str, Any]]:
    """The row of differences to an earlier evaluation, and all of them for `result.json`."""
    numbers: dict[Column, Gain] = {}
    details: dict[str, Any] = {}
    for b, outcome in played:
        first, last = other.records.get(b.name, ()), outcome.records
        tasks, gains = compare(first, last, b.statistics, b.passed)
        details[b.name] = {"tasks": tasks, **{name: asdict(gain) for name, gain in gains.items()}}
        if gains:
            numbers |= {(b.name, heading): gains[name] for heading, name in b.columns.items()}
        if tasks < _tasks(outcome):
            counts = f"on {tasks} of {_tasks(outcome)} tasks, those that both attempted"
            log.warning("%s: compared with %s %s", b.name, other.label, counts)
    return Row(f"gain over {other.label}", numbers, is_difference=True), details


def _show(
    folder: Path,
    label: str,
    played: Played,
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


def _tasks(outcome: Outcome) -> int:
    return len({record["task"] for record in outcome.records})
