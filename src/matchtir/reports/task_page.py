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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from matchtir.reports.page import write_page
from matchtir.reports.task_statistics import GoldReplay, Pair, Profile

MOST_ROWS = 40  # of a table; the rest is counted
Cell = str | float | None


@dataclass(frozen=True, slots=True)
class Section:
    """A table: the first column is text, the others are numbers or short texts.

    Without rows only the note is shown, and without a note nothing.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def shown(self) -> tuple[list[list[str]], str]:
        """The rows as texts, and the note; of a long table the first ones."""
        rows = [[_text(cell) for cell in row] for row in self.rows[:MOST_ROWS]]
        left_out = len(self.rows) - len(rows)
        more = f"{left_out:,} more" if left_out else ""
        return rows, "; ".join(filter(None, (self.note, more)))

    def table(self) -> RenderableType:
        """For the terminal."""
        rows, note = self.shown()
        if not rows:
            return f"{self.title}: {note}"
        table = Table(title=self.title, caption=note or None, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def html(self) -> str:
        """For the page."""
        rows, note = self.shown()
        parts = [f"<h2>{html.escape(self.title)}</h2>"]
        if rows:
            head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
            lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
            body = "".join(f"<tr>{line}</tr>" for line in (head, *lines))
            parts.append(f'<div class="scroll"><table>{body}</table></div>')
        if note:
            parts.append(f'<p class="muted">{html.escape(note)}</p>')
        return f"<section>{''.join(parts)}</section>"


def _text(cell: Cell) -> str:
    if cell is None or isinstance(cell, str):
        return "-" if cell is None else cell
    return f"{cell:,.0f}" if cell >= 100 or cell == int(cell) else f"{cell:.2f}"


def profile_section(profiles: Sequence[Profile]) -> Section:
    """Means by split and scenario."""
    measures = list(profiles[0].values) if profiles else []
    rows: list[list[Cell]] = [
        [f"{each.split}: {each.scenario or 'all'}", each.tasks, *map(each.mean, measures)]
        for each in profiles
    ]
    return Section("Tasks (means)", ["split: scenario", "tasks", *measures], rows)


def counts_section(title: str, what: str, counts: Mapping[str, Mapping[str, int]]) -> Section:
    """A column for each split, a row for each kind, the most frequent first."""
    totals: Counter[str] = sum(map(Counter, counts.values()), Counter())
    rows: list[list[Cell]] = [
        [kind, *(column.get(kind, 0) for column in counts.values())]
        for kind, _ in totals.most_common()
    ]
    return Section(title, [what, *counts], rows)


def tools_section(use: Sequence[tuple[str, int, int]]) -> Section:
    """The most called tools."""
    unused = sum(1 for _, _, called in use if not called)
    note = f"{len(use):,} tools, {unused:,} of them in no gold call"
    return Section("Tools", ["tool", "offered in tasks", "gold calls"], use, note)


def pairs_section(pairs: Sequence[Pair]) -> Section:
    """Tasks that are there twice, those in two splits first."""
    rows = [
        [
            f"{'/'.join(pair.first)} = {'/'.join(pair.second)}",
            "LEAK" if pair.is_leak else "twice",
            f"same {pair.kind}" if pair.kind != "near" else "nearly the same question",
            f"{pair.overlap:.2f}",
        ]
        for pair in sorted(pairs, key=lambda pair: not pair.is_leak)
    ]
    leaks = sum(pair.is_leak for pair in pairs)
    note = f"{len(pairs):,} pairs, {leaks:,} of them in two splits" if pairs else "none found"
    return Section("Duplicates and leaks", ["tasks", "", "how", "overlap"], rows, note)


def shared_section(rows: Sequence[tuple[str, str, float, int]]) -> Section:
    """What held-out tasks share with training tasks."""
    cells = [(f"{split}: {what}", f"{share:.0%}", count) for split, what, share, count in rows]
    columns = ["held-out tasks that share with training", "share", "of tasks"]
    return Section("Shared with training", columns, cells)


def replay_section(replays: Mapping[str, GoldReplay]) -> Section:
    """What came of the gold calls, by split; of a test set without any there is no row."""
    rows: list[list[Cell]] = []
    for split, replay in replays.items():
        statuses = ", ".join(f"{count:,} {name}" for name, count in replay.statuses.most_common())
        parts = (replay.solved, replay.answered, replay.reached)
        cells = [f"{part:,} of {of:,}" if of else None for part, of in parts]
        if replay.tasks:
            rows.append([split, replay.tasks, statuses, *cells, len(replay.problems)])
    columns = ["split", "tasks", "calls", "gold outputs", "answer in outputs", "gold states"]
    return Section("Gold replay", [*columns, "tasks with a problem"], rows)


def problems_section(replays: Mapping[str, GoldReplay]) -> Section:
    """The tasks whose gold calls do not do what they should."""
    rows = [
        [f"{split}/{task}", problem[:160]]
        for split, replay in replays.items()
        for task, problem in replay.problems
    ]
    return Section("Problems of the gold calls", ["task", "first problem"], rows)


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
    plots = [_histogram(measure, splits) for measure in (splits[0].values if splits else ())]
    return f'<section class="plots">{"".join(plots)}</section>'


def _histogram(measure: str, splits: Sequence[Profile]) -> str:
    """One plot; none where no task has the measure."""
    columns = {p.split: list(p.values[measure]) for p in splits if p.values[measure]}
    if not columns:
        return ""
    figure = Figure(figsize=(4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    weights = [[1 / len(column)] * len(column) for column in columns.values()]
    values = np.concatenate([*columns.values()])
    low, high = values.min(), values.max()
    whole = high - low < 24 and bool(np.all(values == np.floor(values)))
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
