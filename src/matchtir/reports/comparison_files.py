"""A comparison of runs as a page, as CSV files, and as a table for the terminal."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from matchtir.reports.page import write_page
from matchtir.reports.run_comparison import (
    Method,
    cost,
    curve,
    final_scores,
    methods,
    setting_differences,
)
from matchtir.reports.run_data import RunData

HEADINGS = {
    "solve_p": "Solve-P",
    "solve_r": "Solve-R",
    "solve_f1": "Solve-F1",
    "solve_avg": "Avg",
    "answer_f1": "Answer F1",
    "answered": "Answered",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the page and the CSV files say."""

    methods: Sequence[Method]
    baseline: str
    curves: dict[str, dict[str, Any]]  # of each metric, by method
    final: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    cost: list[dict[str, Any]]


def compare_runs(runs: Sequence[RunData], baseline: str | None = None) -> Comparison:
    """Compare runs by method.

    Args:
        runs: at least one.
        baseline: label of the method that the others are subtracted from; the first by default.

    Raises:
        ValueError: no method has that label.
    """
    found = methods(runs)
    labels = [method.label for method in found]
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline={baseline!r} is not one of: {'; '.join(labels)}")
    base = found[labels.index(baseline) if baseline else 0]
    metrics = list(dict.fromkeys(name for run in runs for name in run.curves))
    curves: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        drawn = {method.label: curve(method, metric) for method in found}
        curves[metric] = {label: points for label, points in drawn.items() if points}
    finished = [method for method in found if method.finished]
    return Comparison(
        found,
        base.label,
        {metric: drawn for metric, drawn in curves.items() if drawn},
        final_scores(finished, base),
        setting_differences(found),
        [cost(method) for method in found],
    )


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write the page `out`, and beside it `<stem>_{curves,final,settings,cost}.csv`."""
    data = {
        "title": "/".join(out.resolve().parent.parts[-3:]),
        "methods": [
            {
                "label": method.label,
                "runs": [{"name": r.name, "finished": r.after is not None} for r in method.runs],
            }
            for method in comparison.methods
        ],
        "baseline": comparison.baseline,
        "headings": HEADINGS,
        "curves": comparison.curves,
        "final": comparison.final,
        "settings": comparison.settings,
        "cost": comparison.cost,
    }
    write_page(
        out,
        f"Comparison: {data['title']}",
        ("base.css", "compare.css"),
        ("base.js", "compare_charts.js", "compare_main.js"),
        {"comparison": gzip.compress(json.dumps(data).encode("utf-8"), mtime=0)},
    )
    tables = {
        "curves": _curve_rows(comparison),
        "final": _final_rows(comparison),
        "settings": _setting_rows(comparison),
        "cost": iter([list(comparison.cost[0]), *(list(row.values()) for row in comparison.cost)]),
    }
    written = [out]
    for name, rows in tables.items():
        written.append(out.with_name(f"{out.stem}_{name}.csv"))
        with written[-1].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    return written


def _curve_rows(comparison: Comparison) -> Iterable[list[Any]]:
    yield ["metric", "method", "step", "mean", "low", "high", "seeds"]
    for metric, drawn in comparison.curves.items():
        for label, points in drawn.items():
            for index, step in enumerate(points["steps"]):
                count = sum(each[index] is not None for each in points["seeds"])
                row = [points[name][index] for name in ("mean", "low", "high")]
                yield [metric, label, step, *row, count]


def _final_rows(comparison: Comparison) -> Iterable[list[Any]]:
    differences = [
        f"{kind}_{end}" for kind in ("gain", "difference") for end in ("mean", "low", "high")
    ]
    yield ["method", "seeds", "tasks", "measure", "before", "after", *differences]
    for row in comparison.final:
        seeds = " ".join(map(str, row["seeds"]))
        for measure, score in row["scores"].items():
            pairs = [score["gain"] or {}, score["difference"] or {}]
            ends = [pair.get(end) for pair in pairs for end in ("mean", "low", "high")]
            yield [
                row["method"],
                seeds,
                row["tasks"],
                measure,
                score["before"],
                score["mean"],
                *ends,
            ]


def _setting_rows(comparison: Comparison) -> Iterable[list[Any]]:
    yield ["key", *(method.label for method in comparison.methods)]
    for row in comparison.settings:
        yield [row["key"], *row["values"]]


def final_table(comparison: Comparison) -> Table:
    """The final scores in the paper's layout, with gains over training and their intervals."""
    table = Table(title="test scores; gain over training; its 95 % interval over tasks")
    longest = max(len(row["method"]) for row in comparison.final)
    table.add_column("method", min_width=min(longest, 36), max_width=36, overflow="fold")
    table.add_column("seeds", no_wrap=True)
    shown = [m for m in HEADINGS if any(m in row["scores"] for row in comparison.final)]
    for measure in shown:
        table.add_column(HEADINGS[measure], justify="right", no_wrap=True)
    for row in comparison.final:
        cells = []
        for measure in shown:
            score = row["scores"].get(measure)
            cells.append(
                "-" if score is None else f"{score['mean']:.3f}\n[dim]{_gain(score['gain'])}"
            )
        table.add_row(row["method"], " ".join(map(str, row["seeds"])), *cells)
    return table


def _gain(gain: dict[str, float] | None) -> str:
    return (
        "" if gain is None else f"{gain['mean']:+.3f}\n\\[{gain['low']:+.2f}, {gain['high']:+.2f}]"
    )


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all these folders; the folder itself where it is the only one."""
    folder = Path(os.path.commonpath([path.absolute() for path in paths]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def publish(runs: Sequence[RunData], baseline: str | None, out: Path) -> None:
    """Compare, write everything, and print the final scores and the files."""
    comparison = compare_runs(runs, baseline)
    written = write_comparison(comparison, out)
    console = Console()
    console.width = max(console.width, 140)
    if comparison.final:
        console.print(final_table(comparison))
    for file in written:
        console.print(str(file), soft_wrap=True)
