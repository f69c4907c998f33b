"""One table over all benchmarks, in the layout of the paper's Table 1: a row for each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from matchtir.evaluation.intervals import Gain

# The paper's order; its "Avg" is the mean of these, FTRL counting with the mean of its columns.
TABLE_1 = ("ftrl", "bfcl", "toolhop")
AVERAGE = "Avg"

Column = tuple[str, str]  # benchmark, heading


@dataclass(frozen=True, slots=True)
class Row:
    """The numbers of one policy, or the differences to another."""

    label: str
    numbers: Mapping[Column, Gain]
    is_difference: bool = False
    tasks: Mapping[str, int] = field(default_factory=dict)  # of each benchmark

    def average(self) -> float | None:
        """The mean over the benchmarks of Table 1; None where one of them is missing."""
        means = []
        for name in TABLE_1:
            found = [number.mean for (of, _), number in self.numbers.items() if of == name]
            if not found or np.isnan(found).any():
                return None
            means.append(float(np.mean(found)))
        return float(np.mean(means))


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """All columns of the rows: the benchmarks of Table 1 in its order, then the others."""
    found = list(dict.fromkeys(column for row in rows for column in row.numbers))
    known = [column for name in TABLE_1 for column in found if column[0] == name]
    return known + [column for column in found if column[0] not in TABLE_1]


def overview(rows: Sequence[Row]) -> Table:
    """The table, in percent; below each number its interval."""
    columns = columns_of(rows)
    table = Table(
        title="in %, with 95 % bootstrap intervals over tasks",
        caption=f"{AVERAGE}: of FTRL (mean of its columns), BFCL and ToolHop",
    )
    table.add_column("policy")
    for heading in _with_average(columns, [f"{name}\n{heading}" for name, heading in columns]):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [_cell(row.numbers.get(column), row.is_difference) for column in columns]
        average = row.average()
        mean = "-" if average is None else f"{100 * average:{'+' if row.is_difference else ''}.2f}"
        table.add_row(row.label, *_with_average(columns, cells, mean))
        if row.is_difference:
            table.add_section()
    return table


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for a CSV file: percentages, with the bounds of each interval."""
    result = []
    for row in rows:
        flat: dict[str, Any] = {"policy": row.label}
        for name, heading in columns_of(rows):
            number = row.numbers.get((name, heading))
            for bound in ("mean", "low", "high"):
                key = f"{name} {heading}" + ("" if bound == "mean" else f" {bound}")
                flat[key] = None if number is None else round(100 * getattr(number, bound), 4)
        average = row.average()
        flat[AVERAGE] = None if average is None else round(100 * average, 4)
        result.append(flat)
    return result


def _with_average(
    columns: Sequence[Column], cells: Sequence[str], average: str = AVERAGE
) -> list[str]:
    """The cells with the average behind those of Table 1, if there are any."""
    place = sum(name in TABLE_1 for name, _ in columns)
    return [*cells[:place], average, *cells[place:]] if place else list(cells)


def _cell(number: Gain | None, is_difference: bool) -> str:
    if number is None or np.isnan(number.mean):
        return "-"
    mean, low, high = (100 * value for value in (number.mean, number.low, number.high))
    if not is_difference:
        return f"{mean:.2f}" + (f"\n[dim]{low:.1f}-{high:.1f}[/dim]" if low != high else "")
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    return f"[{colour}]{mean:+.2f}[/]\n[dim]{low:+.1f} to {high:+.1f}[/dim]"
