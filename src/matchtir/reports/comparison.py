"""Runs compared by method over seeds: curves, final scores, settings, cost; as page, CSV, table."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from matchtir.evaluation.statistics import paired_bootstrap
from matchtir.reports.page import write_page
from matchtir.reports.progress import SMOOTHING, Scores, trailing_mean
from matchtir.reports.runs import RunData

SMOOTHED = ("train/", "credit/", "time/")  # drawn as trailing means over `SMOOTHING` iterations
POINTS = 400  # at most, of a curve
STAGES = ("rollout", "tools", "credit", "update")
# The paper's columns; the average of the first three is what its ablation reports.
AVERAGED = ("solve_p", "solve_r", "solve_f1")
AVERAGE = "solve_avg"
HEADINGS = {
    "success": "Success",
    "solve_p": "Solve-P",
    "solve_r": "Solve-R",
    "solve_f1": "Solve-F1",
    AVERAGE: "Avg",
    "answer_f1": "Answer F1",
    "answered": "Answered",
}
ENDS = ("mean", "low", "high")  # of an interval


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def finished(self) -> tuple[RunData, ...]:
        """The runs that have final scores."""
        return tuple(run for run in self.runs if run.after)


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
    curves: dict[str, dict[str, Any]] = {}
    for metric in dict.fromkeys(name for run in runs for name in run.curves):
        drawn = {method.label: curve(method, metric) for method in found}
        if any(drawn.values()):
            curves[metric] = {label: points for label, points in drawn.items() if points}
    return Comparison(
        found,
        base.label,
        curves,
        final_scores([method for method in found if method.finished], base),
        setting_differences(found),
        [cost(method) for method in found],
    )


def methods(runs: Sequence[RunData]) -> list[Method]:
    """The runs by their settings, in order of appearance, each method with a label of its own.

    Words that all labels have are left out of them.
    """
    grouped: list[list[RunData]] = []
    for run in runs:
        same = [group for group in grouped if group[0].settings == run.settings]
        (same[0].append if same else lambda new: grouped.append([new]))(run)
    names = [group[0].group.split() for group in grouped]
    common = set.intersection(*map(set, names)) if len(names) > 1 else set()
    labels: list[str] = []
    for words in names:
        label = " ".join(word for word in words if word not in common) or " ".join(words)
        number = 1 + sum(each.partition(" #")[0] == label for each in labels)
        labels.append(label if number == 1 else f"{label} #{number}")
    return [
        Method(label, tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, grouped, strict=True)
    ]


def curve(method: Method, metric: str) -> dict[str, list[Any]] | None:
    """Mean over seeds at each step where all that got so far measured it, and its 95 % interval.

    The interval is Student's, from three seeds on. `seeds` has the single curves.
    """
    single: list[dict[int, float]] = []
    for run in method.runs:
        steps, values = run.curves.get(metric, ((), ()))
        if metric.startswith(SMOOTHED):
            values = trailing_mean(values, SMOOTHING).tolist()
        pairs = zip(steps, values, strict=True)
        single.append({step: value for step, value in pairs if math.isfinite(value)})
    steps = sorted(set().union(*single))
    if not steps:
        return None
    if len(steps) > POINTS:
        steps = [steps[round(n)] for n in np.linspace(0, len(steps) - 1, POINTS)]
    result: dict[str, list[Any]] = {"steps": steps, "mean": [], "low": [], "high": []}
    for step in steps:
        values = [each[step] for each in single if step in each]
        mean = float(np.mean(values))
        half = None
        if len(values) > 2:
            error = np.std(values, ddof=1) / math.sqrt(len(values))
            half = float(stdtrit(len(values) - 1, 0.975) * error)
        result["mean"].append(mean)
        result["low"].append(None if half is None else mean - half)
        result["high"].append(None if half is None else mean + half)
    result["seeds"] = [[each.get(step) for step in steps] for each in single]
    return result


def final_scores(compared: Sequence[Method], baseline: Method) -> list[dict[str, Any]]:
    """A row per method: means of the test scores, gains over training, differences from a baseline.

    Gains and differences are paired by test task, each with its mean over the seeds, and have a
    95 % bootstrap interval over tasks. Where the test tasks are others there is no difference.
    """
    reference = _task_means(baseline, "after")
    rows = []
    for method in compared:
        before, after = (_task_means(method, side) for side in ("before", "after"))
        scores = {}
        for measure, values in after.items():
            others = reference.get(measure, {}) if method is not baseline else {}
            scores[measure] = {
                "mean": fmean(values.values()),
                "before": fmean(before[measure].values()),
                "gain": _difference(before[measure], values),
                "by_seed": [_gain_of_run(run, measure) for run in method.finished],
                "difference": _difference(others, values),
            }
        seeds, tasks = [run.seed for run in method.finished], len(next(iter(after.values())))
        rows.append({"method": method.label, "seeds": seeds, "tasks": tasks, "scores": scores})
    return rows


def _task_means(method: Method, side: str) -> dict[str, dict[str, float]]:
    """Of each measure and task, the mean over the finished runs."""
    scores = [_with_average(getattr(run, side)) for run in method.finished]
    if not scores:
        return {}
    if any(each.keys() != scores[0].keys() for each in scores):
        raise ValueError(f"{method.label}: its runs were tested on different tasks")
    return {
        measure: {task: fmean(each[task][measure] for each in scores) for task in scores[0]}
        for measure in next(iter(scores[0].values()))
    }


def _with_average(scores: Scores) -> dict[str, dict[str, float]]:
    """The scores of each task, where it has the paper's columns these first, with their mean."""
    result = {}
    for task, values in scores.items():
        paper = {name: values[name] for name in AVERAGED if name in values}
        if len(paper) == len(AVERAGED):
            paper[AVERAGE] = fmean(paper.values())
        result[task] = {**paper, **values}
    return result


def _gain_of_run(run: RunData, measure: str) -> float:
    assert run.before is not None and run.after is not None
    before, after = _with_average(run.before), _with_average(run.after)
    return fmean(after[task][measure] - before[task][measure] for task in after)


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict | None:
    if not first or first.keys() != second.keys():
        return None
    pairs = list(first.values()), [second[task] for task in first]
    return asdict(paired_bootstrap(*pairs, seed=0, samples=4_000))


def setting_differences(compared: Sequence[Method]) -> list[dict[str, Any]]:
    """The settings that are not the same everywhere: key, and the value of each method.

    A key whose values are another's under a longer name, as `reward.assignment.cost` repeats
    `assignment.cost`, is left out.
    """
    keys = {key for method in compared for key in method.runs[0].settings}
    rows: dict[str, list[Any]] = {}
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        values = [method.runs[0].settings.get(key, "–") for method in compared]
        repeats = any(key.endswith(f".{shorter}") and rows[shorter] == values for shorter in rows)
        if any(value != values[0] for value in values) and not repeats:
            rows[key] = values
    return [{"key": key, "values": [str(v) for v in values]} for key, values in rows.items()]


def cost(method: Method) -> dict[str, Any]:
    """Means over the runs: sampled tokens, seconds of each stage of training, and of everything.

    `rollout` is what is left of it without the tools; `other` is the warm start, validation, tests.
    """
    result: dict[str, Any] = {"method": method.label, "runs": len(method.runs)}
    parts = [_cost(run) for run in method.runs]
    for name in parts[0]:
        known = [value for part in parts if (value := part[name]) is not None]
        result[name] = fmean(known) if known else None
    return result


def _cost(run: RunData) -> dict[str, float | None]:
    stages: dict[str, float] = {
        stage: float(np.nansum(run.curves.get(f"time/{stage}", ((), ()))[1])) for stage in STAGES
    }
    speed = run.curves.get("train/tokens_per_s", ((), ()))[1]
    seconds = run.curves.get("time/rollout", ((), ()))[1]
    tokens = float(np.dot(speed, seconds)) if len(speed) == len(seconds) else None
    stages["rollout"] = max(0.0, stages["rollout"] - stages["tools"])
    training = sum(stages.values())
    other = None if run.seconds is None else max(0.0, run.seconds - training)
    return {"tokens": tokens, **stages, "other": other, "seconds": run.seconds}


# -- what is written -------------------------------------------------------------------------------


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


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write the page `out`, and beside it `<stem>_{curves,final,settings,cost}.csv`."""
    title = "/".join(out.resolve().parent.parts[-3:])
    data = {name: getattr(comparison, name) for name in Comparison.__slots__} | {
        "title": title,
        "headings": HEADINGS,
        "methods": [
            {
                "label": method.label,
                "runs": [{"name": r.name, "finished": r.after is not None} for r in method.runs],
            }
            for method in comparison.methods
        ],
    }
    write_page(
        out,
        f"Comparison: {title}",
        ("base.css", "compare.css"),
        ("base.js", "compare_charts.js", "compare_main.js"),
        {"comparison": gzip.compress(json.dumps(data).encode("utf-8"), mtime=0)},
    )
    labels = [method.label for method in comparison.methods]
    tables = {
        "curves": _curve_rows(comparison),
        "final": _final_rows(comparison),
        "settings": [["key", *labels], *([r["key"], *r["values"]] for r in comparison.settings)],
        "cost": [list(comparison.cost[0]), *(list(row.values()) for row in comparison.cost)],
    }
    written = [out]
    for name, rows in tables.items():
        written.append(out.with_name(f"{out.stem}_{name}.csv"))
        with written[-1].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    return written


def _curve_rows(comparison: Comparison) -> Iterator[list[Any]]:
    yield ["metric", "method", "step", *ENDS, "seeds"]
    for metric, drawn in comparison.curves.items():
        for label, points in drawn.items():
            for index, step in enumerate(points["steps"]):
                count = sum(each[index] is not None for each in points["seeds"])
                yield [metric, label, step, *(points[end][index] for end in ENDS), count]


def _final_rows(comparison: Comparison) -> Iterator[list[Any]]:
    pairs = [(kind, end) for kind in ("gain", "difference") for end in ENDS]
    names = [f"{kind}_{end}" for kind, end in pairs]
    yield ["method", "seeds", "tasks", "measure", "before", "after", *names]
    for row in comparison.final:
        seeds = " ".join(map(str, row["seeds"]))
        for measure, score in row["scores"].items():
            ends = [(score[kind] or {}).get(end) for kind, end in pairs]
            means = [score["before"], score["mean"]]
            yield [row["method"], seeds, row["tasks"], measure, *means, *ends]


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
        cells = [_cell(row["scores"].get(measure)) for measure in shown]
        table.add_row(row["method"], " ".join(map(str, row["seeds"])), *cells)
    return table


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    gain = score["gain"]
    if gain is None:
        return f"{score['mean']:.3f}"
    ends = f"\\[{gain['low']:+.2f}, {gain['high']:+.2f}]"
    return f"{score['mean']:.3f}\n[dim]{gain['mean']:+.3f}\n{ends}"


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all these folders; the folder itself where it is the only one."""
    folder = Path(os.path.commonpath([path.absolute() for path in paths]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
