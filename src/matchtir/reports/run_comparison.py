"""Runs compared: by method over seeds, in curves, final scores, settings and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from matchtir.evaluation.statistics import Gain, paired_bootstrap
from matchtir.reports.run_data import RunData
from matchtir.reports.smoothing import SMOOTHING, trailing_mean

SMOOTHED = ("train/", "credit/", "time/")  # drawn as trailing means over `SMOOTHING` iterations
POINTS = 400  # at most, of a curve
STAGES = ("rollout", "tools", "credit", "update")
# The paper's columns; the average of the first three is what its ablation reports.
AVERAGED = ("solve_p", "solve_r", "solve_f1")
AVERAGE = "solve_avg"


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def finished(self) -> tuple[RunData, ...]:
        """The runs that have final scores."""
        return tuple(run for run in self.runs if run.after)


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
    for name, words in zip((" ".join(n) for n in names), names, strict=True):
        label = " ".join(word for word in words if word not in common) or name
        number = 1 + sum(each.partition(" #")[0] == label for each in labels)
        labels.append(label if number == 1 else f"{label} #{number}")
    return [
        Method(label, tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, grouped, strict=True)
    ]


# -- curves --------------------------------------------------------------------------------------


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


# -- final scores ----------------------------------------------------------------------------------


def final_scores(compared: Sequence[Method], baseline: Method) -> list[dict[str, Any]]:
    """A row per method: means of the test scores, gains over training, differences from a baseline.

    Gains and differences are paired by test task, each with its mean over the seeds, and have a
    95 % bootstrap interval over tasks. Where the test tasks are others there is no difference.
    """
    reference = _task_means(baseline, "after")
    rows = []
    for method in compared:
        after, before = _task_means(method, "after"), _task_means(method, "before")
        row: dict[str, Any] = {"method": method.label, "seeds": [r.seed for r in method.finished]}
        row["tasks"] = len(next(iter(after.values()), {}))
        row["scores"] = {
            measure: {
                "mean": float(np.mean(list(values.values()))),
                "before": float(np.mean(list(before[measure].values()))),
                "gain": _difference(before[measure], values),
                "by_seed": [_mean_gain(run, measure) for run in method.finished],
                "difference": None
                if method is baseline
                else _difference(reference.get(measure, {}), values),
            }
            for measure, values in after.items()
        }
        rows.append(row)
    return rows


def _task_means(method: Method, side: str) -> dict[str, dict[str, float]]:
    """Of each measure and task, the mean over the finished runs."""
    scores = [getattr(run, side) for run in method.finished]
    if not scores:
        return {}
    if any(each.keys() != scores[0].keys() for each in scores):
        raise ValueError(f"{method.label}: its runs were tested on different tasks")
    measures = list(next(iter(scores[0].values())))
    means = {
        measure: {
            task: float(np.mean([each[task][measure] for each in scores])) for task in scores[0]
        }
        for measure in measures
    }
    if all(measure in means for measure in AVERAGED):
        averaged = {
            task: float(np.mean([means[measure][task] for measure in AVERAGED]))
            for task in scores[0]
        }
        means = {
            **{measure: means.pop(measure) for measure in AVERAGED},
            AVERAGE: averaged,
            **means,
        }
    return means


def _mean_gain(run: RunData, measure: str) -> float:
    assert run.before is not None and run.after is not None
    names = AVERAGED if measure == AVERAGE else (measure,)
    return float(
        np.mean([run.after[t][name] - run.before[t][name] for t in run.after for name in names])
    )


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict | None:
    if not first or first.keys() != second.keys():
        return None
    gain: Gain = paired_bootstrap(
        list(first.values()), [second[task] for task in first], seed=0, samples=4_000
    )
    return asdict(gain)


# -- settings and cost -----------------------------------------------------------------------------


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
    parts = [_cost(run) for run in method.runs]
    return {"method": method.label, "runs": len(parts)} | {
        name: _mean([part[name] for part in parts]) for name in parts[0]
    }


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


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
