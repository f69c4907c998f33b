"""What an evaluation leaves: result.json, scores.csv, table.csv, and the tables on the screen."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from matchtir.evaluation.attempts import Record
from matchtir.evaluation.benchmark import Benchmark, Outcome
from matchtir.evaluation.intervals import Gain
from matchtir.evaluation.report import (
    ALL,
    compare,
    group_table,
    missing_modules,
    score_rows,
    summarise,
)
from matchtir.evaluation.table import Row, overview, table_rows
from matchtir.reports.summary import finite
from matchtir.tasks.rows import read_jsonl
from matchtir.utils.run_files import CONFIG_FILE, RESULT_FILE

log = logging.getLogger(__name__)

_WIDTH = 160  # of the tables in a file or a pipe, where it would be 80


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


Played = Sequence[tuple[Benchmark, Outcome]]


def report(
    folder: Path, label: str, played: Played, earlier: Sequence[Earlier], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files, print the tables; returns what `result.json` holds.

    Args:
        label: the policy's name in the tables.
        earlier: evaluations that it is compared with, each on the tasks that both attempted.
        facts: more about the evaluation, for `result.json`.
    """
    summaries = {b.name: summarise(outcome.records, b.statistics) for b, outcome in played}
    rows = [_earlier_row(other, played) for other in earlier]
    rows.append(Row(label, _numbers(played, summaries)))
    differences = {}
    for other in earlier:
        row, differences[other.folder] = _difference(other, played)
        rows.append(row)
    benchmarks = {
        b.name: {
            "tasks": len(outcome.records),
            "seconds": round(outcome.seconds, 3),
            "notes": list(outcome.notes),
            **summaries[b.name],
        }
        for b, outcome in played
    }
    table = table_rows(rows)
    result = finite({**facts, "benchmarks": benchmarks, "table": table, "differences": differences})
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_csv(folder / "table.csv", table)
    scores = [row for name, summary in summaries.items() for row in score_rows(name, summary)]
    write_csv(folder / "scores.csv", scores)
    _show(folder, label, played, summaries, rows)
    return result


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys; None is a blank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _numbers(
    played: Played, summaries: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], Gain]:
    return {
        (b.name, heading): Gain(**summaries[b.name]["groups"][ALL][ALL][statistic])
        for b, _ in played
        for heading, statistic in b.columns.items()
    }


def _earlier_row(other: Earlier, played: Played) -> Row:
    found = [(b, o) for b, o in played if b.name in other.records]
    summaries = {b.name: summarise(other.records[b.name], b.statistics) for b, _ in found}
    return Row(other.label, _numbers(found, summaries))


def _difference(other: Earlier, played: Played) -> tuple[Row, dict[str, Any]]:
    """The row of differences to an earlier evaluation, and all of them for `result.json`."""
    numbers: dict[tuple[str, str], Gain] = {}
    details: dict[str, Any] = {}
    for b, outcome in played:
        tasks, gains = compare(other.records.get(b.name, ()), outcome.records, b.statistics)
        details[b.name] = {"tasks": tasks, **{name: asdict(gain) for name, gain in gains.items()}}
        if gains:
            numbers |= {(b.name, heading): gains[name] for heading, name in b.columns.items()}
        if tasks < len(outcome.records):
            log.warning(
                "%s: compared with %s on %d of %d tasks, those that both attempted",
                b.name,
                other.label,
                tasks,
                len(outcome.records),
            )
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
        console.print(group_table(summaries[b.name], b.details, f"{b.name}, policy {label}"))
        for note in outcome.notes:
            console.print(f"{b.name}: {note}", soft_wrap=True)
        for module in sorted(missing_modules(outcome.records)):
            log.warning("%s: tools want the Python module %s: install it, repeat", b.name, module)
    console.print(overview(rows))
    seconds = sum(outcome.seconds for _, outcome in played)
    tasks = sum(len(outcome.records) for _, outcome in played)
    console.print(f"{tasks} tasks in {seconds:.1f} s: {folder}", soft_wrap=True)
