"""One row of FTRL's files as a task; whatever is wrong with a row is named with its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.gold_traces import read_calls, read_trace, worst_quality
from matchtir.tasks.rows import RowError, align_sub_answers, read_field, read_json_field
from matchtir.types import SubAnswer, Task, ToolSpec


def task_from_row(
    row: Mapping[str, Any], number: int, split: str, gold_trace: Sequence[Mapping[str, Any]] = ()
) -> Task:
    """One row of FTRL as a task.

    Args:
        gold_trace: steps (name, arguments, turn, quality) that give the row its gold calls;
            steps without arguments (nobody found any) become no call.

    Raises:
        RowError: what is wrong, and with which field.
    """
    tools = _read_tools(row)
    names = {tool.name for tool in tools}
    ground_truth = read_json_field(row, "ground_truth", list, optional=split == "test")
    unsolved = read_json_field(row, "unsolved_set", dict, optional=split != "test")
    if gold_trace:
        calls, turns = read_trace(gold_trace, names)
    else:
        calls, turns = read_calls("ground_truth", ground_truth or (), "parameters", names), ()
    scenario = read_field(row, "data_source", str).rpartition("/")[2]
    return Task(
        task_id=f"ftrl/{split}/{number}",
        question=_read_question(row),
        tools=tools,
        gold_calls=tuple(calls),
        answer=read_field(row, "answer", str),
        sub_answers=align_sub_answers(calls, _read_sub_answers(unsolved or {}, names)),
        scenario=scenario,
        gold_turns=turns,
        metadata={
            "row": number,
            "solve_rate": row.get("solve_rate"),
            "gold_quality": worst_quality(gold_trace),
        },
    )


def _read_question(row: Mapping[str, Any]) -> str:
    """The text of the one user message: FTRL's instructions and the question."""
    messages = read_field(row, "messages", list)
    roles = [item.get("role") if isinstance(item, Mapping) else None for item in messages]
    if roles != ["user"]:
        raise RowError(f"messages: expected one user message, got the roles {roles}")
    try:
        return read_field(messages[0], "content", str)
    except RowError as error:
        raise RowError(f"messages: {error}") from None


def _read_tools(row: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    sources = read_json_field(row, "codes", dict)
    tools: dict[str, ToolSpec] = {}
    for index, entry in enumerate(read_json_field(row, "tools", list)):
        try:
            function = read_field(entry, "function", dict) if isinstance(entry, dict) else None
            if function is None:
                raise RowError(f"expected an object, got {type(entry).__name__}")
            name = read_field(function, "name", str)
            description = read_field(function, "description", str)
            parameters = read_field(function, "parameters", dict)
        except RowError as error:
            raise RowError(f"tools[{index}]: {error}") from None
        if name in tools:
            raise RowError(f"tools[{index}]: two tools are called {name!r}")
        if not isinstance(sources.get(name), str) or not sources[name].strip():
            raise RowError(f"codes: no source for the tool {name!r}")
        tools[name] = ToolSpec(name, description, parameters, sources[name])
    return tuple(tools.values())


def _read_sub_answers(unsolved: Mapping[str, Any], tool_names: set[str]) -> list[SubAnswer]:
    sub_answers = []
    for tool, outputs in unsolved.items():
        if tool not in tool_names:
            raise RowError(f"unsolved_set: the tool {tool!r} is not offered")
        if not isinstance(outputs, list) or not all(isinstance(item, str) for item in outputs):
            raise RowError(f"unsolved_set: {tool}: expected a list of strings, got {outputs!r}")
        sub_answers += [SubAnswer(tool, output) for output in outputs]
    return sub_answers
