"""Gold calls that were derived for benchmarks which publish none: JSON lines, a trace for each row.

A step has `name`, `arguments` (null: nobody found any), `turn` (from 1) and `quality`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.rows import RowError, existing_file, read_field, read_jsonl
from matchtir.types import Task, ToolCall

# How well founded the arguments of a step are, best first: knowable from the question and the
# tools, found only in a tool's source, making the tool repeat its input, not found at all.
QUALITIES = ("clean", "literal", "echo", "unreached")

Trace = Sequence[Mapping[str, Any]]


def read_traces(path: str | None) -> Mapping[int, Trace]:
    """The traces of a file by the number of their row; none where there is no file.

    The number stands in `row`, else it is that of the line.

    Raises:
        FileNotFoundError: a path that is no file.
        RowError: a line without a trace; the message names file, line and field.
    """
    traces: dict[int, Trace] = {}
    for number, row in enumerate(
        read_jsonl(existing_file(path, "gold_traces_path")) if path else ()
    ):
        try:
            place = read_field(row, "row", int, optional=True)
            traces[number if place is None else place] = read_field(row, "gold_trace", list)
        except RowError as error:
            raise RowError(f"{path}, row {number}: {error}") from error
    return traces


def gold_quality(task: Task) -> str:
    """The quality of a task's worst step; empty where no step states one."""
    return str(task.metadata.get("gold_quality") or "")


def worst_quality(gold_trace: Sequence[Mapping[str, Any]]) -> str:
    """The quality of a trace's worst step; empty where no step states one."""
    stated = [step["quality"] for step in gold_trace if "quality" in step]
    for quality in stated:
        if quality not in QUALITIES:
            raise RowError(f"gold_trace: quality: {quality!r} is none of {', '.join(QUALITIES)}")
    return max(stated, key=QUALITIES.index, default="")


def read_trace(
    gold_trace: Sequence[Mapping[str, Any]], tool_names: set[str]
) -> tuple[list[ToolCall], tuple[int, ...]]:
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
) -> list[ToolCall]:
    """The gold calls of `ground_truth` or of a gold trace."""
    calls = []
    for index, item in enumerate(items):
        try:
            if not isinstance(item, Mapping):
                raise RowError(f"expected an object, got {type(item).__name__}")
            name = read_field(item, "name", str)
            arguments = read_field(item, arguments_field, dict)
            if name not in tool_names:
                raise RowError(f"the tool {name!r} is not offered")
        except RowError as error:
            raise RowError(f"{field}[{index}]: {error}") from None
        calls.append(ToolCall(name, arguments))
    return calls
