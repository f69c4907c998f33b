"""Advantages of other methods that the classes of `advantages` do not cover by an option."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from matchtir.credit.advantages import (
    AdvantageParts,
    DualAdvantage,
    RewardBatch,
    TrajectoryAdvantage,
    TurnAdvantage,
    centred,
    check_normalisation,
    discounted_returns,
    normalised,
    turn_groups,
)
from matchtir.utils.options import check_option


class IntraTrajectoryAdvantage:
    """The trajectory advantage, shifted or scaled by how a turn compares with its fellows.

    With ``l[i, t]`` the discounted return of turn t, normalised over the turns of trajectory i
    (0 for a trajectory of one turn), paper App. C.1::

        product:  A[i, t] = (1 + w_l sign(A_g[i]) l[i, t]) A_g[i]      w_l = 0.1
        sum:      A[i, t] = w_g A_g[i] + w_l l[i, t]                   w_g = w_l = 1

    The sign gives better turns more of the praise and less of the blame. ``|l|`` is below the
    square root of the number of turns, so that the factor is positive up to 100 turns.

    Args:
        combination: ``product`` or ``sum``.
        trajectory_weight: w_g, of the sum.
        turn_weight: w_l; None for the paper's.
        gamma, epsilon: as in `TurnAdvantage`.
        singleton: a group of one keeps its ``raw`` reward (paper) or gets ``zero``.
    """

    def __init__(
        self,
        combination: str = "product",
        trajectory_weight: float = 1.0,
        turn_weight: float | None = None,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
    ) -> None:
        check_option("combination", combination, ("product", "sum"))
        check_normalisation(epsilon, gamma=gamma)
        self.product = combination == "product"
        self.trajectory_weight = trajectory_weight
        paper_weight = 0.1 if self.product else 1.0
        self.turn_weight = paper_weight if turn_weight is None else turn_weight
        self.gamma = gamma
        self.epsilon = epsilon
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        mask = batch.turn_mask
        returns = discounted_returns(batch.turn_rewards, mask, self.gamma)
        own = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
        turn = np.zeros(mask.shape)
        turn[mask] = self.turn_weight * normalised(returns[mask], own[mask], self.epsilon, "zero")
        trajectory = self.trajectory(batch)
        if self.product:
            return (1.0 + np.sign(trajectory) * turn) * trajectory
        return self.trajectory_weight * trajectory + turn


class GtpoHybridAdvantage(DualAdvantage):
    """``A[i, t] = w_o A_o[i] + A_l[i, t]`` (hybrid GTPO of 2604.02869, returns of 2511.14846).

    ``A_l`` is that of `TurnAdvantage`, ``A_o`` the outcome, normalised over the group. The paper
    pays the outcome one discount step after the last turn; here it is part of the last turn's
    reward. `parts` has R_{i,t}, A_o and A_l.

    Args:
        outcome_weight: w_o; 0.3 in the paper.
        gamma, epsilon, singleton: as in `TurnAdvantage`; the last also for the outcome of a group
            of one.
    """

    def __init__(
        self,
        outcome_weight: float = 0.3,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "zero",
    ) -> None:
        super().__init__(outcome_weight, 1.0, gamma, epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        return super().__call__(replace(batch, total=batch.outcome))

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t}, A_o and A_l."""
        return super().parts(replace(batch, total=batch.outcome))


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

    def __init__(
        self, turn_weight: float = 1.0, epsilon: float = 1e-6, singleton: str = "zero"
    ) -> None:
        self.turn_weight = turn_weight
        self.outcome = TrajectoryAdvantage(epsilon, singleton)
        self.reward = TurnAdvantage(0.0, epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        calling = batch.turn_mask & batch.has_calls
        rewards = replace(batch, turn_rewards=batch.process_rewards, turn_mask=calling)
        following = discounted_returns(self.reward(rewards), batch.turn_mask, 1.0)
        outcome = self.outcome(replace(batch, total=batch.outcome))
        return self.turn_weight * following + outcome


class ShrinkageAdvantage(DualAdvantage):
    """``A[i, t] = A_g[i] + w(s) A_s[i, t]`` (the idea of AdaStep, 2610.03223).

    ``w(s) = 1 - E_a[Var(R | s, a)] / Var(R | s)`` is the share of the variance of the returns from
    state s that lies between different actions rather than within one: close to 0 where chance
    further down decides. Both variances are unbiased (pooled over actions; our choice, since with
    few trajectories the plain ratio calls chance a difference of actions), and w is held to [0, 1].
    Where w cannot be estimated, it is 1, as in the paper: one action only, or no action twice.
    `parts` has R_{i,t}, A_g and A_s; not the weight.

    Args:
        turn_groups: what counts as a state: ``state``, ``index`` or ``kind_and_index``, see
            `TurnAdvantage`. A state seen once says nothing: A_s = 0.
        gamma, epsilon: as in `TurnAdvantage`.
        singleton: a group of one trajectory keeps its ``raw`` reward or gets ``zero``.
    """

    def __init__(
        self,
        turn_groups: str = "state",
        gamma: float = 0.95,
        epsilon: float = 1e-6,
        singleton: str = "zero",
    ) -> None:
        super().__init__(1.0, 1.0, gamma, epsilon, "zero", turn_groups)
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where the batch has no states or actions."""
        if batch.actions is None:
            raise ValueError("ShrinkageAdvantage needs a RewardBatch with actions")
        mask = batch.turn_mask
        returns = self.turn.returns(batch)
        state = turn_groups(batch, self.turn.turn_groups)
        weight = np.zeros(mask.shape)
        weight[mask] = shrinkage(returns[mask], state[mask], batch.actions[mask])
        return self.trajectory(batch) + weight * self.turn(batch)


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
