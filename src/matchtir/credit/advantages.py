"""Advantages: from rewards of groups of trajectories to one number per turn (paper eq. 11)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from matchtir.credit.normalisation import (
    against_others,
    centred,
    check_normalisation,
    discounted_returns,
    group_std,
    normalised,
)
from matchtir.credit.rewards import Credit
from matchtir.types import Trajectory
from matchtir.utils.options import check_option

TURN_GROUPS = ("index", "kind_and_index", "state", "trajectory")
TRAJECTORY_SCALES = ("group", "batch", "none")


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Rewards of N trajectories, padded to T turns; padding is False in `turn_mask`."""

    turn_rewards: Float[np.ndarray, "N T"]
    turn_mask: Bool[np.ndarray, "N T"]
    group: Int[np.ndarray, " N"]  # trajectories of one task have the same number
    has_calls: Bool[np.ndarray, "N T"]
    total: Float[np.ndarray, " N"]  # R_i
    outcome_reward: Float[np.ndarray, " N"]  # of the last turn's reward, for the answer
    states: Int[np.ndarray, "N T"] | None = None  # what was known before the turn, see `turn_keys`
    actions: Int[np.ndarray, "N T"] | None = None  # what was done in the turn
    call_variance: Float[np.ndarray, "N T"] | None = None  # of the rewards of a turn's calls

    @property
    def process_rewards(self) -> Float[np.ndarray, "N T"]:
        """Turn rewards without what was paid for the answer, in the last turn."""
        count = self.turn_mask.sum(axis=1, keepdims=True)
        last = np.arange(self.turn_mask.shape[1]) == count - 1
        return self.turn_rewards - np.where(last, self.outcome_reward[:, None], 0.0)

    @staticmethod
    def from_credits(
        credits: Sequence[Credit], trajectories: Sequence[Trajectory], group: Sequence[int]
    ) -> RewardBatch:
        """Stack credits; `group[i]` names the group of trajectory i.

        Raises ValueError where the three sequences differ in length.
        """
        lengths = np.array([len(credit.turn_rewards) for credit in credits], dtype=int)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        rewards, has_calls = np.zeros(mask.shape), np.zeros_like(mask)
        states, actions = np.full(mask.shape, -1), np.full(mask.shape, -1)
        numbers: dict[Hashable, int] = {}
        rows = zip(credits, trajectories, group, strict=True)
        for row, (credit, trajectory, task) in enumerate(rows):
            here = row, slice(lengths[row])
            rewards[here] = credit.turn_rewards
            has_calls[here] = [bool(turn.calls) for turn in trajectory.turns]
            states[here], actions[here] = turn_keys(trajectory, task, numbers)
        total = np.array([credit.total for credit in credits], dtype=float)
        outcome = np.array([credit.outcome_reward for credit in credits], dtype=float)
        number = np.asarray(group, dtype=int)
        return RewardBatch(rewards, mask, number, has_calls, total, outcome, states, actions)


def turn_keys(
    trajectory: Trajectory, group: int, numbers: dict[Hashable, int]
) -> tuple[list[int], list[int]]:
    """Number of the state before every turn and of its action, equal ones alike.

    The state before a turn is its group, the set of calls made so far, each with its result, and
    what a user has replied: tool sets that answer the same call alike leave a policy that knows the
    same with the same choices, whatever the order in which it learned it. (GiGPO, 2505.10978, takes
    the observation of an environment with a visible state; a conversation has none, so this is our
    reading.)
    The action is the turn's set of calls, or, without calls, its whole text.

    Args:
        numbers: those of states and actions met before; new ones are added.
    """
    known: frozenset[Hashable] = frozenset()
    replies: tuple[str, ...] = ()
    states, actions = [], []
    for turn in trajectory.turns:
        # The text as written: cheap, and another spelling of a call only means fewer comparisons.
        calls = [call.text or (call.name, repr(call.arguments)) for call in turn.calls]
        action = frozenset(calls) if calls else turn.text
        states.append(numbers.setdefault(("state", group, known, replies), len(numbers)))
        actions.append(numbers.setdefault(("action", action), len(numbers)))
        known = known.union(zip(calls, (result.output for result in turn.results), strict=False))
        replies += (turn.reply,) if turn.reply else ()
    return states, actions


def turn_groups(batch: RewardBatch, kind: str) -> Int[np.ndarray, "N T"]:
    """Number of the set of turns that each turn is compared with.

    ``index``: turns of the group with the same index; ``kind_and_index``: those of them that call
    tools as this one does, and for turns without calls all such turns of the group, whatever their
    index; ``state``: turns of the group before which the same was known; ``trajectory``: the turns
    of the same trajectory.

    Raises ValueError for ``state`` where the batch has no states.
    """
    turns = batch.turn_mask.shape[1]
    if kind == "state":
        if batch.states is None:
            raise ValueError("turn_groups=state needs a RewardBatch with states")
        return batch.states
    if kind == "trajectory":
        return np.broadcast_to(np.arange(len(batch.group))[:, None], batch.turn_mask.shape)
    index = np.broadcast_to(np.arange(turns), batch.turn_mask.shape)
    if kind == "kind_and_index":
        index = np.where(batch.has_calls, index, turns)
    return np.unique(batch.group, return_inverse=True)[1][:, None] * (turns + 1) + index


def reached(batch: RewardBatch) -> Bool[np.ndarray, "N T"]:
    """Turns that some trajectory of the group has."""
    _, index = np.unique(batch.group, return_inverse=True)
    longest = np.zeros(len(index), dtype=int)
    np.maximum.at(longest, index, batch.turn_mask.sum(axis=1))
    return np.arange(batch.turn_mask.shape[1]) < longest[index][:, None]


# ---------------------------------------------------------------- advantages


@runtime_checkable
class Advantage(Protocol):
    """One advantage per turn, zero where `turn_mask` is False.

    It may have the methods of `PARTS`, which are traced, and a `trajectory_weight`; with
    `level` "call" it has `call_weight`, and calls get their own (`credit.calls`).
    """

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]: ...


# What an advantage may be made of, unweighted: its methods, and the names in traces.
PARTS = {
    "returns": "return",  # R_{i,t}
    "trajectory": "trajectory_advantage",  # A_g
    "turn": "turn_advantage",  # A_l
}


def parts_of(advantage: Advantage, batch: RewardBatch) -> dict[str, Float[np.ndarray, "N T"]]:
    """The parts that an advantage has, by their names in traces."""
    has = {method: name for method, name in PARTS.items() if hasattr(advantage, method)}
    return {name: getattr(advantage, method)(batch) for method, name in has.items()}


@dataclass(frozen=True)
class TrajectoryAdvantage:
    """One advantage for all turns: ``A[i, t] = (R_i - baseline) / scale``.

    * GRPO, the paper's A_g: baseline and scale ``group``, ``(R_i - mean) / (std + epsilon)``.
    * Dr. GRPO (2503.20783): scale ``none``, since dividing by the std weighs a task by how uniform
      its rewards are. The paper also drops the division by length (``loss=dr_grpo``).
    * RLOO (2402.14740): baseline ``others``, scale ``none``; a baseline that does not depend on the
      trajectory it is subtracted from, ``G / (G - 1)`` times the centred reward.
    * REINFORCE++ (2501.03262): scale ``batch``, ``x_i = R_i - baseline`` normalised over the batch,
      baseline ``none`` or ``group``. The paper normalises over tokens, after taking a KL penalty
      from the reward. Here each trajectory counts once, whatever its length, and the KL stays in
      the loss.

    Args:
        epsilon: added to the unbiased standard deviation.
        singleton: a group of one keeps its ``raw`` reward (paper, release) or gets ``zero``.
        baseline: mean of the ``group``, of its ``others``, or ``none``.
        scale: std of the ``group``, of the ``batch``, or ``none``.
    """

    epsilon: float = 1e-6
    singleton: str = "raw"
    baseline: str = "group"
    scale: str = "group"

    def __post_init__(self) -> None:
        check_normalisation(self.epsilon, self.singleton)
        check_option("baseline", self.baseline, ("group", "others", "none"))
        check_option("scale", self.scale, TRAJECTORY_SCALES)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        advantage, group = batch.total, batch.group
        if self.baseline == "group":
            advantage = centred(advantage, group, self.singleton)
        elif self.baseline == "others":
            advantage = against_others(advantage, group, np.arange(len(group)), self.singleton)
        if self.scale == "group":
            advantage = advantage / (group_std(batch.total, group) + self.epsilon)
        elif self.scale == "batch":
            everyone = np.zeros_like(group)
            advantage = normalised(advantage, everyone, self.epsilon, self.singleton)
        return np.where(batch.turn_mask, advantage[:, None], 0.0)

    trajectory = __call__  # A_g, one of `PARTS`


@dataclass(frozen=True)
class TurnAdvantage:
    """``A[i, t] = (R_{i,t} - mean) / (std + epsilon)``, R the discounted return (paper eq. 11).

    Mean and std are over the trajectories of the group that reach turn t. A turn that only one
    of them reaches has mean 0 and std 1 there, so that its raw return becomes its advantage: a
    bonus for longer episodes, which ``singleton=zero`` takes away.

    Args:
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviation.
        singleton: ``raw`` (paper, release) or ``zero``.
        turn_groups: what a turn is compared with, see `turn_groups`. The only turn of a trajectory
            has advantage 0 among its own.
        turn_scale: std of the turn's ``group``, of the ``batch``, between the two (``shrunk``), see
            `group_std`, or ``none``.
        turn_baseline: mean of the ``group``, which the turn itself is part of; of the ``others`` in
            it; or of all other attempts at the task (``absorbing``, with turn_groups=index): those
            that stopped before turn t count with the return 0 of an absorbing state, also in
            the std. The last two leave the policy gradient unbiased (docs/method.md).
        level: what has one advantage, the ``turn`` or each ``call``, see `credit.calls`.
    """

    gamma: float = 0.9
    epsilon: float = 1e-6
    singleton: str = "raw"
    turn_groups: str = "index"
    turn_scale: str = "group"
    turn_baseline: str = "group"
    level: str = "turn"

    def __post_init__(self) -> None:
        check_normalisation(self.epsilon, self.singleton, self.gamma)
        check_option("turn_groups", self.turn_groups, TURN_GROUPS)
        check_option("turn_scale", self.turn_scale, ("group", "batch", "shrunk", "none"))
        check_option("turn_baseline", self.turn_baseline, ("group", "others", "absorbing"))
        check_option("level", self.level, ("turn", "call"))
        if self.turn_baseline == "others" and self.turn_groups == "trajectory":
            raise ValueError("turn_baseline=others: turn_groups=trajectory compares with no others")
        if self.turn_baseline == "absorbing" and self.turn_groups != "index":
            raise ValueError(
                f"turn_baseline=absorbing needs turn_groups=index, not {self.turn_groups}"
            )

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where ``state`` finds no states in the batch."""
        return self.turn(batch)

    def returns(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """R_{i,t}: the discounted return from every turn on."""
        return discounted_returns(batch.turn_rewards, batch.turn_mask, self.gamma)

    def turn(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """A_l."""
        counted = self._counted(batch)
        groups = turn_groups(batch, self.turn_groups)[counted]
        returns = self.returns(batch)[counted]
        if self.turn_baseline == "group":
            singleton: str = "zero" if self.turn_groups == "trajectory" else self.singleton
            difference = centred(returns, groups, singleton)
        else:
            own = np.nonzero(counted)[0]
            difference = against_others(returns, groups, own, self.singleton)
        found = np.zeros(counted.shape)
        found[counted] = difference
        return np.where(batch.turn_mask, found / self._scale(batch), 0.0)

    def call_weight(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """Advantage per unit by which the reward of a call exceeds the mean of its turn.

        1 / (std + epsilon), the std being that of returns with a call's reward in place of the
        turn's: where all turns earn the same, differences of their calls are not blown up.

        Raises:
            ValueError: the batch has no variances of calls.
        """
        if batch.call_variance is None:
            raise ValueError("level=call needs a RewardBatch with call_variance")
        return np.where(batch.turn_mask, 1.0 / self._scale(batch, batch.call_variance), 0.0)

    def _counted(self, batch: RewardBatch) -> Bool[np.ndarray, "N T"]:
        """The turns of the baseline; with ``absorbing`` padding up to the group's longest, too."""
        return reached(batch) if self.turn_baseline == "absorbing" else batch.turn_mask

    def _scale(
        self, batch: RewardBatch, within: Float[np.ndarray, "N T"] | None = None
    ) -> Float[np.ndarray, "N T"]:
        """What a difference of returns is divided by; `within`: see `group_std`."""
        scale, counted = np.ones(batch.turn_mask.shape), self._counted(batch)
        if self.turn_scale != "none":
            groups = turn_groups(batch, self.turn_groups)[counted]
            variance = 0.0 if within is None else within[counted]
            std = group_std(self.returns(batch)[counted], groups, self.turn_scale, variance)
            scale[counted] = std + self.epsilon
        return scale


@dataclass(frozen=True)
class DualAdvantage(TurnAdvantage):
    """``A[i, t] = w_g A_g[i] + w_l A_l[i, t]``: trajectory and turn level, as the paper has it.

    * GiGPO (2505.10978): ``turn_groups=state``, gamma 0.95, ``singleton=zero``; turns taken from
      the same state against each other, where a state seen once says nothing.
    * Hybrid GTPO (2604.02869, returns of 2511.14846): ``trajectory_reward=outcome``, w_g 0.3,
      ``singleton=zero``. The paper pays the outcome one discount step after the last turn; here it
      is part of the last turn's reward.
    * The sum of paper App. C.1: ``turn_groups=trajectory``. Its product is
      ``A[i, t] = (1 + w_l sign(A_g[i]) A_l[i, t]) A_g[i]``: the sign gives better turns more of the
      praise and less of the blame. ``|A_l|`` is below the square root of the number of turns, so
      that the factor is positive up to 100 turns.

    Args:
        gamma, epsilon, singleton, turn_groups, turn_scale, turn_baseline, level: as in
            `TurnAdvantage`; epsilon and singleton also for A_g.
        trajectory_weight: w_g, of the sum; 1 in the paper, 1/2 in the release.
        turn_weight: w_l; 1/2 in the release. None: the paper's, 1 of the sum, 0.1 of the product.
        combination: ``sum`` or ``product``.
        trajectory_reward: what A_g normalises: the ``total`` R_i, or the ``outcome`` alone.
        trajectory_scale: what A_g is divided by, see `TrajectoryAdvantage`.
    """

    trajectory_weight: float = 1.0
    turn_weight: float | None = None
    combination: str = "sum"
    trajectory_reward: str = "total"
    trajectory_scale: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("combination", self.combination, ("sum", "product"))
        check_option("trajectory_reward", self.trajectory_reward, ("total", "outcome"))
        check_option("trajectory_scale", self.trajectory_scale, TRAJECTORY_SCALES)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where ``state`` finds no states in the batch."""
        trajectory, turn = self.trajectory(batch), self._weight * self.turn(batch)
        if self.combination == "product":
            return (1.0 + np.sign(trajectory) * turn) * trajectory
        return self.trajectory_weight * trajectory + turn

    @property
    def _weight(self) -> float:
        """w_l."""
        if self.turn_weight is None:
            return 0.1 if self.combination == "product" else 1.0
        return self.turn_weight

    def call_weight(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """As in `TurnAdvantage`, times what A_l is multiplied by."""
        weight = self._weight * super().call_weight(batch)
        return weight * np.abs(self.trajectory(batch)) if self.combination == "product" else weight

    def trajectory(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """A_g."""
        if self.trajectory_reward == "outcome":
            batch = replace(batch, total=batch.outcome_reward)
        scale = self.trajectory_scale
        return TrajectoryAdvantage(self.epsilon, self.singleton, scale=scale)(batch)
