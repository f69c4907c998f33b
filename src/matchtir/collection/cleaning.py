"""A teacher's successful attempt without the calls that it did not need."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matchtir.credit.outcome import missed
from matchtir.tools.sandbox import Sandbox, replay_calls, reports_error
from matchtir.types import ResultStatus, Task, ToolCall, Trajectory

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
        if result.status is ResultStatus.OK and not reports_error(result.output)
    )


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
    question, outputs = _words(task.question), [_words(step.output) for step in trace]
    return all(
        part.strip() and part not in question and any(part in output for output in outputs)
        for part in _parts(task.answer)
    )


def _supports(task: Task, rest: Trace, whole: Trace) -> bool:
    """Whether `rest` still says what its arguments and the answer take from outputs of `whole`."""
    asked = _words(" ".join([task.question, *(message.content for message in task.history)]))
    for step in rest:
        for value in _leaves(step.call.arguments):
            words = _words(str(value))
            before, still = (_says(trace, words, step.turn) for trace in (whole, rest))
            if words not in asked and before and not still:
                return False
    return all(_says(rest, part) or not _says(whole, part) for part in _parts(task.answer))


def _says(trace: Trace, words: str, before_turn: float = math.inf) -> bool:
    return any(words in _words(step.output) for step in trace if step.turn < before_turn)


def _words(text: str) -> str:
    """The words of a text between single blanks, so that one in another are words in a row."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _parts(answer: str) -> list[str]:
    return [_words(part) for part in answer.split(", ")] if answer else []


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield value
