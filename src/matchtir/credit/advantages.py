"""Advantages: from rewards of groups of trajectories to one number per turn (paper eq. 11)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from matchtir.credit.rewards import Credit
from matchtir.types import ToolCall, Trajectory
from matchtir.utils.options import check_option

TURN_GROUPS = ("index", "kind_and_index", "state")


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


class TurnKeys:
    """Numbers the states and actions of trajectories, equal ones alike.

    The state before a turn is its group and the set of calls made so far, each with its result:
    tool sets that answer the same call alike leave a policy that knows the same with the same
    choices, whatever the order in which it learned it. (GiGPO, 2505.10978, takes the observation
    of an environment with a visible state; a conversation has none, so this is our reading.)
    The action is the turn's set of calls, or, without calls, its whole text.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, trajectory: Trajectory, group: int) -> tuple[list[int], list[int]]:
        """Number of the state and of the action of every turn."""
        known: frozenset[Hashable] = frozenset()
        states, actions = [], []
        for turn in trajectory.turns:
            calls = [_call_key(call) for call in turn.calls]
            states.append(self._number(("state", group, known)))
            actions.append(self._number(("action", frozenset(calls) if calls else turn.text)))
            outputs = (result.output for result in turn.results)
            known = known.union(zip(calls, outputs, strict=False))
        return states, actions

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _call_key(call: ToolCall) -> Hashable:
    # The text as written: cheap, and a different spelling of a call only means fewer comparisons.
    return call.text or (call.name, repr(call.arguments))


# ---------------------------------------------------------------- statistics without loops


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


def spread(
    values: Float[np.ndarray, " K"], group: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Unbiased standard deviation of the group of each value; 1 for a group of one."""
    _, index, count = np.unique(group, return_inverse=True, return_counts=True)
    squares = np.bincount(index, centred(values, group) ** 2, len(count))
    return np.where(count == 1, 1.0, np.sqrt(squares / np.maximum(count - 1, 1)))[index]


def normalised(
    values: Float[np.ndarray, " K"],
    group: Int[np.ndarray, " K"],
    epsilon: float,
    singleton: str = "raw",
) -> Float[np.ndarray, " K"]:
    """``(x - mean) / (std + epsilon)`` within each group, with the unbiased std.

    A group of one has mean 0 and std 1 (``raw``: paper App. B, release) or advantage 0 (``zero``).
    """
    return centred(values, group, singleton) / (spread(values, group) + epsilon)


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


# ---------------------------------------------------------------- advantages


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


def parts_of(advantage: Advantage, batch: RewardBatch) -> AdvantageParts:
    """What the `parts` of an advantage are, all None where it has no such method."""
    parts = getattr(advantage, "parts", None)
    return AdvantageParts() if parts is None else parts(batch)


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

    def __init__(
        self,
        epsilon: float = 1e-6,
        singleton: str = "raw",
        baseline: str = "group",
        scale: str = "group",
    ) -> None:
        check_normalisation(epsilon, singleton)
        check_option("baseline", baseline, ("group", "others", "none"))
        check_option("scale", scale, ("group", "batch", "none"))
        self.epsilon = epsilon
        self.singleton = singleton
        self.baseline = baseline
        self.scale = scale

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        advantage = batch.total
        if self.baseline != "none":
            advantage = centred(batch.total, batch.group, self.singleton)
        if self.baseline == "others":
            _, index, count = np.unique(batch.group, return_inverse=True, return_counts=True)
            advantage = advantage * (count / np.maximum(count - 1, 1))[index]
        if self.scale == "group":
            advantage = advantage / (spread(batch.total, batch.group) + self.epsilon)
        elif self.scale == "batch":
            everyone = np.zeros_like(batch.group)
            advantage = normalised(advantage, everyone, self.epsilon, self.singleton)
        return np.where(batch.turn_mask, advantage[:, None], 0.0)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """A_g alone."""
        return AdvantageParts(trajectory=self(batch))


class TurnAdvantage:
    """``A[i, t] = (R_{i,t} - mean) / (std + epsilon)``, R the discounted return (paper eq. 11).

    Mean and std are over the trajectories of the group that reach turn t. A turn that only one
    of them reaches has mean 0 and std 1 there, so that its raw return becomes its advantage: a
    bonus for longer episodes, which ``singleton=zero`` takes away.

    Args:
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviation.
        singleton: ``raw`` (paper, release) or ``zero``.
        turn_groups: ``index`` compares turns of equal index (paper); ``kind_and_index`` compares
            calling turns of equal index, and answers with answers; ``state`` turns before which
            the same was known.
    """

    def __init__(
        self,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
        turn_groups: str = "index",
    ) -> None:
        check_normalisation(epsilon, singleton, gamma)
        check_option("turn_groups", turn_groups, TURN_GROUPS)
        self.gamma = gamma
        self.epsilon = epsilon
        self.singleton = singleton
        self.turn_groups = turn_groups

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where ``state`` finds no states in the batch."""
        return self._normalise(batch, self.returns(batch))

    def returns(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """The discounted return R_{i,t} from every turn on."""
        return discounted_returns(batch.turn_rewards, batch.turn_mask, self.gamma)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t} and A_l."""
        returns = self.returns(batch)
        return AdvantageParts(returns=returns, turn=self._normalise(batch, returns))

    def _normalise(
        self, batch: RewardBatch, returns: Float[np.ndarray, "N T"]
    ) -> Float[np.ndarray, "N T"]:
        mask = batch.turn_mask
        groups = turn_groups(batch, self.turn_groups)
        advantage = np.zeros(mask.shape)
        advantage[mask] = normalised(returns[mask], groups[mask], self.epsilon, self.singleton)
        return advantage


class DualAdvantage:
    """``A[i, t] = w_g A_g[i] + w_l A_l[i, t]``: trajectory and turn level, as the paper has it.

    With ``turn_groups=state``, gamma 0.95 and ``singleton=zero`` it is GiGPO (2505.10978): turns
    taken from the same state against each other, where a state seen once says nothing.

    Args:
        trajectory_weight: w_g; 1 in the paper, 1/2 in the release.
        turn_weight: w_l; 1 in the paper, 1/2 in the release.
        gamma, epsilon, singleton, turn_groups: as in `TurnAdvantage`.
    """

    def __init__(
        self,
        trajectory_weight: float = 1.0,
        turn_weight: float = 1.0,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
        turn_groups: str = "index",
    ) -> None:
        self.trajectory_weight = trajectory_weight
        self.turn_weight = turn_weight
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)
        self.turn = TurnAdvantage(gamma, epsilon, singleton, turn_groups)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        return self.trajectory_weight * self.trajectory(batch) + self.turn_weight * self.turn(batch)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t}, A_g and A_l."""
        return replace(self.turn.parts(batch), trajectory=self.trajectory(batch))
