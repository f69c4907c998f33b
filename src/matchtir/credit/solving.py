"""Which calls solve a sub-question, by FTRL's rule (arXiv 2508.08791)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matchtir.types import CallStatus, SubAnswer, ToolCall


def contains_answer(output: str, gold: str) -> bool:
    """Whether every ", "-separated part of `gold` stands in `output`, case and commas apart."""
    text = _plain(output)
    return all(_plain(part) in text for part in gold.split(", "))


def solving_calls(
    calls: Sequence[ToolCall], outputs: Sequence[str], sub_answers: Sequence[SubAnswer]
) -> list[bool]:
    """Whether each call [m], with its output [m], solves a sub-answer [n].

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
