"""Scores of a final answer against the gold answer."""

from __future__ import annotations

import re
import unicodedata

from matchtir.tools.formats import extract_answer
from matchtir.types import StopReason, Trajectory

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
    left, right = set(answer_tokens(predicted)), set(answer_tokens(gold))
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


def answer_match(predicted: str | None, gold: str) -> float:
    """1 where both answers have the same words in the same order, else 0."""
    return float(predicted is not None and answer_tokens(predicted) == answer_tokens(gold))
