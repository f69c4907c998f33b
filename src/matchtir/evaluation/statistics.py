"""Numbers about a set of tasks, with bootstrap intervals over the tasks.

A statistic gets the values of each task, by measure, and R weightings of the tasks. A weighting of
ones gives the number itself; the counts of a resample with replacement give one of the numbers that
an interval is made of. A task without a measure's value (absent, or None) does not count in it.
Several attempts at a task are one task: a resample draws all of them or none. Their noise already
shows in the variance between tasks: resampling attempts within tasks would count it twice, and
resampling them as if they were tasks would give intervals that are too narrow.

Axes: R weightings, n tasks, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

RESAMPLES = 2_000
CHUNK = 256  # resamples drawn at once
Values = Mapping[str, Any]  # of one task, by measure
Runs = Mapping[tuple[str, int], Float[np.ndarray, " n"]]  # by starting weights and seed
Weights = Float[np.ndarray, "R n"]
Numbers = Float[np.ndarray, " R"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    mean: float
    low: float
    high: float


class Statistic(Protocol):
    """One number for each weighting of the tasks; NaN where no task has what it needs.

    (No dataclass: inside a config OmegaConf would make a config of it.)
    """

    def __call__(self, tasks: Sequence[Values], weights: Weights) -> Numbers: ...


class Mean:
    """The mean of a measure over the tasks that have it."""

    def __init__(self, measure: str) -> None:
        self.measure = measure

    def __call__(self, tasks: Sequence[Values], weights: Weights) -> Numbers:
        """Weighted means."""
        present = np.array([task.get(self.measure) is not None for task in tasks], dtype=float)
        return _divide(weights @ _column(tasks, self.measure), weights @ present)


class Ratio:
    """The sum of one measure over the sum of another: failed calls over calls."""

    def __init__(self, numerator: str, denominator: str) -> None:
        self.numerator = numerator
        self.denominator = denominator

    def __call__(self, tasks: Sequence[Values], weights: Weights) -> Numbers:
        """Weighted sums, divided."""
        above, below = _column(tasks, self.numerator), _column(tasks, self.denominator)
        return _divide(weights @ above, weights @ below)


class MeanOf:
    """The mean of other statistics, each counting once; NaN where one of them is."""

    def __init__(self, parts: Sequence[Statistic]) -> None:
        self.parts = parts

    def __call__(self, tasks: Sequence[Values], weights: Weights) -> Numbers:
        """Means over the parts."""
        return np.mean([part(tasks, weights) for part in self.parts], axis=0)


class MacroF1:
    """F1 of each label, averaged over the labels that occur in gold, as scikit-learn's macro F1.

    The value of a task is a list of rows, each {"gold": labels, "predicted": labels}; within a row
    a label counts once. A label's F1 is 2 TP / (gold + predicted) over all rows.
    """

    def __init__(self, measure: str) -> None:
        self.measure = measure

    def __call__(self, tasks: Sequence[Values], weights: Weights) -> Numbers:
        """Macro F1 over the weighted rows of the tasks."""
        rows = [
            (index, set(row["gold"]), set(row["predicted"]))
            for index, task in enumerate(tasks)
            for row in task.get(self.measure) or ()
        ]
        labels = {label: column for column, label in enumerate({x for _, g, _ in rows for x in g})}

        def counted(which: Callable[[set[str], set[str]], set[str]]) -> np.ndarray:
            """How often each label of gold is there, [R, L]."""
            found = [(i, labels[x]) for i, g, p in rows for x in which(g, p) & labels.keys()]
            at = np.array(found, dtype=int).reshape(-1, 2).T
            shape = (len(tasks), len(labels))
            return weights @ csr_array((np.ones(len(found)), (at[0], at[1])), shape=shape)

        gold, predicted = counted(lambda gold, _: gold), counted(lambda _, predicted: predicted)
        f1 = 2 * counted(set.intersection) / np.maximum(gold + predicted, 1e-12)
        return _divide(f1.sum(axis=1), (gold > 0).sum(axis=1).astype(float))


def _column(tasks: Sequence[Values], measure: str) -> Float[np.ndarray, " n"]:
    return np.array([float(task.get(measure) or 0.0) for task in tasks])


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


def pass_at(k: int, attempts: int, passed: int) -> float:
    """The chance that one of `k` attempts passes, without bias, where `passed` of `attempts` did.

    1 - C(n - c, k) / C(n, k): equation 1 of Chen et al. (2021, arXiv 2107.03374).

    Raises:
        ValueError: k is not from 1 to the number of attempts.
    """
    if not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} of {attempts} attempts")
    return 1.0 - math.comb(attempts - passed, k) / math.comb(attempts, k)


def pass_names(attempts: int) -> list[str]:
    """The names of the chances that one of 1, 2, ... attempts passes; none for a single attempt.

    The first is the mean of single attempts, avg@k.
    """
    return [f"pass@{k}" for k in range(1, attempts + 1)] if attempts > 1 else []


def shown(details: Iterable[str], attempts: int) -> list[str]:
    """Statistics for a table, with pass@1, 2, 4, 8, ... and the last one in place of all passes."""
    names = pass_names(attempts)
    powers = [name for k, name in enumerate(names, start=1) if k & (k - 1) == 0 or k == attempts]
    return [*(name for name in details if name not in names), *powers]


def over_attempts(attempts: Sequence[Values], passed: str) -> Values:
    """The values of a task out of those of its attempts.

    Of numbers it is the mean of the attempts that have one (avg@k), of rows for `MacroF1` all of
    them. Several attempts also have `pass_names`: an attempt has passed where its measure `passed`
    is 1, and tasks without that measure have none.
    """
    if len(attempts) == 1:
        return attempts[0]
    task: dict[str, Any] = {}
    for measure in dict.fromkeys(name for values in attempts for name in values):
        found = [v[measure] for v in attempts if v.get(measure) is not None]
        if found and isinstance(found[0], Sequence):
            task[measure] = [row for rows in found for row in rows]
        else:
            task[measure] = sum(found) / len(found) if found else None
    if all(values.get(passed) is not None for values in attempts):
        right = sum(values[passed] == 1 for values in attempts)
        for k, name in enumerate(pass_names(len(attempts)), start=1):
            task[name] = pass_at(k, len(attempts), right)
    return task


def by_task(attempts: Iterable[tuple[str, Values]], passed: str) -> dict[str, Values]:
    """`over_attempts` of each task, out of (task, values) of attempts in any order."""
    found: dict[str, list[Values]] = {}
    for task, values in attempts:
        found.setdefault(task, []).append(values)
    return {task: over_attempts(each, passed) for task, each in found.items()}


def value(statistic: Statistic, tasks: Sequence[Values]) -> float:
    """The statistic of the tasks themselves."""
    return float(statistic(tasks, np.ones((1, len(tasks))))[0])


@lru_cache(maxsize=2)  # every measure of the same tasks wants them
def resample_weights(count: int, seed: int = 0, samples: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` tasks is drawn in each resample with replacement, [R, n]."""
    generator = np.random.default_rng(seed)
    weights = np.empty((samples, count))
    for rows in np.split(weights, range(CHUNK, samples, CHUNK)) if count else ():
        drawn = generator.integers(count, size=rows.shape)
        drawn += count * np.arange(len(rows))[:, None]  # a place for each cell of these rows
        rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
    weights.setflags(write=False)
    return weights


def estimate(statistic: Statistic, tasks: Sequence[Values], weights: np.ndarray) -> Estimate:
    """The statistic with its 95 % percentile bootstrap interval over the tasks."""
    return _interval(value(statistic, tasks), statistic(tasks, weights))


def difference(
    statistic: Statistic, before: Sequence[Values], after: Sequence[Values], weights: np.ndarray
) -> Estimate:
    """`after - before` on the same tasks in the same order, with its 95 % interval.

    Every resample draws the same tasks for both, so that how hard a task is cancels out.

    Raises:
        ValueError: the numbers of tasks differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} tasks before, {len(after)} after")
    resampled = statistic(after, weights) - statistic(before, weights)
    return _interval(value(statistic, after) - value(statistic, before), resampled)


def nested_bootstrap(runs: Runs, seed: int = 0, samples: int = RESAMPLES) -> Estimate:
    """The mean of what runs scored on the same tasks, with its 95 % interval.

    Starting weights are resampled, the seeds of each, and the tasks: what another researcher's
    starts, seeds and tasks might have given. Resampling tasks alone says how well these runs are
    known, not the method; that is what it comes to for a single run.

    Raises:
        ValueError: there are no values, or runs have other numbers of tasks.
    """
    return _interval(*_nested(runs, seed, 1, samples))


def nested_difference(before: Runs, after: Runs, seed: int = 0) -> Estimate:
    """The mean of `after` less that of `before` on the same tasks, with its 95 % interval.

    Runs of the same starts and seeds are paired; otherwise each side is resampled by itself.
    Tasks are paired in any case, so that how hard a task is cancels out.

    Raises:
        ValueError: as `nested_bootstrap`.
    """
    if before.keys() == after.keys():
        return nested_bootstrap({key: after[key] - before[key] for key in before}, seed)
    first, resampled_first = _nested(before, seed, 1)
    second, resampled_second = _nested(after, seed, 2)
    return _interval(second - first, resampled_second - resampled_first)


def _nested(
    runs: Runs, seed: int, stream: int, samples: int = RESAMPLES
) -> tuple[float, np.ndarray]:
    """The mean over starts of the mean over their seeds, and resamples of it [R]."""
    sizes = {len(scores) for scores in runs.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"scores of the same tasks for each run, not of {sorted(sizes)} tasks")
    (count,) = sizes
    by_start: dict[str, list[np.ndarray]] = {}
    for (start, _), scores in runs.items():
        by_start.setdefault(start, []).append(scores)
    values = np.array([scores for found in by_start.values() for scores in found])
    means = resample_weights(count, seed, samples) / count @ values.T  # [R, runs]
    seeds = np.array([len(found) for found in by_start.values()])
    generator = np.random.default_rng((seed, stream))
    chosen = generator.integers(len(seeds), size=(samples, len(seeds), 1))
    drawn = generator.integers(seeds[chosen], size=(samples, len(seeds), seeds.max()))
    is_one = np.arange(seeds.max()) < seeds[chosen]  # a start with fewer seeds draws fewer
    run = (seeds.cumsum() - seeds)[chosen] + drawn
    found = np.take_along_axis(means[:, None], run, axis=2)
    mean = float(np.mean([np.mean(each) for each in by_start.values()]))
    return mean, np.mean((found * is_one).sum(axis=2) / seeds[chosen][..., 0], axis=1)


def _interval(mean: float, resampled: np.ndarray) -> Estimate:
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Estimate(mean, float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))
