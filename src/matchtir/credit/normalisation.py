"""Statistics of groups of numbers, without loops over groups."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from matchtir.utils.options import check_option

ZERO = 1e-6  # advantages below are the rounding of a zero
PRIOR_FREEDOM = 4.0  # degrees of freedom that the batch's variance has in a `shrunk` one


def check_normalisation(epsilon: float, singleton: str = "raw", gamma: float = 1.0) -> None:
    """Raise ValueError for options that the functions below cannot use."""
    check_option("singleton", singleton, ("raw", "zero"))
    if epsilon <= 0:
        raise ValueError(f"epsilon={epsilon} must be positive")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma} must lie in [0, 1]")


def centred(
    values: Float[np.ndarray, " K"], group: Int[np.ndarray, " K"], singleton: str = "raw"
) -> Float[np.ndarray, " K"]:
    """``x - mean`` within each group; a group of one keeps x (``raw``) or gets 0 (``zero``).

    Mean and differences have the precision of `values`.
    """
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    mean = (np.bincount(index, values, len(count)) / count).astype(values.dtype)
    alone = (count == 1)[index]
    return np.where(alone, values if singleton == "raw" else 0.0, values - mean[index])


def against_others(
    values: Float[np.ndarray, " K"],
    group: Int[np.ndarray, " K"],
    trajectory: Int[np.ndarray, " K"],
    singleton: str = "raw",
) -> Float[np.ndarray, " K"]:
    """``x - mean`` of the values in its group that belong to other trajectories.

    Where there are none, a value stays as it is (``raw``) or becomes 0 (``zero``).
    """
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    pair = index * (1 + trajectory.max(initial=0)) + trajectory
    _, own, own_count = np.unique(pair, return_inverse=True, return_counts=True)
    others = count[index] - own_count[own]
    total = np.bincount(index, values)[index] - np.bincount(own, values)[own]
    alone = values if singleton == "raw" else np.zeros_like(values)
    return np.where(others > 0, values - total / np.maximum(others, 1), alone)


def group_std(
    values: Float[np.ndarray, " K"],
    group: Int[np.ndarray, " K"],
    scale: str = "group",
    within: Float[np.ndarray, " K"] | float = 0.0,
) -> Float[np.ndarray, " K"]:
    """Standard deviation for the group of each value; 1 for a group of one.

    Where each value is the mean of several, `within` is their variance about it: part of q below.

    With n values of which the squared differences from their mean sum to q, its square is

    * ``group``: ``q / (n - 1)``, unbiased. Of two values that is noise: over it, both are +-0.71.
    * ``batch``: ``s0 = sum q / sum (n - 1)`` over all groups, the pooled variance.
    * ``shrunk``: ``(d0 s0 + q) / (d0 + n - 1)`` with d0 = 4, the posterior mean of empirical Bayes
      (Smyth 2004, doi 10.2202/1544-6115.1027); d0 is fixed here, where he estimates it. Two values
      have a say of 1/5 in it, 16 one of 15/19.
    """
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    squares = np.bincount(index, centred(values, group, "zero") ** 2 + within, len(count))
    freedom = count - 1
    variance = squares / np.maximum(freedom, 1)
    if scale != "group":
        pooled = squares.sum() / max(freedom.sum(), 1)
        own = freedom / (PRIOR_FREEDOM + freedom) if scale == "shrunk" else 0.0
        variance = pooled + own * (variance - pooled)
    return np.where(count == 1, 1.0, np.sqrt(variance))[index]


def normalised(
    values: Float[np.ndarray, " K"],
    group: Int[np.ndarray, " K"],
    epsilon: float,
    singleton: str = "raw",
) -> Float[np.ndarray, " K"]:
    """``(x - mean) / (std + epsilon)`` within each group, with the unbiased std.

    A group of one has mean 0 and std 1 (``raw``: paper App. B, release) or advantage 0 (``zero``).
    """
    return centred(values, group, singleton) / (group_std(values, group) + epsilon)


def discounted_returns(
    rewards: Float[np.ndarray, "N T"], mask: Bool[np.ndarray, "N T"], gamma: float
) -> Float[np.ndarray, "N T"]:
    """``R_t = sum_{k >= t} gamma^(k - t) r_k`` (paper eq. 11), 0 in the padding."""
    returns = np.zeros_like(rewards)
    discount, zero = rewards.dtype.type(gamma), rewards.dtype.type(0)
    following = np.zeros(len(rewards), dtype=rewards.dtype)
    for turn in reversed(range(rewards.shape[1])):
        following = np.where(mask[:, turn], rewards[:, turn] + discount * following, zero)
        returns[:, turn] = following
    return returns
