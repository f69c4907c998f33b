"""Group statistics and discounted returns, without a loop over groups."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.utils.options import check_option

TURN_GROUPS = ("index", "kind_and_index", "state")
PRECISIONS = {"double": np.float64, "single": np.float32}


def check_normalisation(
    epsilon: float, singleton: str = "raw", precision: str = "double", gamma: float = 1.0
) -> None:
    """Raise ValueError for options that the functions of this module cannot use."""
    check_option("singleton", singleton, ("raw", "zero"))
    check_option("precision", precision, tuple(PRECISIONS))
    if epsilon <= 0:
        raise ValueError(f"epsilon={epsilon} must be positive")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma} must lie in [0, 1]")


def normalised(
    values: Float[np.ndarray, " K"],
    group: Int[np.ndarray, " K"],
    epsilon: float,
    singleton: str = "raw",
) -> Float[np.ndarray, " K"]:
    """``(x - mean) / (std + epsilon)`` within each group, with the unbiased std.

    A group of one has mean 0 and std 1 (``raw``: paper App. B, release) or advantage 0 (``zero``).
    Mean and differences are rounded to the precision of `values`, which matters where the std is
    small.
    """
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    mean = (np.bincount(index, values, len(count)) / count).astype(values.dtype)
    centred = values - mean[index]
    variance = np.bincount(index, centred**2, len(count)) / np.maximum(count - 1, 1)
    result = centred / (np.sqrt(variance) + epsilon)[index]
    alone = (count == 1)[index]
    return np.where(alone, values / (1.0 + epsilon) if singleton == "raw" else 0.0, result)


def centred(
    values: Float[np.ndarray, " K"], group: Int[np.ndarray, " K"], singleton: str = "raw"
) -> Float[np.ndarray, " K"]:
    """``x - mean`` within each group; a group of one keeps x (``raw``) or gets 0 (``zero``)."""
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    mean = np.bincount(index, values, len(count)) / count
    alone = (count == 1)[index]
    return np.where(alone, values if singleton == "raw" else 0.0, values - mean[index])


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


def turn_groups(batch: RewardBatch, kind: str) -> Int[np.ndarray, "N T"]:
    """Number of the set of turns that each turn is compared with.

    ``index``: turns of the group with the same index; ``kind_and_index``: those of them that call
    tools as this one does, and for turns without calls all such turns of the group, whatever their
    index; ``state``: turns of the group before which the same was known.

    Raises ValueError for ``state`` where the batch has no states.
    """
    turns = batch.turn_mask.shape[1]
    if kind == "state":
        if batch.states is None:
            raise ValueError("turn_groups=state needs a RewardBatch with states")
        return batch.states
    index = np.broadcast_to(np.arange(turns), batch.turn_mask.shape)
    if kind == "kind_and_index":
        index = np.where(batch.has_calls, index, turns)
    return np.unique(batch.group, return_inverse=True)[1][:, None] * (turns + 1) + index
