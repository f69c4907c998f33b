"""FTRL's reward: sub-questions solved per call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchtir.credit.answer import answer_f1, final_answer
from matchtir.credit.rewards import Credit
from matchtir.credit.similarity import COMPARABLE
from matchtir.credit.solving import solving_calls
from matchtir.types import Trajectory, Turn
from matchtir.utils.options import check_option

EMPTY, BROKEN, ALL_SOLVED = -0.5, -0.3, 0.5


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
        solved = np.array(solving_calls(trajectory.calls, outputs, task.sub_answers), dtype=float)
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
