"""One row of NESTFUL's files as a task, and the source of its tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.nestful_arithmetic import ARITHMETIC_SOURCES
from matchtir.tasks.rows import RowError, existing_file, parameter_names, read_field, read_jsonl
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec

_LABEL = re.compile(r"\$\w+")


def read_sources(path: str) -> Mapping[str, str]:
    """Python source of every function in a functions file, the basic arithmetic filled in.

    Functions without any source are left out.
    """
    sources = {}
    for row in read_jsonl(existing_file(path, "the file beside the rows")):
        source = row.get("source") or ARITHMETIC_SOURCES.get(row["name"])
        if source:
            sources[row["name"]] = source
    return sources


def task_from_row(row: Mapping[str, Any], sources: Mapping[str, str]) -> Task:
    """One row as a task; its sub-questions are the results of the gold steps.

    Raises:
        RowError: what is wrong, and with which field.
    """
    tools = _read_tools(row, sources)
    steps = read_field(row, "gold_trace", list)
    calls, sub_answers = [], []
    for index, step in enumerate(steps):
        try:
            if not isinstance(step, Mapping):
                raise RowError(f"expected an object, got {type(step).__name__}")
            call = ToolCall(read_field(step, "name", str), read_field(step, "arguments", dict))
            if "result" not in step:
                raise RowError("result: is missing")
            if call.name not in {tool.name for tool in tools}:
                raise RowError(f"the tool {call.name!r} is not offered")
        except RowError as error:
            raise RowError(f"gold_trace[{index}]: {error}") from None
        calls.append(call)
        sub_answers.append(SubAnswer(call.name, value_text(step["result"])))
    if "gold_answer" not in row:
        raise RowError("gold_answer: is missing")
    return Task(
        task_id=f"nestful/{read_field(row, 'id', str)}",
        question=read_field(row, "question", str),
        tools=tools,
        gold_calls=tuple(calls),
        answer=value_text(row["gold_answer"]),
        sub_answers=tuple(sub_answers),
        scenario=_scenario(len(calls)),
        gold_turns=_turns(steps),
        metadata={"gold_answer": row["gold_answer"], **read_field(row, "meta", dict)},
    )


def value_text(value: Any) -> str:
    """A value as the sandbox shows it to the policy: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _turns(steps: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The turn of each step: as many in a row as need no result of each other.

    Steps keep the order of the program, by which NESTFUL scores them. A step refers to an earlier
    one by its label: "$var_1.result$".
    """
    turns, labels = [], set[str]()
    turn = 0
    for step in steps:
        if labels & set(_LABEL.findall(json.dumps(step.get("arguments_ref")))):
            turn, labels = turn + 1, set()
        labels |= set(_LABEL.findall(str(step.get("label"))))
        turns.append(turn)
    return tuple(turns)


def _scenario(calls: int) -> str:
    return f"{calls}_calls" if calls < 5 else "5_or_more_calls"


def _read_tools(row: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[ToolSpec, ...]:
    tools: dict[str, ToolSpec] = {}
    for index, entry in enumerate(read_field(row, "tools", list)):
        try:
            if not isinstance(entry, Mapping):
                raise RowError(f"expected an object, got {type(entry).__name__}")
            name = read_field(entry, "name", str)
            parameters = read_field(entry, "parameters", dict)
            description = read_field(entry, "description", str)
            if name in tools:
                raise RowError(f"two tools are called {name!r}")
            if name not in sources:
                raise RowError(f"no source for the tool {name!r}")
        except RowError as error:
            raise RowError(f"tools[{index}]: {error}") from None
        properties = tuple(parameters.get("properties", {}))
        source = adapt_source(sources[name], name, properties)
        tools[name] = ToolSpec(name, description, parameters, source)
    return tuple(tools.values())


def adapt_source(source: str, name: str, properties: Sequence[str]) -> str:
    """The source, with an adapter where the function does not know the schema's argument names.

    Such functions (`divide(a, b)`, offered with arg_0 and arg_1; NESTFUL marks their steps as
    positional) take the arguments in the order of the schema.
    """
    if set(properties) <= (parameter_names(source, name) or set()):
        return source
    return f"""{source}

_{name}_by_position = {name}


def {name}(*values, **arguments):
    ordered = [arguments.pop(key) for key in {list(properties)!r} if key in arguments]
    return _{name}_by_position(*values, *ordered, **arguments)
"""
