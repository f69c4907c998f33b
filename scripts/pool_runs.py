"""Gains of runs that differ in their seed, pooled by experiment.

python scripts/pool_runs.py logs/matchtir_hard/runs/* logs/grpo/runs/*

A row per experiment and measure: means before and after over all runs, the gain of each run, and
the mean gain with its 95 % interval. The interval is of a bootstrap over test tasks, each with its
scores of all runs; how much runs differ shows in their single gains.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.evaluation.intervals import paired_bootstrap
from matchtir.utils.run_dir import CONFIG_FILE

Scores = dict[str, dict[str, float]]


def read_scores(folder: Path, name: str) -> Scores:
    """Scores of each test task of a run; SystemExit where the run has none."""
    file = folder / name
    if not file.is_file():
        raise SystemExit(f"{file} is missing: the run did not finish")
    return json.loads(file.read_text(encoding="utf-8"))


def pool(runs: list[tuple[Scores, Scores]], measure: str) -> list[str]:
    """The cells of one row: before, after, gain of each run, mean gain and interval."""
    tasks = sorted(runs[0][0])
    if any(sorted(scores) != tasks for run in runs for scores in run):
        raise SystemExit("the runs were tested on different tasks")
    before, after = (
        np.array([[run[side][task][measure] for task in tasks] for run in runs]) for side in (0, 1)
    )
    gain = paired_bootstrap(before.mean(axis=0), after.mean(axis=0), seed=0)
    single = "  ".join(f"{value:+.3f}" for value in (after - before).mean(axis=1))
    interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return [f"{before.mean():.3f}", f"{after.mean():.3f}", single, interval]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--measures", nargs="+", default=["solve_f1", "answer_f1", "answered"])
    options = parser.parse_args()
    groups: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for folder in options.runs:
        seed = OmegaConf.load(folder / CONFIG_FILE).seed
        groups[folder.resolve().parents[1].name].append((seed, folder))
    table = Table("experiment", "seeds", "measure", "before", "after", "gains", "mean gain, 95 %")
    for experiment, members in sorted(groups.items()):
        members.sort()
        runs = [(read_scores(f, "before.json"), read_scores(f, "after.json")) for _, f in members]
        seeds = ",".join(str(seed) for seed, _ in members)
        for measure in options.measures:
            table.add_row(experiment, seeds, measure, *pool(runs, measure))
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)


if __name__ == "__main__":
    main()
