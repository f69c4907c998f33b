"""Runs side by side: curves over seeds, final scores, settings that differ, cost.

python scripts/compare.py logs/grpo+matchtir_hard/multiruns/<time>
python scripts/compare.py logs/grpo/runs/* logs/matchtir_hard/runs/* --baseline grpo
python scripts/compare.py <folders> --curve penalties.unmatched

Writes compare.html, which opens from disk, and the same numbers as compare_*.csv (with --curve:
curve.png and curve.csv) into the folder that holds all that were given. Runs that differ in seed
and starting weights alone are one method.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from matchtir.reports.comparison import HEADINGS, Comparison, compare_runs, write_comparison
from matchtir.reports.parameter import write_curve
from matchtir.reports.runs import find_runs


def final_table(comparison: Comparison) -> Table:
    """The final scores in the paper's layout, with gains over training and their intervals."""
    table = Table(title="test scores; gain over training; its 95 % interval over runs and tasks")
    longest = max(len(row["method"]) for row in comparison.final)
    table.add_column("method", min_width=min(longest, 36), max_width=36, overflow="fold")
    table.add_column("runs", no_wrap=True)
    shown = [m for m in HEADINGS if any(m in row["scores"] for row in comparison.final)]
    for measure in shown:
        table.add_column(HEADINGS[measure], justify="right", no_wrap=True)
    for row in comparison.final:
        cells = [_cell(row["scores"].get(measure)) for measure in shown]
        starts = f"{row['starts']} starts,\n" if row["starts"] > 1 else ""
        seeds = " ".join(map(str, row["seeds"]))
        table.add_row(escape(row["method"]), f"{starts}seeds {seeds}", *cells)
    return table


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    gain = score["gain"]
    ends = f"\\[{gain['low']:+.2f}, {gain['high']:+.2f}]"
    return f"{score['mean']:.3f}\n[dim]{gain['mean']:+.3f}\n{ends}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, of sweeps, or above")
    parser.add_argument("--out", type=Path, help="the page; its folder gets the CSV files, too")
    parser.add_argument(
        "--baseline", help="what the others are compared with: a label, or a part of it"
    )
    parser.add_argument(
        "--curve", metavar="PARAMETER", help="draw the final scores against its values instead"
    )
    options = parser.parse_args()
    above = Path(os.path.commonpath([path.absolute() for path in options.runs]))
    try:
        runs = find_runs(options.runs)
        if options.curve:
            folder = options.out.parent if options.out else above
            print(*write_curve(runs, options.curve, folder), sep="\n")
            return
        comparison = compare_runs(runs, options.baseline)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    written = write_comparison(comparison, options.out or above / "compare.html")
    console = Console()
    if comparison.final:
        table = final_table(comparison)
        whole = console.measure(table, options=console.options.update(width=1_000)).maximum
        console.width = max(console.width, whole)
        console.print(table)
    for line in [*comparison.notes, *written]:
        console.print(str(line), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
