"""Runs side by side: curves over seeds, final scores, settings that differ, cost.

python scripts/compare.py logs/grpo+matchtir_hard/multiruns/<time>
python scripts/compare.py logs/grpo/runs/* logs/matchtir_hard/runs/* --baseline grpo

Writes compare.html, which opens from disk, and the same numbers as compare_*.csv: into the folder
that holds all that were given. Runs that differ in seed and starting weights alone are one method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.reports.comparison import common_folder, publish
from matchtir.reports.runs import find_runs


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, of sweeps, or above")
    parser.add_argument("--out", type=Path, help="the page; its folder gets the CSV files, too")
    parser.add_argument(
        "--baseline", help="what the others are compared with: a label, or a part of it"
    )
    options = parser.parse_args()
    page = options.out or common_folder(options.runs) / "compare.html"
    try:
        publish(find_runs(options.runs), options.baseline, page)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
