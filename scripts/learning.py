"""What several methods learn from several starting weights and seeds, as one table.

python scripts/learning.py logs/learning/*      writes results/learning.csv and prints the summary

A row of the CSV is a run. Intervals resample starting weights, seeds and tasks. Besides the greedy
attempt that a run makes at each test task, its weights before and after training make four attempts
at temperature 1 at every second of them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from matchtir.credit.outcome import succeeds
from matchtir.evaluation.statistics import Gain, nested_bootstrap, nested_difference
from matchtir.policy.tiny.model import START, load_start
from matchtir.reports.runs import RunData, read_run
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.utils.loggers import quiet
from matchtir.utils.run_folder import CONFIG_FILE, RESULT_FILE, write_csv

MEASURES = ("success", "solve_p", "solve_r", "solve_f1", "answer_f1", "answered", "calls")
STAGES = ("before", "after")
ATTEMPTS = 4


@dataclass(frozen=True)
class Row:
    """A finished run: what identifies it, and the score of each test task by stage and measure."""

    method: str
    start: str  # folder of its starting weights
    seed: int
    facts: dict[str, Any]
    validation: dict[int, float]  # success on the validation tasks by iteration
    tasks: Sequence[Any]
    scores: dict[str, dict[str, np.ndarray]]  # stage -> measure -> [n]

    @property
    def key(self) -> tuple[str, int]:
        """Among the runs of its method."""
        return self.start, self.seed

    def gains(self, measure: str) -> np.ndarray:
        """After minus before, of each task."""
        return self.scores["after"][measure] - self.scores["before"][measure]


def read(folder: Path, sampled: bool) -> Row:
    """A run's row; its weights are loaded where attempts are sampled."""
    config = OmegaConf.load(folder / CONFIG_FILE)
    run = read_run(folder)
    assert run.before is not None and run.after is not None
    tasks = list(instantiate(config.data).tasks("test"))
    start = run.start or str(START)
    scores = {
        stage: {m: np.array([scored[task.task_id][m] for task in tasks]) for m in MEASURES}
        for stage, scored in zip(STAGES, (run.before, run.after), strict=True)
    }
    if sampled:
        source = (folder / CONFIG_FILE).resolve()
        scores["before"]["sampled_success"] = sampled_success(source, start)
        scores["after"]["sampled_success"] = sampled_success(source, str(folder / "policy"))
    hashed = hashlib.sha256(OmegaConf.to_yaml(config.optimizer).encode()).hexdigest()[:8]
    facts = {
        "iterations": int(config.iterations),
        "lr": float(config.optimizer.get("matrix_lr", config.optimizer.lr)),
        "optimizer": hashed,
        "sampled_tokens": sampled_tokens(run),
        "seconds": round(run.seconds or 0.0),
    }
    validation = dict(zip(*run.curves["val/success"], strict=True))
    method = run.group.split()[0]
    return Row(method, Path(start).parent.name, run.seed, facts, validation, tasks, scores)


def sampled_tokens(run: RunData) -> int:
    """Tokens that the policy wrote in training."""
    speeds, seconds = run.curves["train/tokens_per_s"][1], run.curves["time/rollout"][1]
    return round(sum(a * b for a, b in zip(speeds, seconds, strict=True)))


@cache
def sampled_success(config_file: Path, policy: str) -> np.ndarray:
    """Mean success of four attempts at temperature 1 at every second test task, [n / 2]."""
    config = OmegaConf.load(config_file)
    loaded = load_start(policy)
    loaded.policy.eval()
    renderer = instantiate(config.renderer)(tokenizer=loaded.tokenizer)
    engine = instantiate(config.rollout.engine)(stop_token_ids=renderer.stop_token_ids)
    engine.sync(loaded.policy, version=0)
    sandbox = instantiate(config.sandbox)
    try:
        runner = instantiate(config.rollout.episodes)(TokenSpeaker(engine, renderer), sandbox)
        tasks = list(instantiate(config.data).tasks("test"))[::2]
        groups = runner.run(tasks, ATTEMPTS, SamplingParams(temperature=1.0), seed=0)
    finally:
        sandbox.shutdown()
    return np.array([np.mean([succeeds(attempt) for attempt in group]) for group in groups])


def write(rows: Sequence[Row], path: Path) -> None:
    """Means over the test tasks, and success by the number of gold calls."""
    records = []
    for row in rows:
        record: dict[str, Any] = {"method": row.method, "start": row.start, "seed": row.seed}
        record |= row.facts
        record |= {f"val_success_{step}": round(v, 4) for step, v in row.validation.items()}
        hops = np.array([len(task.gold_calls) for task in row.tasks])
        for stage, scores in row.scores.items():
            record |= {f"{m}_{stage}": round(float(v.mean()), 4) for m, v in scores.items()}
            for number in sorted(set(hops.tolist())):
                mean = float(scores["success"][hops == number].mean())
                record[f"success_of_{number}_calls_{stage}"] = round(mean, 4)
        records.append(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, list(records[0]), (record.values() for record in records))


def summary(rows: Sequence[Row]) -> list[Table]:
    """Gains of each method and how far from grpo, its course, success by number of gold calls."""
    methods = list(dict.fromkeys(row.method for row in rows))
    gains = Table(title="means, and gains with 95 % intervals over starts, seeds and tasks")
    for heading in ("method", "runs", "measure", "before", "after", "gain", "least", "vs grpo"):
        gains.add_column(heading)
    hops = Table(title="success by number of gold calls: before -> after")
    course = Table(title="success on the validation tasks by iteration")
    steps = sorted(rows[0].validation)
    for heading in ("method", *map(str, steps)):
        course.add_column(heading)
    numbers = sorted({len(task.gold_calls) for task in rows[0].tasks})
    for heading in ("method", *map(str, numbers)):
        hops.add_column(heading)
    base = {row.key: row for row in rows if row.method == "grpo"}
    for method in methods:
        own = [row for row in rows if row.method == method]
        for measure in own[0].scores["after"]:
            gains_of = {row.key: row.gains(measure) for row in own}
            means = [np.mean([row.scores[stage][measure] for row in own]) for stage in STAGES]
            least = min(gain.mean() for gain in gains_of.values())
            against = ""
            if method != "grpo" and gains_of.keys() <= base.keys():
                others = {key: base[key].gains(measure) for key in gains_of}
                against = shown(nested_difference(others, gains_of))
            gain = nested_bootstrap(gains_of)
            cells = [f"{mean:.3f}" for mean in means] + [shown(gain), f"{least:+.3f}", against]
            gains.add_row(method, str(len(own)), measure, *cells)
        means = [np.mean([row.validation[step] for row in own]) for step in steps]
        course.add_row(method, *(f"{mean:.3f}" for mean in means))
        lengths = np.array([len(task.gold_calls) for task in own[0].tasks])
        cells = []
        for number in numbers:
            before, after = (
                np.mean([row.scores[stage]["success"][lengths == number].mean() for row in own])
                for stage in STAGES
            )
            cells.append(f"{before:.2f} -> {after:.2f}")
        hops.add_row(method, *cells)
    return [gains, course, hops]


def shown(gain: Gain) -> str:
    """A gain and its interval."""
    return rf"{gain.mean:+.3f} \[{gain.low:+.3f}, {gain.high:+.3f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or above")
    parser.add_argument("--out", type=Path, default=Path("results/learning.csv"))
    parser.add_argument("--greedy", action="store_true", help="sample no further attempts")
    options = parser.parse_args()
    quiet()
    folders = sorted({f.parent for path in options.runs for f in path.rglob(RESULT_FILE)}, key=str)
    rows = [read(folder, not options.greedy) for folder in folders]
    rows.sort(key=lambda row: (row.method, row.key))
    for first, second in pairwise(rows):
        if (first.method, first.key) == (second.method, second.key):
            raise SystemExit(f"{first.method}, {first.key}: there is a run twice")
    write(rows, options.out)
    console = Console(width=160)
    for table in summary(rows):
        console.print(table)


if __name__ == "__main__":
    main()
