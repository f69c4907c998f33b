"""Rewards of many trajectories side by side, and statistics over groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from matchtir.credit.advantages.states import TurnKeys
from matchtir.credit.rewards import Credit
from matchtir.types import Trajectory


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Rewards of N trajectories, padded to T turns; padding is False in `turn_mask`."""

    turn_rewards: Float[np.ndarray, "N T"]
    turn_mask: Bool[np.ndarray, "N T"]
    group: Int[np.ndarray, " N"]  # trajectories of one task have the same number
    has_calls: Bool[np.ndarray, "N T"]
    total: Float[np.ndarray, " N"]  # R_i
    outcome: Float[np.ndarray, " N"]  # the part of the last turn's reward paid for the answer
    states: Int[np.ndarray, "N T"] | None = None  # what was known before the turn, see `TurnKeys`
    actions: Int[np.ndarray, "N T"] | None = None  # what was done in the turn

    @property
    def last_turn(self) -> Bool[np.ndarray, "N T"]:
        """The last turn of every trajectory that has one."""
        count = self.turn_mask.sum(axis=1, keepdims=True)
        return np.arange(self.turn_mask.shape[1])[None, :] == count - 1

    @property
    def process_rewards(self) -> Float[np.ndarray, "N T"]:
        """Turn rewards without what was paid for the answer."""
        return self.turn_rewards - np.where(self.last_turn, self.outcome[:, None], 0.0)

    @staticmethod
    def from_credits(
        credits: Sequence[Credit], trajectories: Sequence[Trajectory], group: Sequence[int]
    ) -> RewardBatch:
        """Stack credits; `group[i]` names the group of trajectory i.

        Raises ValueError where the three sequences differ in length.
        """
        if not len(credits) == len(trajectories) == len(group):
            raise ValueError(
                f"{len(credits)} credits, {len(trajectories)} trajectories and {len(group)} group "
                "numbers: one of each is needed"
            )
        turns = max((len(credit.turn_rewards) for credit in credits), default=0)
        rewards = np.zeros((len(credits), turns))
        mask = np.zeros((len(credits), turns), dtype=bool)
        has_calls = np.zeros((len(credits), turns), dtype=bool)
        states, actions = np.full_like(mask, -1, dtype=np.int64), np.full_like(mask, -1, np.int64)
        keys = TurnKeys()
        for row, (credit, trajectory) in enumerate(zip(credits, trajectories, strict=True)):
            length = len(credit.turn_rewards)
            rewards[row, :length] = credit.turn_rewards
            mask[row, :length] = True
            has_calls[row, :length] = [bool(turn.calls) for turn in trajectory.turns]
            states[row, :length], actions[row, :length] = keys(trajectory, group[row])
        return RewardBatch(
            rewards,
            mask,
            np.asarray(group, dtype=np.int64),
            has_calls,
            np.array([credit.total for credit in credits], dtype=np.float64),
            np.array([credit.outcome_reward for credit in credits], dtype=np.float64),
            states,
            actions,
        )


@runtime_checkable
class Advantage(Protocol):
    """One advantage per turn, zero where `turn_mask` is False."""

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]: ...


@dataclass(frozen=True, slots=True)
class AdvantageParts:
    """What an advantage is made of, unweighted, for whoever looks at it; None: no such part."""

    returns: Float[np.ndarray, "N T"] | None = None  # R_{i,t}
    trajectory: Float[np.ndarray, "N T"] | None = None  # A_g
    turn: Float[np.ndarray, "N T"] | None = None  # A_l


@runtime_checkable
class PartedAdvantage(Advantage, Protocol):
    """An advantage that shows its parts."""

    def parts(self, batch: RewardBatch) -> AdvantageParts: ...


def parts_of(advantage: Advantage, batch: RewardBatch) -> AdvantageParts:
    """The parts of an advantage, all None where it shows none."""
    return advantage.parts(batch) if isinstance(advantage, PartedAdvantage) else AdvantageParts()
