"""Confidence intervals of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 256  # resamples drawn at once


@dataclass(frozen=True, slots=True)
class Gain:
    """A number, often a difference of means, and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], seed: int, samples: int = 10_000
) -> Gain:
    """Mean of `after - before` over tasks, with its 95 % percentile bootstrap interval.

    Tasks are resampled with replacement, each with both of its scores, so that how hard a task is
    cancels out.

    Args:
        before: score of each task, [n].
        after: score of the same tasks in the same order, [n].
        seed: of the resampling.
        samples: number of resamples.

    Raises:
        ValueError: the lengths differ or there are no tasks.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"paired scores of shapes {first.shape} and {second.shape}")
    difference = second - first
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, samples, CHUNK):
        count = min(CHUNK, samples - start)
        drawn = generator.integers(len(difference), size=(count, len(difference)))
        means.append(difference[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Gain(float(difference.mean()), float(low), float(high))
