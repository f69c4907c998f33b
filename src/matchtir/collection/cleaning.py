"""A teacher's successful attempt without the calls that it did not need."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.credit.outcome import missed
from matchtir.tools.sandbox import Sandbox, replay_calls, reports_error
from matchtir.types import ResultStatus, Task, ToolCall, ToolResult, Trajectory

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One call of a trace, the turn that it was made in, and what it returned."""

    turn: int
    call: ToolCall
    output: str


Trace = tuple[TracedCall, ...]


def traced_calls(trajectory: Trajectory) -> Trace:
    """The calls of an attempt that ran to their end and whose output is no error."""
    return tuple(
        TracedCall(index, call, result.output)
        for index, turn in enumerate(trajectory.turns)
        for call, result in zip(turn.calls, turn.results, strict=True)
        if not failed(result)
    )


def failed(result: ToolResult) -> bool:
    """Whether a call did not run to its end, or its output says that it found an error."""
    return result.status is not ResultStatus.OK or reports_error(result.output)


async def clean_trace(task: Task, trace: Trace, sandbox: Sandbox) -> Trace | None:
    """The trace without failed, repeated and redundant calls, each removal tried by execution.

    A call is redundant if the others, executed without it, return what they returned before, reach
    the gold state, and still say everything that an argument or the answer takes from an output.
    Where the answer is not found in the outputs, or stands in the question already ("which of the
    two ..."), nobody can tell what it was drawn from: then only repetitions are removed.

    Returns:
        the trace, its turns numbered anew; None where even the whole one does not replay.
    """
    if not await _replays(task, trace, sandbox):
        return None
    explained = _explains(task, trace)
    kept = dict(enumerate(trace))
    for position in reversed(range(len(trace))):
        rest = tuple(step for index, step in kept.items() if index != position)
        repeated = _key(trace[position]) in map(_key, rest)
        needless = repeated or (explained and _supports(task, rest, trace))
        if needless and await _replays(task, rest, sandbox):
            del kept[position]
    turns = sorted({step.turn for step in kept.values()})
    return tuple(TracedCall(turns.index(s.turn), s.call, s.output) for s in kept.values())


def trace_key(trace: Trace) -> str:
    """The same for traces with the same calls, whatever their order."""
    return "\n".join(sorted(map(_key, trace)))


def _key(step: TracedCall) -> str:
    return json.dumps([step.call.name, step.call.arguments, step.output], sort_keys=True)


async def _replays(task: Task, trace: Trace, sandbox: Sandbox) -> bool:
    """Whether the calls return what they returned, and reach the gold state."""
    replay = await replay_calls(task, [step.call for step in trace], sandbox)
    outputs = [result.output for result in replay.results]
    if outputs != [step.output for step in trace]:
        return False
    return task.gold_state is None or not missed(task.gold_state, replay.state)


def _explains(task: Task, trace: Trace) -> bool:
    """Whether it can be told which outputs the answer was drawn from."""
    if not task.answer:
        return task.gold_state is not None
    parts = [_words(part) for part in task.answer.split(", ")]
    question = _words(task.question)
    outputs = [_words(step.output) for step in trace]
    return all(
        part and not _holds(question, part) and any(_holds(output, part) for output in outputs)
        for part in parts
    )


def _supports(task: Task, rest: Trace, whole: Trace) -> bool:
    """Whether `rest` still says what its arguments and the answer take from outputs of `whole`."""
    asked = _words(" ".join([task.question, *(message.content for message in task.history)]))
    for step in rest:
        for value in _leaves(step.call.arguments):
            words = _words(str(value))
            if _holds(asked, words):
                continue
            before, still = (_said(trace, words, step.turn) for trace in (whole, rest))
            if before and not still:
                return False
    parts = [_words(part) for part in task.answer.split(", ")] if task.answer else []
    return all(_said(rest, part) or not _said(whole, part) for part in parts)


def _said(trace: Trace, words: Sequence[str], before_turn: int | None = None) -> bool:
    return any(
        _holds(_words(step.output), words)
        for step in trace
        if before_turn is None or step.turn < before_turn
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _holds(text: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the words stand in the text, one after the other; no words stand anywhere."""
    size = len(words)
    return any(list(text[i : i + size]) == list(words) for i in range(len(text) - size + 1))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield value
