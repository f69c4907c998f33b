"""Gold calls that were derived for benchmarks which publish none: JSON lines, a trace for each row.

A step has `name`, `arguments` (null: nobody found any), `turn` (from 1) and `quality`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.tasks.rows import RowError, read_field, read_jsonl, within
from matchtir.types import Task, ToolCall

# How well founded the arguments of a step are, best first: knowable from the question and the
# tools, found only in a tool's source, making the tool repeat its input, not found at all.
QUALITIES = ("clean", "literal", "echo", "unreached")

Trace = Sequence[Mapping[str, Any]]


def with_traces(rows: Iterable[Mapping[str, Any]], path: str | None) -> Iterator[Mapping[str, Any]]:
    """The rows, each with its `gold_trace` from a file; () where it has none.

    The number of a trace's row stands in `row`, else it is that of the line.

    Raises:
        RowError: a line without a trace; the message names file, line and field.
    """
    traces: dict[int, Trace] = {}
    for number, line in enumerate(read_jsonl(Path(path)) if path else ()):
        with within(f"{path}, row {number}"):
            place = read_field(line, "row", int, optional=True)
            traces[number if place is None else place] = read_field(line, "gold_trace", list)
    for number, row in enumerate(rows):
        yield {**row, "gold_trace": traces.get(number, ())}


def gold_quality(task: Task) -> str:
    """The quality of a task's worst step; empty where no step states one."""
    return str(task.metadata.get("gold_quality") or "")


def worst_quality(gold_trace: Trace) -> str:
    """The quality of a trace's worst step; empty where no step states one."""
    stated = [step["quality"] for step in gold_trace if "quality" in step]
    for quality in stated:
        if quality not in QUALITIES:
            raise RowError(f"gold_trace: quality: {quality!r} is none of {', '.join(QUALITIES)}")
    return max(stated, key=QUALITIES.index, default="")


def read_trace(
    gold_trace: Trace, tool_names: set[str]
) -> tuple[tuple[ToolCall, ...], tuple[int, ...]]:
    """The calls of a gold trace and the turn of each, counted from 0, in the order of turns."""
    for step in gold_trace:
        if not isinstance(step, Mapping):
            raise RowError(f"gold_trace: expected an object for each call, got {step!r:.100}")
    known = [step for step in gold_trace if step.get("arguments") is not None]
    for step in known:
        if not isinstance(step.get("turn"), int) or step["turn"] < 1:
            raise RowError(f"gold_trace: turn: expected a number from 1, got {step.get('turn')!r}")
    known.sort(key=lambda step: step["turn"])
    calls = read_calls("gold_trace", known, "arguments", tool_names)
    return calls, tuple(step["turn"] - 1 for step in known)


def read_calls(
    field: str, items: Sequence[Any], arguments_field: str, tool_names: set[str]
) -> tuple[ToolCall, ...]:
    """The gold calls of `ground_truth` or of a gold trace."""
    calls = []
    for index, item in enumerate(items):
        with within(f"{field}[{index}]"):
            name = read_field(item, "name", str)
            arguments = read_field(item, arguments_field, dict)
            if name not in tool_names:
                raise RowError(f"the tool {name!r} is not offered")
        calls.append(ToolCall(name, arguments))
    return tuple(calls)
