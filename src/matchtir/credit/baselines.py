"""Rewards of the methods that the paper compares with; the same call as `MatchReward`.

The plain outcome reward is ``MatchReward(rewards="outcome")``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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


# Scores of pairs of calls, rewards of calls, rewards of turns.
Earned = tuple[Float[np.ndarray, "m n"], Float[np.ndarray, " m"], Float[np.ndarray, " T"]]


@dataclass(frozen=True)
class Baseline:
    """A reward of single turns or of the whole trajectory; subclasses say which."""

    scope: str = "turn"

    def __post_init__(self) -> None:
        check_option("scope", self.scope, ("turn", "trajectory"))

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory; the plan has the pairs whose score is above 0."""
        credits = []
        for trajectory in trajectories:
            scores, calls, turns = self._earned(trajectory)
            outcome = answer_f1(final_answer(trajectory), trajectory.task.answer)
            plan, total = (scores > 0).astype(float), float(turns.sum())
            credits.append(Credit(scores, plan, calls, turns, outcome, 0.0, total))
        return credits

    def _earned(self, trajectory: Trajectory) -> Earned:
        raise NotImplementedError


class FtrlReward(Baseline):
    """Reward of FTRL (arXiv 2508.08791), the paper's FTRL-S and FTRL-M.

    A turn with p calls that newly solve q sub-questions earns ``2 q / (p + 1)``. One without calls
    earns -0.5 if it is empty, -0.3 if it has tags of calls but no call that parses,
    ``1 / (1 + unsolved)`` if it contains the gold answer, else 0.5 if every sub-question is solved,
    else 0. A call's reward says whether it solved a sub-question.

    Args:
        scope: ``turn``: every turn by itself (FTRL-S; use a turn advantage with gamma 0);
            ``trajectory``: the whole as one step, paid in the last turn (FTRL-M). The paper does
            not spell that out; we take ``2 q / (p + 1)`` over all calls, plus what the last turn
            earns if it has none.
    """

    def _earned(self, trajectory: Trajectory) -> Earned:
        task, results = trajectory.task, trajectory.results
        outputs, ended_well = [r.output for r in results], [succeeded(r) for r in results]
        solves = solving_calls(trajectory.calls, outputs, task.sub_answers, ended_well)
        solved = np.array(solves, dtype=float)
        rewards = np.zeros(len(trajectory.turns))
        position = 0
        for index, turn in enumerate(trajectory.turns):
            here = slice(position, position + len(turn.calls))
            made = sum(call.status in COMPARABLE for call in turn.calls)
            if made:
                rewards[index] = 2 * solved[here].sum() / (made + 1)
            else:
                unsolved = len(task.sub_answers) - int(solved[: here.stop].sum())
                rewards[index] = _closing(turn, task.answer, unsolved)
            position = here.stop
        if self.scope == "trajectory" and len(rewards):
            made = sum(call.status in COMPARABLE for call in trajectory.calls)
            closing = 0.0 if trajectory.turns[-1].calls else rewards[-1]
            rewards[:] = 0.0
            rewards[-1] = 2 * solved.sum() / (made + 1) + closing
        return np.zeros((len(solved), len(task.gold_calls))), solved, rewards


def _closing(turn: Turn, answer: str, unsolved: int) -> float:
    """Reward of a turn without calls that parse."""
    if not turn.text.strip():
        return EMPTY
    if turn.calls or "<tool_call>" in turn.text or "</tool_call>" in turn.text:
        return BROKEN
    if answer and answer.casefold() in turn.text.casefold():
        return 1.0 / (1 + unsolved)
    return ALL_SOLVED if unsolved == 0 else 0.0


class ToolRlReward(Baseline):
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

    def _earned(self, trajectory: Trajectory) -> Earned:
        task, calls = trajectory.task, trajectory.calls
        rewards = np.zeros(len(trajectory.turns))
        scores = np.zeros((len(calls), len(task.gold_calls)))
        formats = [_well_formed(turn) for turn in trajectory.turns]
        if self.scope == "trajectory" and len(rewards):
            everything = range(len(task.gold_calls))
            rewards[-1] = all(formats) + _correctness(calls, task, everything, scores)
        elif len(rewards):
            turn_of = task.gold_turns or range(len(task.gold_calls))
            ends = np.cumsum([0, *(len(turn.calls) for turn in trajectory.turns)])
            for index, (start, end) in enumerate(pairwise(ends)):
                wanted = [gold for gold, turn in enumerate(turn_of) if turn == index]
                part = _correctness(calls[start:end], task, wanted, scores[start:end])
                rewards[index] = formats[index] + part
        return scores, scores.sum(axis=1), rewards


def _well_formed(turn: Turn) -> bool:
    if turn.calls:
        return all(call.status in COMPARABLE for call in turn.calls)
    return extract_answer(turn.text) is not None


def _correctness(
    calls: Sequence[ToolCall], task: Task, wanted: Sequence[int], scores: Float[np.ndarray, "m n"]
) -> float:
    """Correctness of calls [m] against the `wanted` gold calls; fills in the scores of pairs."""
    if not wanted:
        return 0.0
    if not calls:
        return -LARGEST
    gold = [task.gold_calls[index] for index in wanted]
    names, gold_names = Counter(c.name for c in calls), Counter(c.name for c in gold)
    unused = list(range(len(calls)))
    for column, wanted_call in zip(wanted, gold, strict=True):
        same_name = {
            i: _agreement(calls[i], wanted_call)
            for i in unused
            if calls[i].name == wanted_call.name
        }
        if same_name:
            best = max(same_name, key=same_name.__getitem__)
            unused.remove(best)
            scores[best, column] = same_name[best]
    score = (names & gold_names).total() / (names | gold_names).total() + scores.sum()
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
