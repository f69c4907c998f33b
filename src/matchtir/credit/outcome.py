"""How an attempt ended: the score of its answer, the state of its tools, what its calls solved."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from matchtir.credit.similarity import json_equal
from matchtir.tools.formats import extract_answer
from matchtir.types import ENVIRONMENT, CallStatus, StopReason, SubAnswer, ToolCall, Trajectory

State = Mapping[str, Any]  # by class: attributes

_PUNCTUATION = re.compile(r"[^\w\s]|_")
# Where punctuation tells answers apart.
_SIGNIFICANT = re.compile(
    r"(?<![\w)])[-\u2212](?=[$€£¥]?\.?\d|∞|(?:[a-z]|inf|infinity)\b)"  # a sign: -5, -x
    r"|(?<![\w.])\.(?=\w)|(?<=\d)[./:*](?=\d)"  # a point, fraction, ratio, time, product: .5, 1/2
    r"|(?<=\w)_(?=\w)|(?<=(?<!\*)\b\w)\*(?![\w*])|!(?==)"  # a_b, A*, !=
    r"|\[(?=[^][()]*,[^][()]*\))|\((?=[^][()]*,[^][()]*\])",  # a half-open interval: [0, 1)
    re.IGNORECASE,
)
_PLUS = re.compile(r"(?<![\w)])\+(?=[$€£¥]?\.?\d)")  # of a number: it says nothing


def _blank(match: re.Match[str]) -> str:
    """A space for punctuation and symbols; combining marks belong to their word and stay."""
    character = match.group()
    return character if unicodedata.category(character).startswith("M") else " "


def answer_tokens(text: str) -> list[str]:
    """Words of an answer: lower case, punctuation read as spaces."""
    return _PUNCTUATION.sub(_blank, text.lower()).split()


@lru_cache(maxsize=1024)  # the gold answer is that of a whole group
def _meaning(text: str) -> list[str]:
    """`answer_tokens` and, where they stand, the signs and symbols that tell answers apart."""
    signs = {found.start() for found in _SIGNIFICANT.finditer(text)}
    pluses = {found.start() for found in _PLUS.finditer(text)}

    def kept(match: re.Match[str]) -> str:
        character = match.group().replace("\u2212", "-")
        symbol = unicodedata.category(character).startswith("S") and character not in "`|~"
        if match.start() not in pluses and (symbol or character in "#%@" or match.start() in signs):
            return f" {character} "
        return _blank(match)

    return _PUNCTUATION.sub(kept, text).lower().split()


def final_answer(trajectory: Trajectory) -> str | None:
    """The answer in the final turn; None where the episode did not end with one.

    A turn that was cut at its token limit is none: were it paid, a policy would lose nothing by
    writing on and on behind its answer, and it learns to.
    """
    if trajectory.stop_reason != StopReason.ANSWER:
        return None
    return extract_answer(trajectory.final_text)


@lru_cache(maxsize=4096)  # the attempts of a group give the same answers
def answer_f1(predicted: str | None, gold: str) -> float:
    """Token-set F1 of an answer, ``2 |a ∩ b| / (|a| + |b|)`` (paper eq. 9).

    None (no answer given) and answers without any word score 0; but where the gold answer has
    none ("+"), the same answer scores 1: it could not be earned otherwise.
    """
    if predicted is None:
        return 0.0
    left, right = set(answer_tokens(predicted)), set(answer_tokens(gold))
    if not right:
        return answer_match(predicted, gold)
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


def answer_match(predicted: str | None, gold: str) -> float:
    """1 where both answers have the same words and symbols in the same order, else 0.

    Case and punctuation do not count, but what makes another answer does: "-5" is not "5", "1.5"
    not "1/5", "C++" neither "C" nor "C#". An empty answer is never right.
    """
    if predicted is None or not predicted.strip():
        return 0.0
    said, wanted = _meaning(predicted), _meaning(gold)
    if not said and not wanted:  # punctuation alone
        return float(predicted.split() == gold.split())
    return float(said == wanted)


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


def needs_no_answer(trajectory: Trajectory) -> bool:
    """Whether its user had no more to say, and the task wants a state of its tools alone."""
    task = trajectory.task
    state_alone = task.gold_state is not None and not task.answer
    return task.has_user and state_alone and trajectory.stop_reason == StopReason.ANSWER


def outcome_score(
    trajectory: Trajectory, answer: str | None, score: Callable[[str | None, str], float]
) -> float:
    """The score of an answer where the gold state is reached, else 0.

    A task may have a gold state and no gold answer: then any answer scores 1, and none scores 0
    where one is needed (`needs_no_answer`).
    """
    task = trajectory.task
    if task.gold_state is not None:
        if missed(task.gold_state, trajectory.final_state):
            return 0.0
        if not task.answer:
            return float(answer is not None or needs_no_answer(trajectory))
    return 0.0 if answer is None else score(answer, task.answer)


def environment_reward(trajectory: Trajectory) -> float:
    """What an external environment gave for the episode, over all its steps.

    Raises:
        ValueError: the task is not one of an environment's.
    """
    state = (trajectory.final_state or {}).get(ENVIRONMENT)
    if state is None:
        raise ValueError(f"outcome=environment: {trajectory.task.task_id} has no environment")
    return float(state["reward"])


def succeeds(trajectory: Trajectory) -> bool:
    """Whether the attempt ends with the gold answer (`answer_match`), and in the gold state."""
    return outcome_score(trajectory, final_answer(trajectory), answer_match) == 1.0


# ---------------------------------------------------------------- sub-questions


def contains_answer(output: str, gold: str) -> bool:
    """Whether every ", "-separated part of `gold` stands in `output`, case and commas apart."""
    text = _plain(output)
    return all(_plain(part) in text for part in gold.split(", "))


def solving_calls(
    calls: Sequence[ToolCall],
    outputs: Sequence[str],
    sub_answers: Sequence[SubAnswer],
    ended_well: Sequence[bool] | None = None,
) -> list[bool]:
    """Whether each call [m], with its output [m], solves a sub-answer [n] (FTRL, 2508.08791).

    A call solves the first still unsolved sub-answer of its tool that its output contains; at most
    one. A call that failed solves nothing: what it was asked for stands in many an error's text.

    Args:
        ended_well: whether each call ran to its end without an error [m]; None: not known, and each
            call that the parser took counts, whatever its output says, as in FTRL's published code.

    Raises ValueError where calls and outputs differ in number.
    """
    unsolved = list(sub_answers)
    solved = []
    ended = [True] * len(calls) if ended_well is None else ended_well
    for call, output, well in zip(calls, outputs, ended, strict=True):
        counts = well and call.status is CallStatus.OK
        fitting = (
            answer
            for answer in (unsolved if counts else ())
            if answer.tool == call.name and contains_answer(output, answer.output)
        )
        solves = next(fitting, None)
        if solves is not None:
            unsolved.remove(solves)
        solved.append(solves is not None)
    return solved


def _plain(text: str) -> str:
    return text.lower().replace(",", "")
