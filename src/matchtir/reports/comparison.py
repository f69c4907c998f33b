"""Runs compared by method over starts and seeds: curves, final scores, settings, cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import stdtrit

from matchtir.evaluation.statistics import Runs, nested_bootstrap, nested_difference
from matchtir.reports.page import write_page
from matchtir.reports.progress import SMOOTHING, trailing_mean
from matchtir.reports.runs import START, RunData
from matchtir.utils.run_folder import nan_to_null, write_csv

# Drawn as trailing means over `SMOOTHING` iterations.
SMOOTHED = ("train/", "credit/", "by/", "time/")
POINTS = 400  # at most, of a curve
STAGES = ("rollout", "tools", "credit", "update")
# The paper's columns; the average of these three is what its ablation reports.
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
CHANGES = ("gain", "difference")  # over training, from the baseline
FINAL = (
    *("method", "starts", "seeds", "tasks", "measure", "before", "after"),
    *(f"{change}_{end}" for change in CHANGES for end in ENDS),
)


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in starting weights and seed alone, each pair of these once."""

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
    notes: list[str]  # runs that do not count, and why


def compare_runs(runs: Sequence[RunData], baseline: str | None = None) -> Comparison:
    """Compare runs by method.

    Args:
        runs: at least one.
        baseline: what the others are compared with: the label of a method, or a part of it that no
            other has; the first by default.

    Raises:
        ValueError: no method, or more than one, is called so.
    """
    counted, notes = distinct_runs(runs)
    found = methods(counted)
    base = _named(found, baseline) if baseline else found[0]
    curves: dict[str, dict[str, Any]] = {}
    for metric in dict.fromkeys(name for run in counted for name in run.curves):
        drawn = ((method.label, curve(method, metric)) for method in found)
        if known := {label: points for label, points in drawn if points}:
            curves[metric] = known
    return Comparison(
        found,
        base.label,
        curves,
        final_scores([method for method in found if method.finished], base),
        setting_differences(found),
        [cost(method) for method in found],
        notes,
    )


def distinct_runs(runs: Sequence[RunData]) -> tuple[list[RunData], list[str]]:
    """The runs without those that repeat another's settings, start and seed; notes that name these.

    A repetition is no further seed. Of such runs the last finished one counts.
    """
    kept: dict[tuple[str, str, int], RunData] = {}
    notes = []
    for run in runs:
        key = run.method, run.start, run.seed
        other = kept.setdefault(key, run)
        if other is not run:
            left, kept[key] = (other, run) if run.after or not other.after else (run, other)
            counts = kept[key].folder
            notes.append(f"{left.folder} is left out: {counts} has its settings and its seed")
    return [*kept.values()], notes


def methods(runs: Sequence[RunData]) -> list[Method]:
    """The runs by their settings, in order of appearance, each method with a label of its own.

    The label is the experiment, and of the choices those that not all methods of this experiment
    have.
    """
    grouped: dict[str, list[RunData]] = {}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    names = [
        [word for word in group[0].group.split() if not word.startswith(f"{START}=")]
        for group in grouped.values()
    ]
    found: list[Method] = []
    for (experiment, *choices), group in zip(names, grouped.values(), strict=True):
        common = set.intersection(*(set(words) for words in names if words[0] == experiment))
        label = " ".join([experiment, *(word for word in choices if word not in common)])
        if twins := sum(each.label.partition(" #")[0] == label for each in found):
            label = f"{label} #{twins + 1}"
        group.sort(key=lambda run: (run.start, run.seed))
        found.append(Method(label, tuple(group)))
    return found


def _named(found: Sequence[Method], name: str) -> Method:
    """The method of this label, else the only one whose label has it as a word, else as a part."""
    for fits in (str.__eq__, lambda label, part: part in label.split(), str.__contains__):
        matching = [method for method in found if fits(method.label, name)]
        if len(matching) == 1:
            return matching[0]
    labels = "; ".join(method.label for method in found)
    raise ValueError(f"baseline={name!r} names no single one of: {labels}")


def curve(method: Method, metric: str) -> dict[str, list[Any]] | None:
    """Mean at each step over the runs that measured it there, and its 95 % interval.

    The interval is Student's, from three runs on. `seeds` has the single curves.
    """
    single: list[dict[int, float]] = []
    for run in method.runs:
        measured, values = run.curves.get(metric, ((), ()))
        if metric.startswith(SMOOTHED):
            values = trailing_mean(values, SMOOTHING).tolist()
        pairs = zip(measured, values, strict=True)
        single.append({step: value for step, value in pairs if math.isfinite(value)})
    steps = sorted(set().union(*single))
    if not steps:
        return None
    if len(steps) > POINTS:
        steps = [steps[round(n)] for n in np.linspace(0, len(steps) - 1, POINTS)]
    table = np.array([[each.get(step, np.nan) for step in steps] for each in single])
    count = np.isfinite(table).sum(axis=0)
    mean, half = np.nanmean(table, axis=0), np.full(len(steps), np.nan)
    enough = count > 2
    error = np.nanstd(table[:, enough], axis=0, ddof=1) / np.sqrt(count[enough])
    half[enough] = stdtrit(count[enough] - 1, 0.975) * error
    ends = {"mean": mean, "low": mean - half, "high": mean + half, "seeds": table}
    return {"steps": steps, **{name: nan_to_null(each.tolist()) for name, each in ends.items()}}


def final_scores(compared: Sequence[Method], baseline: Method) -> list[dict[str, Any]]:
    """A row per method: means of the test scores, gains over training, differences from a baseline.

    Gains and differences have 95 % bootstrap intervals over starts, seeds and tasks. Where the test
    tasks are others there is no difference.
    """
    base = task_scores(baseline, "after") if baseline.finished else {}
    rows = []
    for method in compared:
        before, after = (task_scores(method, side) for side in ("before", "after"))
        same = method is not baseline and baseline.finished and _tasks(method) == _tasks(baseline)
        scores = {}
        for measure, runs in after.items():
            first, others = before[measure], base.get(measure) if same else None
            scores[measure] = {
                "mean": nested_bootstrap(runs).mean,
                "before": nested_bootstrap(first).mean,
                "gain": asdict(nested_difference(first, runs)),
                "by_seed": [float(np.mean(runs[key] - first[key])) for key in runs],
                "difference": asdict(nested_difference(others, runs)) if others else None,
            }
        row = {
            "method": method.label,
            "starts": len({run.start for run in method.finished}),
            "seeds": sorted({run.seed for run in method.finished}),
            "runs": len(method.finished),
            "tasks": len(_tasks(method)),
        }
        rows.append(row | {"scores": scores})
    return rows


def _tasks(method: Method) -> list[str]:
    """The test tasks of a method's finished runs.

    Raises:
        ValueError: they are not the same.
    """
    found = [sorted(run.after or ()) for run in method.finished]
    if any(tasks != found[0] for tasks in found):
        raise ValueError(f"{method.label}: its runs were tested on different tasks")
    return found[0]


def task_scores(method: Method, side: str) -> dict[str, Runs]:
    """Of each measure, the scores of the finished runs at each test task.

    Where a run has the paper's columns their mean follows them.
    """
    tasks = _tasks(method)
    scores: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for run in method.finished:
        measured = getattr(run, side)
        names = list(measured[tasks[0]])
        found = {m: np.array([measured[t][m] for t in tasks], dtype=float) for m in names}
        if found.keys() >= set(AVERAGED):
            found[AVERAGE] = np.mean([found[name] for name in AVERAGED], axis=0)
        for measure, values in found.items():
            scores.setdefault(measure, {})[run.start, run.seed] = values
    order = [measure for measure in HEADINGS if measure in scores]
    return {measure: scores[measure] for measure in dict.fromkeys([*order, *scores])}


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
        known = [part[name] for part in parts if part[name] is not None]
        result[name] = fmean(known) if known else None
    return result


def _cost(run: RunData) -> dict[str, Any]:
    def measured(metric: str) -> Sequence[float]:
        return run.curves.get(metric, ((), ()))[1]

    stages = {stage: float(np.nansum(measured(f"time/{stage}"))) for stage in STAGES}
    speed, seconds = measured("train/tokens_per_s"), measured("time/rollout")
    tokens = float(np.dot(speed, seconds)) if len(speed) == len(seconds) else None
    stages["tools"] = min(stages["tools"], stages["rollout"])  # calls overlap
    stages["rollout"] -= stages["tools"]
    other = None if run.seconds is None else max(0.0, run.seconds - sum(stages.values()))
    return {"tokens": tokens, **stages, "other": other, "seconds": run.seconds}


# -- what is written -------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write the page `out`, and beside it `<stem>_{curves,final,settings,cost}.csv`."""
    title = "/".join(out.resolve().parent.parts[-3:])
    shown = {name: getattr(comparison, name) for name in Comparison.__slots__}
    shown["methods"] = [
        {
            "label": method.label,
            "runs": [{"name": r.name, "finished": r.after is not None} for r in method.runs],
        }
        for method in comparison.methods
    ]
    data = shown | {"title": title, "headings": HEADINGS}
    write_page(
        out,
        f"Comparison: {title}",
        ("base.css", "compare.css"),
        ("base.js", "compare_charts.js", "compare_main.js"),
        {"comparison": json.dumps(data)},
    )
    labels = [method.label for method in comparison.methods]
    tables = {
        "curves": (["metric", "method", "step", *ENDS, "seeds"], _curve_rows(comparison)),
        "final": (FINAL, _final_rows(comparison)),
        "settings": (["key", *labels], ([r["key"], *r["values"]] for r in comparison.settings)),
        "cost": (list(comparison.cost[0]), (row.values() for row in comparison.cost)),
    }
    files = {name: out.with_name(f"{out.stem}_{name}.csv") for name in tables}
    for name, (columns, rows) in tables.items():
        write_csv(files[name], columns, rows)
    return [out, *files.values()]


def _curve_rows(comparison: Comparison) -> Iterator[list[Any]]:
    for metric, drawn in comparison.curves.items():
        for label, points in drawn.items():
            for index, step in enumerate(points["steps"]):
                count = sum(each[index] is not None for each in points["seeds"])
                yield [metric, label, step, *(points[end][index] for end in ENDS), count]


def _final_rows(comparison: Comparison) -> Iterator[list[Any]]:
    for row in comparison.final:
        seeds = " ".join(map(str, row["seeds"]))
        for measure, score in row["scores"].items():
            changes = [(score[kind] or {}).get(end) for kind in CHANGES for end in ENDS]
            means = [score["before"], score["mean"]]
            yield [row["method"], row["starts"], seeds, row["tasks"], measure, *means, *changes]
