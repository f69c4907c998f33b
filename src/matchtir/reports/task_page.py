"""A task set as tables for the terminal, and as a page with plots that is one file."""

from __future__ import annotations

import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import RenderableType
from rich.table import Table

from matchtir.reports.page import write_page
from matchtir.reports.task_statistics import GoldReplay, Pair, Profile

MOST_ROWS = 40  # of a table whose length has no bound; the rest is counted


@dataclass(frozen=True, slots=True)
class Section:
    """A table: the first column is text, the others are numbers or short texts.

    Without rows only the note is shown, and without a note nothing.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def table(self) -> RenderableType:
        """For the terminal."""
        if not self.rows:
            return f"{self.title}: {self.note}"
        table = Table(title=self.title, caption=self.note or None, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*[cell.replace("[", r"\[") for cell in row])
        return table

    def html(self) -> str:
        """For the page."""
        note = f'<p class="muted">{html.escape(self.note)}</p>' if self.note else ""
        if not self.rows:
            return f"<section><h2>{html.escape(self.title)}</h2>{note}</section>"
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in self.rows
        )
        table = f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        return f"<section><h2>{html.escape(self.title)}</h2>{table}{note}</section>"


def profile_section(profiles: Sequence[Profile]) -> Section:
    """Means by split and scenario."""
    measures = list(profiles[0].values) if profiles else []
    rows = [
        [
            f"{profile.split}: {profile.scenario or 'all'}",
            f"{profile.tasks:,}",
            *(_number(profile.mean(measure)) for measure in measures),
        ]
        for profile in profiles
    ]
    return Section("Tasks (means)", ["split: scenario", "tasks", *measures], rows)


def counts_section(title: str, what: str, counts: Mapping[str, Mapping[str, int]]) -> Section:
    """A column for each split, a row for each kind, the most frequent first."""
    totals: Counter[str] = sum(map(Counter, counts.values()), Counter())
    rows = [
        [kind, *(f"{column.get(kind, 0):,}" for column in counts.values())]
        for kind, _ in totals.most_common()
    ]
    return Section(title, [what, *counts], rows)


def tools_section(use: Sequence[tuple[str, int, int]]) -> Section:
    """The most called tools."""
    rows = [[name, f"{offered:,}", f"{called:,}"] for name, offered, called in use[:MOST_ROWS]]
    unused = sum(1 for _, _, called in use if not called)
    left_out = f"; {len(use) - MOST_ROWS:,} are not shown" if len(use) > MOST_ROWS else ""
    note = f"{len(use):,} tools, {unused:,} of them in no gold call{left_out}"
    return Section("Tools", ["tool", "offered in tasks", "gold calls"], rows, note)


def pairs_section(pairs: Sequence[Pair]) -> Section:
    """Tasks that are there twice, those in two splits first."""
    ordered = sorted(pairs, key=lambda pair: not pair.is_leak)
    rows = [
        [
            f"{'/'.join(pair.first)} = {'/'.join(pair.second)}",
            "LEAK" if pair.is_leak else "twice",
            f"same {pair.kind}" if pair.kind != "near" else "nearly the same question",
            f"{pair.overlap:.2f}",
        ]
        for pair in ordered[:MOST_ROWS]
    ]
    leaks = sum(pair.is_leak for pair in pairs)
    note = f"{len(pairs):,} pairs, {leaks:,} of them in two splits" if pairs else "none found"
    return Section("Duplicates and leaks", ["tasks", "", "how", "overlap"], rows, note)


def shared_section(rows: Sequence[tuple[str, str, float, int]]) -> Section:
    """What held-out tasks share with training tasks."""
    cells = [
        [f"{split}: {what}", f"{share:.0%}", f"{count:,}"] for split, what, share, count in rows
    ]
    columns = ["held-out tasks that share with training", "share", "of tasks"]
    return Section("Shared with training", columns, cells)


def replay_section(replays: Mapping[str, GoldReplay]) -> Section:
    """What came of the gold calls, by split."""
    rows = []
    for split, replay in replays.items():
        if not replay.tasks:
            continue  # of a test set without gold calls
        statuses = ", ".join(f"{count:,} {name}" for name, count in replay.statuses.most_common())
        cells = [_part(part) for part in (replay.solved, replay.answered, replay.reached)]
        problems = f"{len(replay.problems):,}"
        rows.append([split, f"{replay.tasks:,}", statuses, *cells, problems])
    columns = ["split", "tasks", "calls", "gold outputs", "answer in outputs", "gold states"]
    return Section("Gold replay", [*columns, "tasks with a problem"], rows)


def problems_section(replays: Mapping[str, GoldReplay]) -> Section:
    """The tasks whose gold calls do not do what they should."""
    rows = [
        [f"{split}/{task}", problem[:160]]
        for split, replay in replays.items()
        for task, problem in replay.problems
    ]
    note = f"{len(rows) - MOST_ROWS:,} more" if len(rows) > MOST_ROWS else ""
    return Section("Problems of the gold calls", ["task", "first problem"], rows[:MOST_ROWS], note)


def write_task_page(
    path: Path, title: str, sections: Sequence[Section], profiles: Sequence[Profile]
) -> None:
    """Write the page; it opens from disk and loads nothing."""
    tables = "".join(section.html() for section in sections if section.rows or section.note)
    body = f"<main><h1>{html.escape(title)}</h1>{_histograms(profiles)}{tables}</main>"
    write_page(path, title, ("base.css", "tasks.css"), ("base.js",), {}, body)


def _histograms(profiles: Sequence[Profile]) -> str:
    """A plot per measure, a colour per split: the share of its tasks by value, as SVG."""
    splits = [profile for profile in profiles if not profile.scenario]
    measures = list(splits[0].values) if splits else []
    plots = [_histogram(measure, splits) for measure in measures]
    return f'<section class="plots">{"".join(plots)}</section>'


def _histogram(measure: str, splits: Sequence[Profile]) -> str:
    """One plot; none where no task has the measure."""
    columns = {p.split: list(p.values[measure]) for p in splits if p.values[measure]}
    if not columns:
        return ""
    figure = Figure(figsize=(4, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    weights = [[1 / len(column)] * len(column) for column in columns.values()]
    values = [value for column in columns.values() for value in column]
    low, high = min(values), max(values)
    whole = high - low < 24 and all(value.is_integer() for value in values)
    bins: Any = np.arange(low - 0.5, high + 1) if whole else 12  # one for each whole number
    axes.hist(list(columns.values()), bins=bins, weights=weights, label=list(columns))
    axes.set(title=measure, ylabel="share of tasks", ymargin=0.3)  # room for the legend
    axes.autoscale_view()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.legend(fontsize="small", frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def _part(part: tuple[int, int]) -> str:
    return f"{part[0]:,} of {part[1]:,}" if part[1] else "-"
