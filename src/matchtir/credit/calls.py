"""Credit per call: the tokens of a call get what that call earned beside others of its turn.

    A[i, t, k] = A[i, t] + w[i, t] (r_k - mean of r over the calls of turn t)

r_k is the matched reward of call k, and w what a difference of the return R_{i,t} is multiplied by
in A[i, t]. With turn_reduction=mean this puts r_k where the reward of the turn stood; with sum that
would be m r_k for m calls, and the factor m is left out. Over the calls of a turn the mean of
A[i, t, k] is A[i, t], which reasoning, answer and what is between calls keep. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from matchtir.credit.advantages import RewardBatch
from matchtir.credit.rewards import Credit
from matchtir.types import Trajectory


def turn_of_calls(trajectory: Trajectory) -> Int[np.ndarray, " m"]:
    """The turn of every call."""
    return np.repeat(np.arange(len(trajectory.turns)), [len(t.calls) for t in trajectory.turns])


def of_turns(values: Float[np.ndarray, " m"], trajectory: Trajectory) -> Float[np.ndarray, " T"]:
    """The mean over the calls of each turn; 0 without calls."""
    turn, turns = turn_of_calls(trajectory), len(trajectory.turns)
    return np.bincount(turn, values, turns) / np.maximum(np.bincount(turn, minlength=turns), 1)


def deviations(credit: Credit, trajectory: Trajectory) -> Float[np.ndarray, " m"]:
    """Reward of every call minus the mean over the calls of its turn."""
    rewards = credit.call_rewards
    return rewards - of_turns(rewards, trajectory)[turn_of_calls(trajectory)]


def with_call_variance(
    batch: RewardBatch, credits: Sequence[Credit], trajectories: Sequence[Trajectory]
) -> RewardBatch:
    """The batch with the mean squared deviation of each turn's calls, which `call_weight` needs."""
    variance = np.zeros(batch.turn_mask.shape)
    for row, (credit, trajectory) in enumerate(zip(credits, trajectories, strict=True)):
        squares = deviations(credit, trajectory) ** 2
        variance[row, : len(trajectory.turns)] = of_turns(squares, trajectory)
    return replace(batch, call_variance=variance)


def call_advantages(
    advantages: Float[np.ndarray, "N T"],
    weight: Float[np.ndarray, "N T"],
    credits: Sequence[Credit],
    trajectories: Sequence[Trajectory],
) -> list[Float[np.ndarray, " _"]]:
    """A[i, t, k] for the calls of each trajectory, in order."""
    found = []
    for row, (credit, trajectory) in enumerate(zip(credits, trajectories, strict=True)):
        turn = turn_of_calls(trajectory)
        found.append(advantages[row, turn] + weight[row, turn] * deviations(credit, trajectory))
    return found
