"""Rewards of the methods that the paper compares with; the same call as `MatchReward`.

The plain outcome reward is ``MatchReward(rewards="outcome")``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from matchtir.credit.outcome import answer_f1, final_answer, solving_calls
from matchtir.credit.rewards import Credit
from matchtir.credit.similarity import COMPARABLE, json_equal
from matchtir.tools.formats import extract_answer
from matchtir.tools.sandbox import succeeded
from matchtir.types import Task, ToolCall, Trajectory, Turn
from matchtir.utils.options import check_option

EMPTY, BROKEN, ALL_SOLVED = -0.5, -0.3, 0.5  # of FTRL, for turns without calls
LARGEST = 3.0  # of ToolRL: correctness lies in [-3, 3]


class FtrlReward:
    """Reward of FTRL (arXiv 2508.08791), the paper's FTRL-S and FTRL-M.

    A turn with p calls that newly solve q sub-questions earns ``2 q / (p + 1)``. One without calls
    earns -0.5 if it is empty, -0.3 if it has tags of calls but no call that parses,
    ``1 / (1 + unsolved)`` if it contains the gold answer, else 0.5 if every sub-question is solved,
    else 0.

    Args:
        scope: ``turn``: every turn by itself (FTRL-S; use a turn advantage with gamma 0);
            ``trajectory``: the whole as one step, paid in the last turn (FTRL-M). The paper does
            not spell that out; we take ``2 q / (p + 1)`` over all calls, plus what the last turn
            earns if it has none.
    """

    def __init__(self, scope: str = "turn") -> None:
        check_option("scope", scope, ("turn", "trajectory"))
        self.whole = scope == "trajectory"

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory; a call's reward says whether it solved a sub-question."""
        return [self._credit(trajectory) for trajectory in trajectories]

    def _credit(self, trajectory: Trajectory) -> Credit:
        task = trajectory.task
        outputs = [result.output for result in trajectory.results]
        ended_well = [succeeded(result) for result in trajectory.results]
        solves = solving_calls(trajectory.calls, outputs, task.sub_answers, ended_well)
        solved = np.array(solves, dtype=float)
        rewards = np.zeros(len(trajectory.turns))
        position = 0
        for index, turn in enumerate(trajectory.turns):
            after = position + len(turn.calls)
            unsolved = len(task.sub_answers) - int(solved[:after].sum())
            made = sum(call.status in COMPARABLE for call in turn.calls)
            if made:
                rewards[index] = 2 * solved[position:after].sum() / (made + 1)
            else:
                rewards[index] = _closing(turn, task.answer, unsolved)
            position = after
        if self.whole and len(rewards):
            made = sum(call.status in COMPARABLE for call in trajectory.calls)
            closing = 0.0 if trajectory.turns[-1].calls else rewards[-1]
            rewards[:] = 0.0
            rewards[-1] = 2 * solved.sum() / (made + 1) + closing
        empty = np.zeros((len(solved), len(task.gold_calls)))
        outcome = answer_f1(final_answer(trajectory), task.answer)
        return Credit(empty, empty, solved, rewards, outcome, 0.0, float(rewards.sum()))


def _closing(turn: Turn, answer: str, unsolved: int) -> float:
    """Reward of a turn without calls that parse."""
    if not turn.text.strip():
        return EMPTY
    if turn.calls or "<tool_call>" in turn.text or "</tool_call>" in turn.text:
        return BROKEN
    if answer and answer.casefold() in turn.text.casefold():
        return 1.0 / (1 + unsolved)
    return ALL_SOLVED if unsolved == 0 else 0.0


class ToolRlReward:
    """Reward of ToolRL (arXiv 2504.13958), the paper's ToolRL-S and ToolRL-M.

    ``format + 6 score / (1 + sum_g (1 + |keys(g)|)) - 3``. The score is the multiset Jaccard index
    of the lists of tool names plus, for each gold call in order, what its best unused predicted
    call of that name has: the Jaccard index of the argument names and the number of gold arguments
    with an equal value. Without any call where there should be one, correctness is -3; where no
    call is wanted, 0. Format is 1 where every call parses and a turn without calls has an answer
    (our reading of its format rule for this project's tags), else 0.

    Args:
        scope: ``turn``: every turn against the gold calls of the gold turn of its index (ToolRL-S;
            use a turn advantage with gamma 0); where the task does not know its turns, each gold
            call is one. ``trajectory``: all calls against all gold calls, paid in the last turn
            (ToolRL-M).
    """

    def __init__(self, scope: str = "turn") -> None:
        check_option("scope", scope, ("turn", "trajectory"))
        self.whole = scope == "trajectory"

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory; a call's reward is what it adds to the score."""
        return [self._credit(trajectory) for trajectory in trajectories]

    def _credit(self, trajectory: Trajectory) -> Credit:
        task, calls = trajectory.task, trajectory.calls
        rewards = np.zeros(len(trajectory.turns))
        plan = np.zeros((len(calls), len(task.gold_calls)))
        formats = [_well_formed(turn) for turn in trajectory.turns]
        everything = list(range(len(task.gold_calls)))
        if self.whole and len(rewards):
            rewards[-1] = float(all(formats)) + _correctness(calls, task, everything, plan)
        elif len(rewards):
            ends = np.cumsum([0, *(len(turn.calls) for turn in trajectory.turns)])
            for index, (start, end) in enumerate(pairwise(ends)):
                wanted = [gold for gold in everything if _gold_turn(task, gold) == index]
                part = _correctness(calls[start:end], task, wanted, plan[start:end])
                rewards[index] = float(formats[index]) + part
        outcome = answer_f1(final_answer(trajectory), task.answer)
        earned = plan.sum(axis=1)
        matched = (plan > 0).astype(float)
        return Credit(plan, matched, earned, rewards, outcome, 0.0, float(rewards.sum()))


def _gold_turn(task: Task, gold: int) -> int:
    return task.gold_turns[gold] if task.gold_turns else gold


def _well_formed(turn: Turn) -> bool:
    if turn.calls:
        return all(call.status in COMPARABLE for call in turn.calls)
    return extract_answer(turn.text) is not None


def _correctness(
    calls: Sequence[ToolCall], task: Task, wanted: Sequence[int], plan: Float[np.ndarray, "m n"]
) -> float:
    """Correctness of calls [m] against the `wanted` gold calls; fills in their pairs' scores."""
    if not wanted:
        return 0.0
    if not calls:
        return -LARGEST
    gold = [task.gold_calls[index] for index in wanted]
    names, gold_names = Counter(c.name for c in calls), Counter(c.name for c in gold)
    score = (names & gold_names).total() / (names | gold_names).total()
    unused = list(range(len(calls)))
    for column, wanted_call in zip(wanted, gold, strict=True):
        same_name = [i for i in unused if calls[i].name == wanted_call.name]
        scores = {i: _agreement(calls[i], wanted_call) for i in same_name}
        if scores:
            best = max(scores, key=scores.__getitem__)
            unused.remove(best)
            plan[best, column] = scores[best]
            score += scores[best]
    most = 1 + sum(1 + len(call.arguments) for call in gold)
    return 2 * LARGEST * score / most - LARGEST


def _agreement(predicted: ToolCall, gold: ToolCall) -> float:
    """Jaccard index of the argument names, plus the number of gold arguments with equal value."""
    if not isinstance(predicted.arguments, dict):
        return 0.0
    shared = predicted.arguments.keys() & gold.arguments.keys()
    union = predicted.arguments.keys() | gold.arguments.keys()
    equal = sum(json_equal(predicted.arguments[key], gold.arguments[key]) for key in shared)
    return (len(shared) / len(union) if union else 1.0) + equal
