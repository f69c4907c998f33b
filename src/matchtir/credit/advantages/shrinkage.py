"""The turn term, weighed by how much of its variation the actions explain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from matchtir.credit.advantages.batch import AdvantageParts, RewardBatch
from matchtir.credit.advantages.statistics import (
    TURN_GROUPS,
    discounted_returns,
    turn_groups,
)
from matchtir.credit.advantages.trajectory import TrajectoryAdvantage
from matchtir.credit.advantages.turn import TurnAdvantage
from matchtir.utils.options import check_option


class ShrinkageAdvantage:
    """``A[i, t] = A_g[i] + w(s) A_s[i, t]`` (the idea of AdaStep, 2610.03223).

    ``w(s) = 1 - E_a[Var(R | s, a)] / Var(R | s)`` is the share of the variance of the returns from
    state s that lies between different actions rather than within one: close to 0 where chance
    further down decides. Both variances are unbiased (pooled over actions; our choice, since with
    few trajectories the plain ratio calls chance a difference of actions), and w is held to [0, 1].
    Where w cannot be estimated, it is 1, as in the paper: one action only, or no action twice.

    Args:
        turn_groups: what counts as a state: ``state``, ``index`` or ``kind_and_index``, see
            `TurnAdvantage`.
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviations.
        singleton: a group of one trajectory keeps its ``raw`` reward or gets ``zero``.
    """

    def __init__(
        self,
        turn_groups: str = "state",
        gamma: float = 0.95,
        epsilon: float = 1e-6,
        singleton: str = "zero",
    ) -> None:
        check_option("turn_groups", turn_groups, TURN_GROUPS)
        self.turn_groups = turn_groups
        self.gamma = gamma
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)
        self.turn = TurnAdvantage(gamma, epsilon, "zero", turn_groups)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where the batch has no states or actions."""
        if batch.actions is None:
            raise ValueError("ShrinkageAdvantage needs a RewardBatch with actions")
        mask = batch.turn_mask
        returns = discounted_returns(batch.turn_rewards, mask, self.gamma)
        state = turn_groups(batch, self.turn_groups)
        weight = np.zeros(mask.shape)
        weight[mask] = shrinkage(returns[mask], state[mask], batch.actions[mask])
        return self.trajectory(batch) + weight * self.turn(batch)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t}, A_g and A_s; not the weight w(s)."""
        return replace(self.turn.parts(batch), trajectory=self.trajectory(batch))


def shrinkage(
    returns: Float[np.ndarray, " K"], state: Int[np.ndarray, " K"], action: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Weight w(s) of the state of every turn."""
    _, state, visits = np.unique(state, return_inverse=True, return_counts=True)
    _, pair = np.unique(np.stack([state, action]), axis=1, return_inverse=True)
    total = np.bincount(state, _deviations(returns, state) ** 2, len(visits))
    within = np.bincount(state, _deviations(returns, pair) ** 2, len(visits))
    first = np.unique(pair, return_index=True)[1]
    actions = np.bincount(state[first], minlength=len(visits))
    known = (actions > 1) & (visits > actions) & (total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (within / (visits - actions)) / (total / (visits - 1))
    return np.where(known, np.clip(1.0 - ratio, 0.0, 1.0), 1.0)[state]


def _deviations(
    values: Float[np.ndarray, " K"], group: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    return values - (np.bincount(group, values) / np.bincount(group))[group]
