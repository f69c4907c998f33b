"""What a reward and an estimator really pay for, measured on the trajectories of one iteration.

Every function returns a dictionary of numbers to log. A number that these trajectories do not
define, such as a correlation with a constant, is left out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
from jaxtyping import Bool, Float

from matchtir.credit.advantages import RewardBatch, turn_groups
from matchtir.credit.normalisation import ZERO, centred
from matchtir.credit.rewards import Credit, Reward
from matchtir.types import CallStatus, SpanKind, ToolCall, ToolResult, Trajectory, Turn

Sums = dict[str, dict[str, float]]  # by place and name

TURNS, SCENARIOS = 10, 8  # at most so many have numbers of their own
# A call that resembles nothing: no tool has this name.
WRONG_TURN = Turn((), (), "", (ToolCall("__no_such_tool__", {}),), (ToolResult(""),))
_CALL_BUCKETS = {"1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-8": (5, 8), "9+": (9, np.inf)}


def diagnose(
    reward: Reward,
    trajectories: Sequence[Trajectory],
    credits: Sequence[Credit],
    batch: RewardBatch,
    advantages: Float[np.ndarray, "N T"],
) -> dict[str, float]:
    """All diagnostics that need no update of the policy."""
    return {
        **signal(batch, advantages),
        **success_correlation(batch, credits),
        **episode_length(batch, advantages),
        **singletons(batch, advantages),
        **duplicates(trajectories, credits),
        **reward_by_calls(batch, credits),
        **probes(reward, trajectories),
    }


def sums_by_slice(
    level: Float[np.ndarray, "N T"] | None,
    weight: float,
    trajectories: Sequence[Trajectory],
    advantages: Float[np.ndarray, "N T"],
    sums: Mapping[str, Float[np.ndarray, "N T"]],
) -> Sums:
    """Sums over the turns of each turn index, and over those of each of the commonest scenarios.

    Args:
        level: A_g, where the advantage has one.
        weight: w_g.
        sums: by name, over the tokens of each turn; "tokens" is how many they are.
    """
    lengths = np.zeros(advantages.shape, dtype=int)
    for row, each in enumerate(trajectories):
        lengths[row, : len(each.turns)] = [len(turn.token_ids) for turn in each.turns]
    turns = np.array([len(each.turns) for each in trajectories], dtype=int)
    mask = np.arange(advantages.shape[1]) < turns[:, None]
    scenarios = np.array([each.task.scenario for each in trajectories], dtype=object)
    index = np.minimum(np.arange(advantages.shape[1]), TURNS - 1)
    places = {f"turn/{number}": mask & (index == number) for number in np.unique(index)}
    for name, _ in Counter(filter(None, scenarios)).most_common(SCENARIOS):
        places[f"scenario/{name}"] = mask & (scenarios == name)[:, None]
    parts = dict(sums)
    if level is not None:
        parts["whole"] = np.abs(weight * level) * lengths
        parts["rest"] = np.abs(advantages - weight * level) * lengths
    parts |= {"turns": mask, "advantage": advantages, "square": advantages**2, "length": lengths}
    return {
        place: {name: float(each[chosen].sum()) for name, each in parts.items()}
        for place, chosen in places.items()
        if chosen.any()
    }


def by_slice(sums: Sums) -> dict[str, float]:
    """`advantage` and `advantage_std` over turns, `length` in tokens, means over learned tokens.

    `turn_share`: of the absolute advantages of all tokens, the part that w_g A_g does not make.
    """
    found: dict[str, float] = {}
    for place, given in sums.items():
        left = dict(given)
        turns, tokens = left.pop("turns"), left.pop("tokens")
        mean = left.pop("advantage") / turns
        numbers = {"advantage": mean, "length": left.pop("length") / turns}
        numbers["advantage_std"] = max(left.pop("square") / turns - mean**2, 0.0) ** 0.5
        rest = left.pop("rest", 0.0)
        if both := left.pop("whole", 0.0) + rest:
            numbers["turn_share"] = rest / both
        if tokens:
            numbers |= {name: each / tokens for name, each in left.items()}
        found |= {f"by/{place}/{name}": value for name, value in numbers.items()}
    return found


def sums_by_span(
    trajectories: Sequence[Trajectory],
    advantages: Float[np.ndarray, "N T"],
    of_calls: Sequence[Float[np.ndarray, " _"]] | None,
) -> Sums:
    """Tokens of calls, reasoning and answers, and the sum of their advantages."""
    found: Sums = defaultdict(lambda: {"tokens": 0.0, "advantage": 0.0})
    for row, trajectory in enumerate(trajectories):
        own = iter(of_calls[row]) if of_calls is not None else repeat(None)
        for turn, advantage in zip(trajectory.turns, advantages[row], strict=False):
            for span in turn.spans:
                call = next(own) if span.kind is SpanKind.CALL else None
                length = span.end - span.start
                found[span.kind]["tokens"] += length
                found[span.kind]["advantage"] += length * float(advantage if call is None else call)
    return dict(found)


def by_span(sums: Sums) -> dict[str, float]:
    """Of calls, reasoning and answers: their share of the tokens, and these' mean advantage."""
    total = sum(each["tokens"] for each in sums.values())
    found: dict[str, float] = {}
    for kind, each in sums.items():
        found[f"by/span/{kind}/share"] = each["tokens"] / max(total, 1)
        found[f"by/span/{kind}/advantage"] = each["advantage"] / max(each["tokens"], 1)
    return found


def added(rows: Sequence[Sums]) -> Sums:
    """The sums of several processes as one."""
    found: Sums = defaultdict(lambda: defaultdict(float))
    for place, given in (item for row in rows for item in row.items()):
        for name, value in given.items():
            found[place][name] += value
    return found


def signal(batch: RewardBatch, advantages: Float[np.ndarray, "N T"]) -> dict[str, float]:
    """Share of groups whose rewards are all equal, and of those without any advantage at all."""
    if not len(batch.group):
        return {}
    numbers, group = np.unique(batch.group, return_inverse=True)
    shares = {}
    for name, size in (
        ("groups_equal_reward", np.abs(centred(batch.total, group, "zero"))),
        ("groups_no_advantage", np.abs(advantages).max(axis=1, initial=0.0)),
    ):
        largest = np.zeros(len(numbers))
        np.maximum.at(largest, group, size)
        shares[name] = float((largest < ZERO).mean())
    return shares


def success_correlation(batch: RewardBatch, credits: Sequence[Credit]) -> dict[str, float]:
    """Correlation of the reward of a calling turn, outcome apart, with the answer's score."""
    calling = batch.turn_mask & batch.has_calls
    outcome = np.array([credit.outcome for credit in credits])
    score = np.broadcast_to(outcome[:, None], calling.shape)[calling]
    reward = batch.process_rewards[calling]
    if len(reward) < 2 or np.ptp(reward) == 0 or np.ptp(score) == 0:
        return {}
    return {"turn_reward_success": float(np.corrcoef(reward, score)[0, 1])}


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
    _, index, count = np.unique(
        turn_groups(batch, "index")[mask], return_inverse=True, return_counts=True
    )
    return _share_and_mean("singleton", (count == 1)[index], "advantage", advantages[mask])


def _share_and_mean(
    name: str, chosen: Bool[np.ndarray, " K"], what: str, values: Float[np.ndarray, " K"]
) -> dict[str, float]:
    """How many are chosen, and the mean of their values."""
    if not len(chosen):
        return {}
    share = {f"{name}_share": float(chosen.mean())}
    return share | ({f"{name}_{what}": float(values[chosen].mean())} if chosen.any() else {})


def duplicates(trajectories: Sequence[Trajectory], credits: Sequence[Credit]) -> dict[str, float]:
    """Calls that repeat an earlier call of their trajectory: share, and mean reward."""
    repeated: list[bool] = []
    for trajectory in trajectories:
        seen: set[str] = set()
        for call in trajectory.calls:
            written = "" if call.status is CallStatus.OK else call.text
            key = json.dumps([call.name, call.arguments, written], sort_keys=True)
            repeated.append(key in seen)
            seen.add(key)
    rewards = np.concatenate([np.zeros(0), *(credit.call_rewards for credit in credits)])
    return _share_and_mean("duplicate", np.array(repeated, dtype=bool), "reward", rewards)


def reward_by_calls(batch: RewardBatch, credits: Sequence[Credit]) -> dict[str, float]:
    """Mean turn rewards of an episode, outcome apart, by its number of calls."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for process, credit in zip(batch.process_rewards.sum(axis=1), credits, strict=True):
        for bucket, (low, high) in _CALL_BUCKETS.items():
            if low <= len(credit.call_rewards) <= high:
                rewards[f"reward_of_{bucket}_calls"].append(float(process))
    return {name: float(np.mean(values)) for name, values in sorted(rewards.items())}


def probes(reward: Reward, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What the reward of an episode would gain by changes that help nobody, on average.

    ``gain_serialised``: by making its calls turn by turn as it did, rather than all in one turn
    (episodes with several calling turns); ``gain_duplicate``: by repeating its last calling turn;
    ``gain_wrong_call``: by one more turn with a call to no tool (both: episodes with calls).
    """

    def mean_total(changed: Sequence[Trajectory]) -> float:
        return float(np.mean([credit.total for credit in reward(changed)]))

    several = [t for t in trajectories if sum(bool(turn.calls) for turn in t.turns) > 1]
    calling = [t for t in trajectories if t.calls]
    result = {}
    if several:
        at_once = mean_total([merged(t) for t in several])
        result["gain_serialised"] = mean_total(several) - at_once
    if calling:
        before = mean_total(calling)
        last = [next(turn for turn in reversed(t.turns) if turn.calls) for t in calling]
        again = mean_total(list(map(with_turn, calling, last)))
        wrong = mean_total([with_turn(t, WRONG_TURN) for t in calling])
        result |= {"gain_duplicate": again - before, "gain_wrong_call": wrong - before}
    return result


def merged(trajectory: Trajectory) -> Trajectory:
    """The same calls, all made in the first calling turn; later calling turns are gone."""
    first = next(i for i, turn in enumerate(trajectory.turns) if turn.calls)
    turn, rest = trajectory.turns[first], trajectory.turns[first + 1 :]
    everything = replace(turn, calls=trajectory.calls, results=trajectory.results)
    answers = (turn for turn in rest if not turn.calls)
    return replace(trajectory, turns=(*trajectory.turns[:first], everything, *answers))


def with_turn(trajectory: Trajectory, turn: Turn) -> Trajectory:
    """The trajectory with one more turn after its last calling one."""
    turns = trajectory.turns
    after = 1 + max(i for i, each in enumerate(turns) if each.calls)
    return replace(trajectory, turns=(*turns[:after], turn, *turns[after:]))
