"""How an attempt ended: the score of its answer, the state of its tools, what its calls solved."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from matchtir.credit.similarity import json_equal
from matchtir.tools.formats import extract_answer
from matchtir.types import CallStatus, StopReason, SubAnswer, ToolCall, Trajectory

State = Mapping[str, Any]  # by class: attributes

_PUNCTUATION = re.compile(r"[^\w\s]|_")


def _blank(match: re.Match[str]) -> str:
    """A space for punctuation and symbols; combining marks belong to their word and stay."""
    character = match.group()
    return character if unicodedata.category(character).startswith("M") else " "


def answer_tokens(text: str) -> list[str]:
    """Words of an answer: lower case, punctuation read as spaces."""
    return _PUNCTUATION.sub(_blank, text.lower()).split()


def final_answer(trajectory: Trajectory) -> str | None:
    """The answer in the final turn; None where the episode did not end with one.

    A turn that was cut at its token limit is none: were it paid, a policy would lose nothing by
    writing on and on behind its answer, and it learns to.
    """
    if trajectory.stop_reason != StopReason.ANSWER:
        return None
    return extract_answer(trajectory.final_text)


def answer_f1(predicted: str | None, gold: str) -> float:
    """Token-set F1 of an answer, ``2 |a ∩ b| / (|a| + |b|)`` (paper eq. 9).

    None (no answer given) and answers without any word score 0.
    """
    if predicted is None:
        return 0.0
    left, right = set(answer_tokens(predicted)), _gold_words(gold)
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


@lru_cache(maxsize=1024)  # the attempts of a group share it
def _gold_words(gold: str) -> frozenset[str]:
    return frozenset(answer_tokens(gold))


def answer_match(predicted: str | None, gold: str) -> float:
    """1 where both answers have the same words in the same order, else 0."""
    return float(predicted is not None and answer_tokens(predicted) == answer_tokens(gold))


# ---------------------------------------------------------------- the state of the tools


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


# ---------------------------------------------------------------- sub-questions


def contains_answer(output: str, gold: str) -> bool:
    """Whether every ", "-separated part of `gold` stands in `output`, case and commas apart."""
    text = _plain(output)
    return all(_plain(part) in text for part in gold.split(", "))


def solving_calls(
    calls: Sequence[ToolCall], outputs: Sequence[str], sub_answers: Sequence[SubAnswer]
) -> list[bool]:
    """Whether each call [m], with its output [m], solves a sub-answer [n] (FTRL, 2508.08791).

    A call solves the first still unsolved sub-answer of its tool that its output contains; at most
    one. The text of an exception counts as output, as in FTRL's published code. A call that the
    parser refused was never executed, so it solves nothing.

    Raises ValueError where calls and outputs differ in number.
    """
    unsolved: defaultdict[str, list[SubAnswer]] = defaultdict(list)
    for sub_answer in sub_answers:
        unsolved[sub_answer.tool].append(sub_answer)
    solved = []
    for call, output in zip(calls, outputs, strict=True):
        solves = None
        if call.status is CallStatus.OK:
            open_answers = unsolved.get(call.name, [])
            solves = next((s for s in open_answers if contains_answer(output, s.output)), None)
        if solves is not None:
            unsolved[call.name].remove(solves)
        solved.append(solves is not None)
    return solved


def _plain(text: str) -> str:
    return text.lower().replace(",", "")
