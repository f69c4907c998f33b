"""Advantages of other methods that the classes of `advantages` do not cover by an option."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from matchtir.credit.advantages import (
    DualAdvantage,
    RewardBatch,
    TrajectoryAdvantage,
    TurnAdvantage,
    turn_groups,
)
from matchtir.credit.normalisation import centred, check_normalisation, discounted_returns


@dataclass(frozen=True)
class MtGrpoAdvantage:
    """``A[i, t] = w sum_{k >= t} A_r[i, k] + A_o[i]`` (MT-GRPO, 2505.11821).

    ``A_o`` is the outcome, normalised over the group; ``A_r[i, k]`` the reward of calling turn k
    without the outcome, normalised over the trajectories of the group that call tools in turn k.
    The paper's formula has one turn; the sum over turns is that of 2604.02869. A turn without calls
    has no turn reward of its own (A_r = 0), as the paper's last turn has none.

    Args:
        turn_weight: w.
        epsilon, singleton: as in `TurnAdvantage`; the last also for the outcome of a group of one.
    """

    turn_weight: float = 1.0
    epsilon: float = 1e-6
    singleton: str = "zero"

    def __post_init__(self) -> None:
        check_normalisation(self.epsilon, self.singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        calling = batch.turn_mask & batch.has_calls
        process = replace(batch, turn_rewards=batch.process_rewards, turn_mask=calling)
        turn = TurnAdvantage(0.0, self.epsilon, self.singleton)(process)
        outcome = replace(batch, total=batch.outcome_reward)
        trajectory = TrajectoryAdvantage(self.epsilon, self.singleton)(outcome)
        return self.turn_weight * discounted_returns(turn, batch.turn_mask, 1.0) + trajectory


@dataclass(frozen=True)
class ShrinkageAdvantage(DualAdvantage):
    """``A[i, t] = A_g[i] + w(s) A_s[i, t]`` (the idea of AdaStep, 2610.03223).

    ``w(s) = 1 - E_a[Var(R | s, a)] / Var(R | s)`` is the share of the variance of the returns from
    state s that lies between different actions rather than within one: close to 0 where chance
    further down decides. Both variances are unbiased (pooled over actions; our choice, since with
    few trajectories the plain ratio calls chance a difference of actions), and w is held to [0, 1].
    Where w cannot be estimated, it is 1, as in the paper: one action only, or no action twice.

    Args:
        turn_groups: what counts as a state, see `turn_groups`. One seen once says nothing: A_s = 0.
        singleton: a group of one trajectory keeps its ``raw`` reward or gets ``zero``.
        other options: as in `DualAdvantage`.
    """

    gamma: float = 0.95
    singleton: str = "zero"
    turn_groups: str = "state"

    def turn(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """w(s) A_s; ValueError where the batch has no states or actions."""
        return self._shrinkage(batch) * TurnAdvantage.turn(replace(self, singleton="zero"), batch)

    def call_weight(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """As in `DualAdvantage`, times w(s)."""
        return self._shrinkage(batch) * super().call_weight(batch)

    def _shrinkage(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """w(s) of every turn."""
        if batch.actions is None:
            raise ValueError("ShrinkageAdvantage needs a RewardBatch with actions")
        mask = batch.turn_mask
        state = turn_groups(batch, self.turn_groups)[mask]
        weight = np.zeros(mask.shape)
        weight[mask] = shrinkage(self.returns(batch)[mask], state, batch.actions[mask])
        return weight


def shrinkage(
    returns: Float[np.ndarray, " K"], state: Int[np.ndarray, " K"], action: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Weight w(s) of the state of every turn."""
    _, state, visits = np.unique(state, return_inverse=True, return_counts=True)
    _, pair = np.unique(np.stack([state, action]), axis=1, return_inverse=True)
    total = np.bincount(state, centred(returns, state, "zero") ** 2, len(visits))
    within = np.bincount(state, centred(returns, pair, "zero") ** 2, len(visits))
    first = np.unique(pair, return_index=True)[1]
    actions = np.bincount(state[first], minlength=len(visits))
    known = (actions > 1) & (visits > actions) & (total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (within / (visits - actions)) / (total / (visits - 1))
    return np.where(known, np.clip(1.0 - ratio, 0.0, 1.0), 1.0)[state]
