"""Whether an attempt reached what its task asks for: an answer, a state of the tools, or both."""

from __future__ import annotations

from collections.abc import Callable

from matchtir.credit.answer import answer_match, final_answer
from matchtir.credit.equality import json_equal
from matchtir.types import Trajectory


def reaches_state(trajectory: Trajectory) -> bool:
    """Whether every attribute that the task's gold state names has its value at the end.

    True for a task without a gold state; False where the final state is not known.
    """
    gold, reached = trajectory.task.gold_state, trajectory.final_state
    if gold is None:
        return True
    return reached is not None and all(
        name in reached.get(owner, {}) and json_equal(reached[owner][name], value)
        for owner, attributes in gold.items()
        for name, value in attributes.items()
    )


def outcome_score(
    trajectory: Trajectory, answer: str | None, score: Callable[[str | None, str], float]
) -> float:
    """The score of an answer where the gold state is reached, else 0.

    A task may have a gold state and no gold answer: then any answer scores 1, none scores 0.
    """
    task = trajectory.task
    if not reaches_state(trajectory):
        return 0.0
    if task.gold_state is not None and not task.answer:
        return float(answer is not None)
    return 0.0 if answer is None else score(answer, task.answer)


def succeeds(trajectory: Trajectory) -> bool:
    """Whether the attempt ends with the words of the gold answer, and in the gold state."""
    return outcome_score(trajectory, final_answer(trajectory), answer_match) == 1.0
