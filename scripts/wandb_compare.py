"""The comparison of scripts/compare.py, of runs that W&B has.

python scripts/wandb_compare.py entity/project [--group "matchtir_hard" --group "grpo"]
python scripts/wandb_compare.py logs/grpo/runs logs/matchtir_hard/runs     # offline runs

A folder is searched for offline runs (wandb/offline-run-*), which needs no network; anything else
is a project that is asked for over W&B's API. The page goes into the folder that holds all folders
given, or for projects alone into this one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.reports.comparison_files import common_folder, publish
from matchtir.reports.run_data import RunData
from matchtir.reports.wandb_runs import offline_runs, online_runs


def find(source: str, groups: list[str]) -> list[RunData]:
    """The runs of a folder or of a project; SystemExit where W&B cannot be asked."""
    if Path(source).is_dir():
        return offline_runs([Path(source)])
    import wandb

    try:
        filters = {"group": {"$in": groups}} if groups else None
        return online_runs(wandb.Api(), source, filters)
    except (wandb.Error, OSError, ValueError) as error:
        raise SystemExit(
            f"{source} is no folder, and as a project W&B cannot be asked for it: {error}"
        ) from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help="projects of W&B, or folders of offline runs")
    parser.add_argument("--group", action="append", default=[], help="of the project: these alone")
    parser.add_argument("--out", type=Path, help="the page; its folder gets the CSV files, too")
    parser.add_argument("--baseline", help="the method that the others are compared with")
    options = parser.parse_args()
    folders = [Path(source) for source in options.sources if Path(source).is_dir()]
    folder = common_folder(folders) if folders else Path()
    try:
        runs = [run for source in options.sources for run in find(source, options.group)]
        publish(runs, options.baseline, options.out or folder / "wandb_compare.html")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
