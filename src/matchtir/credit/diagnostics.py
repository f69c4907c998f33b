"""What a reward and an estimator really pay for, measured on the trajectories of one iteration.

Every function returns a dictionary of numbers to log. A number that these trajectories do not
define, such as a correlation with a constant, is left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages import RewardBatch, centred, turn_groups
from matchtir.credit.rewards import Credit, Reward
from matchtir.types import CallStatus, ToolCall, ToolResult, Trajectory, Turn

# A call that resembles nothing: no tool has this name.
WRONG_CALL = ToolCall("__no_such_tool__", {})
_CALL_BUCKETS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10**9))


def diagnose(
    reward: Reward,
    trajectories: Sequence[Trajectory],
    credits: Sequence[Credit],
    batch: RewardBatch,
    advantages: Float[np.ndarray, "N T"],
) -> dict[str, float]:
    """Everything in this module."""
    return {
        **signal(batch, advantages),
        **success_correlation(batch, credits),
        **episode_length(batch, advantages),
        **singletons(batch, advantages),
        **duplicates(trajectories, credits),
        **reward_by_calls(batch, credits),
        **probes(reward, trajectories),
    }


def signal(batch: RewardBatch, advantages: Float[np.ndarray, "N T"]) -> dict[str, float]:
    """Share of groups whose rewards are all equal, and of those without any advantage at all."""
    if not len(batch.group):
        return {}
    _, group = np.unique(batch.group, return_inverse=True)
    spread = np.zeros(group.max() + 1)
    np.maximum.at(spread, group, np.abs(centred(batch.total, group, "zero")))
    largest = np.zeros(group.max() + 1)
    np.maximum.at(largest, group, np.abs(advantages).max(axis=1, initial=0.0))
    return {
        "groups_equal_reward": float((spread < 1e-9).mean()),
        "groups_no_advantage": float((largest < 1e-9).mean()),
    }


def success_correlation(batch: RewardBatch, credits: Sequence[Credit]) -> dict[str, float]:
    """Correlation of the reward of a calling turn, outcome apart, with the answer's score."""
    calling = batch.turn_mask & batch.has_calls
    outcome = np.array([credit.outcome for credit in credits])
    score = np.broadcast_to(outcome[:, None], calling.shape)[calling]
    return _correlation("turn_reward_success", batch.process_rewards[calling], score)


def episode_length(batch: RewardBatch, advantages: Float[np.ndarray, "N T"]) -> dict[str, float]:
    """What one more turn goes with, inside a group: in reward, and in mean advantage."""
    turns = batch.turn_mask.sum(axis=1)
    length = centred(turns.astype(float), batch.group, "zero")
    scale = float((length**2).sum())
    if scale == 0:
        return {}
    mean_advantage = advantages.sum(axis=1) / np.maximum(turns, 1)
    return {
        "reward_per_turn": float((length * batch.total).sum() / scale),
        "advantage_per_turn": float((length * mean_advantage).sum() / scale),
    }


def singletons(batch: RewardBatch, advantages: Float[np.ndarray, "N T"]) -> dict[str, float]:
    """Turns of an index that no other trajectory of the group reaches: share, mean advantage."""
    mask = batch.turn_mask
    if not mask.any():
        return {}
    _, index, count = np.unique(
        turn_groups(batch, "index")[mask], return_inverse=True, return_counts=True
    )
    alone = (count == 1)[index]
    result = {"singleton_share": float(alone.mean())}
    if alone.any():
        result["singleton_advantage"] = float(advantages[mask][alone].mean())
    return result


def duplicates(trajectories: Sequence[Trajectory], credits: Sequence[Credit]) -> dict[str, float]:
    """Calls that repeat an earlier call of their trajectory: share, and mean reward."""
    repeated: list[bool] = []
    rewards: list[float] = []
    for trajectory, credit in zip(trajectories, credits, strict=True):
        seen: set[str] = set()
        for call in trajectory.calls:
            written = "" if call.status is CallStatus.OK else call.text
            key = json.dumps([call.name, call.arguments, written], sort_keys=True)
            repeated.append(key in seen)
            seen.add(key)
        rewards.extend(credit.call_rewards.tolist())
    if not repeated:
        return {}
    result = {"duplicate_share": float(np.mean(repeated))}
    if any(repeated):
        result["duplicate_reward"] = float(np.mean(np.array(rewards)[np.array(repeated)]))
    return result


def reward_by_calls(batch: RewardBatch, credits: Sequence[Credit]) -> dict[str, float]:
    """Mean turn rewards of an episode, outcome apart, by its number of calls."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for process, credit in zip(batch.process_rewards.sum(axis=1), credits, strict=True):
        calls = len(credit.call_rewards)
        for low, high in _CALL_BUCKETS:
            if low <= calls <= high:
                name = f"{low}" if low == high else f"{low}-{high}" if high < 10**9 else f"{low}+"
                rewards[f"reward_of_{name}_calls"].append(float(process))
    return {name: float(np.mean(values)) for name, values in sorted(rewards.items())}


def probes(reward: Reward, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What the reward of an episode would gain by changes that help nobody, on average.

    ``gain_serialised``: by making its calls turn by turn as it did, rather than all in one turn
    (episodes with several calling turns); ``gain_duplicate``: by repeating its last calling turn;
    ``gain_wrong_call``: by one more turn with a call to no tool (both: episodes with calls).
    """
    several = [t for t in trajectories if sum(bool(turn.calls) for turn in t.turns) > 1]
    calling = [t for t in trajectories if t.calls]
    result = {}
    if several:
        gain = _totals(reward, several) - _totals(reward, [merged(t) for t in several])
        result["gain_serialised"] = float(gain.mean())
    if calling:
        before = _totals(reward, calling)
        repeated = _totals(reward, [with_turn(t, _last_calling(t)) for t in calling])
        wrong = Turn((), (), "", (WRONG_CALL,), (ToolResult(""),))
        lengthened = _totals(reward, [with_turn(t, wrong) for t in calling])
        result["gain_duplicate"] = float((repeated - before).mean())
        result["gain_wrong_call"] = float((lengthened - before).mean())
    return result


def merged(trajectory: Trajectory) -> Trajectory:
    """The same calls, all made in the first calling turn; later calling turns are gone."""
    calling = [turn for turn in trajectory.turns if turn.calls]
    if not calling:
        return trajectory
    everything = replace(calling[0], calls=trajectory.calls, results=trajectory.results)
    turns = tuple(
        everything if turn is calling[0] else turn
        for turn in trajectory.turns
        if turn is calling[0] or not turn.calls
    )
    return replace(trajectory, turns=turns)


def with_turn(trajectory: Trajectory, turn: Turn) -> Trajectory:
    """The trajectory with one more turn after its last calling one."""
    last = max((i for i, t in enumerate(trajectory.turns) if t.calls), default=-1)
    turns = trajectory.turns
    return replace(trajectory, turns=(*turns[: last + 1], turn, *turns[last + 1 :]))


def _last_calling(trajectory: Trajectory) -> Turn:
    return next(turn for turn in reversed(trajectory.turns) if turn.calls)


def _totals(reward: Reward, trajectories: Sequence[Trajectory]) -> Float[np.ndarray, " N"]:
    return np.array([credit.total for credit in reward(trajectories)])


def _correlation(
    name: str, left: Float[np.ndarray, " K"], right: Float[np.ndarray, " K"]
) -> dict[str, float]:
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return {}
    return {name: float(np.corrcoef(left, right)[0, 1])}
