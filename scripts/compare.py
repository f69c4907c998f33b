"""Runs side by side: curves over seeds, final scores, settings that differ, cost.

python scripts/compare.py logs/grpo+matchtir_hard/multiruns/<time>
python scripts/compare.py logs/grpo/runs/* logs/matchtir_hard/runs/* --baseline grpo
python scripts/compare.py --wandb entity/project [--group "matchtir_hard" --group "grpo"]

Writes compare.html, which opens from disk, and the same numbers as compare_*.csv: into the folder
that holds all that were given. Runs that differ in their seed alone are one method. With --wandb
runs that are not on this machine are asked for over W&B's API.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.reports.comparison import common_folder, publish
from matchtir.reports.runs import RunData, find_runs, wandb_runs


def runs_of_project(project: str, groups: list[str]) -> list[RunData]:
    """The runs that W&B has; SystemExit where it cannot be asked."""
    import wandb

    try:
        return wandb_runs(wandb.Api(), project, groups)
    except (wandb.Error, OSError, ValueError) as error:
        raise SystemExit(f"{project}: W&B cannot be asked for it: {error}") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs, of sweeps, or above")
    parser.add_argument("--wandb", metavar="PROJECT", help="runs of this project of W&B, too")
    parser.add_argument("--group", action="append", default=[], help="of the project: these alone")
    parser.add_argument("--out", type=Path, help="the page; its folder gets the CSV files, too")
    parser.add_argument("--baseline", help="the method that the others are compared with")
    options = parser.parse_args()
    if not options.runs and not options.wandb:
        parser.error("give folders, or --wandb")
    folder = common_folder(options.runs) if options.runs else Path()
    try:
        runs = find_runs(options.runs) if options.runs else []
        if options.wandb:
            runs += runs_of_project(options.wandb, options.group)
        publish(runs, options.baseline, options.out or folder / "compare.html")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
