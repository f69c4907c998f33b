"""One row of NESTFUL's files as a task, the source of its tools, and its answers compared."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.nestful_arithmetic import ARITHMETIC_SOURCES
from matchtir.tasks.rows import RowError, existing_file, read_field, read_jsonl
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec, Trajectory


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
    calls, sub_answers, turns = [], [], []
    for index, step in enumerate(read_field(row, "gold_trace", list)):
        try:
            if not isinstance(step, Mapping):
                raise RowError(f"expected an object, got {type(step).__name__}")
            call = ToolCall(read_field(step, "name", str), read_field(step, "arguments", dict))
            turn = read_field(step, "turn", int)
            if "result" not in step:
                raise RowError("result: is missing")
            if call.name not in {tool.name for tool in tools}:
                raise RowError(f"the tool {call.name!r} is not offered")
        except RowError as error:
            raise RowError(f"gold_trace[{index}]: {error}") from None
        calls.append(call)
        turns.append(turn - 1)
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
        gold_turns=tuple(turns),
        metadata={"gold_answer": row["gold_answer"], **read_field(row, "meta", dict)},
    )


def value_text(value: Any) -> str:
    """A value as the sandbox shows it to the policy: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def answers_agree(output: str, gold_answer: Any, relative_tolerance: float = 0.01) -> bool:
    """Whether a tool's output is the gold answer, numbers within a relative tolerance.

    NESTFUL rounds many gold answers (8.33 for 8.3333...), hence the tolerance. Some of its tools
    return a Python literal as text, which is read too.
    """
    if output == value_text(gold_answer):
        return True
    for read in (json.loads, ast.literal_eval):
        try:
            return _values_agree(read(output), gold_answer, relative_tolerance)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False


def reaches_gold_answer(trajectory: Trajectory) -> float:
    """1 where the last output of the tool that the gold trace ends with is the gold answer."""
    task = trajectory.task
    outputs = [
        result.output
        for call, result in zip(trajectory.calls, trajectory.results, strict=True)
        if task.gold_calls and call.name == task.gold_calls[-1].name
    ]
    return float(bool(outputs) and answers_agree(outputs[-1], task.metadata["gold_answer"]))


def _values_agree(value: Any, gold: Any, tolerance: float) -> bool:
    if isinstance(value, bool) or isinstance(gold, bool):
        return value is gold
    if isinstance(value, int | float) and isinstance(gold, int | float):
        return math.isclose(value, gold, rel_tol=tolerance, abs_tol=1e-9)
    if isinstance(value, list) and isinstance(gold, list):
        return len(value) == len(gold) and all(
            _values_agree(left, right, tolerance) for left, right in zip(value, gold, strict=True)
        )
    return bool(value == gold)


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
    if set(properties) <= _parameter_names(source, name):
        return source
    return f"""{source}

_{name}_by_position = {name}


def {name}(*values, **arguments):
    ordered = [arguments.pop(key) for key in {list(properties)!r} if key in arguments]
    return _{name}_by_position(*values, *ordered, **arguments)
"""


def _parameter_names(source: str, name: str) -> set[str]:
    """Names that the function takes as keywords; none where the source does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of other people's escape sequences
            body = ast.parse(source).body
    except SyntaxError:
        return set()
    for node in reversed(body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    return set()
