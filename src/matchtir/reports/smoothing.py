"""Curves without their noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMOOTHING = 10  # iterations


def trailing_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean of each value and up to `width - 1` before it, those that are finite; [n] -> [n]."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(ends - width, 0)
    with np.errstate(invalid="ignore"):  # no finite value: 0 / 0 is the honest result
        return (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
