"""Whether an attempt reached what its task asks for: an answer, a state of the tools, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matchtir.credit.answer import answer_match, final_answer
from matchtir.credit.equality import json_equal
from matchtir.types import Trajectory

State = Mapping[str, Any]  # by class: attributes


def missed(gold: State, reached: State | None) -> str:
    """What a state lacks of the gold state, in words; "" where it has everything that that names.

    None is a state that is not known.
    """
    if reached is None:
        return "the final state is not known"
    for owner, attributes in gold.items():
        for name, value in attributes.items():
            found = reached.get(owner, {})
            if name not in found:
                return f"{owner} has no attribute {name}"
            if not json_equal(found[name], value):
                return f"{owner}.{name} is {found[name]!r}, not {value!r}"
    return ""


def reaches_state(trajectory: Trajectory) -> bool:
    """Whether the attempt ends in the task's gold state; true for a task without one."""
    gold = trajectory.task.gold_state
    return gold is None or not missed(gold, trajectory.final_state)


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
