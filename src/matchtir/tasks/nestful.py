"""NESTFUL (arXiv 2409.03797): nested sequences of calls to executable Python functions.

The files are JSON lines in a neutral form: question, tools, gold_trace (steps with resolved
arguments), gold_answer; the Python source of each tool is in a file beside it, named in the row.

The metrics are NESTFUL's own, computed as its published scorer does. The scorer reads one program
of calls that name earlier results ("$var_1.result$"). Here the calls are made one after the other
and carry the values themselves, so gold arguments are the resolved ones, and values are compared as
JSON. Calls that the parser refused are left out, as there.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matchtir.credit.similarity import json_equal
from matchtir.tasks.files import FileTasks
from matchtir.tasks.rows import (
    RowError,
    jsonl_rows,
    parameter_names,
    read_calls,
    read_field,
    read_tool,
    tools_by_name,
    value_text,
)
from matchtir.types import CallStatus, SubAnswer, Task, ToolCall, ToolSpec, Trajectory

# NESTFUL names its basic arithmetic without giving its source.
_EXPRESSIONS = tomllib.loads(Path(__file__).with_name("nestful_arithmetic.toml").read_text("utf-8"))
ARITHMETIC_SOURCES = {
    name: f"import math\n\n\ndef {name}({parameters}):\n    return {expression}\n"
    for name, (parameters, expression) in _EXPRESSIONS.items()
}
_LABEL = re.compile(r"\$\w+")
_READABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)


class NestfulTasks(FileTasks):
    """NESTFUL's tasks as a test set, and tasks in the same form for training.

    Args:
        train_path, test_path: JSON-lines files; None: the split is not there.
        train_require, test_require: flags that a row's `meta` must hold to be used. Training asks
            for gold traces that were executed, by pure functions, to the gold answer; of the test
            only those rows are left out whose gold arguments are no JSON (bytes), which nobody can
            write as a call.
        settings: validation_share, seed, on_bad_row, quarantine, as `FileTasks`.
    """

    benchmark = "NESTFUL"

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        train_require: Sequence[str] = ("executed", "answer_ok", "json_args", "gold_tools_pure"),
        test_require: Sequence[str] = ("json_args",),
        **settings: Any,
    ) -> None:
        super().__init__({"train": train_path, "test": test_path}, **settings)
        self.require = {"train": tuple(train_require), "test": tuple(test_require)}
        self._sources: dict[str, Mapping[str, str]] = {}

    def task(self, row: Mapping[str, Any], number: int, split: str) -> Task | None:
        """A row as a task whose sub-questions are the results of the gold steps."""
        meta = read_field(row, "meta", dict)
        if not all(meta.get(flag) for flag in self.require[split]):
            return None
        beside = read_field(read_field(row, "executors", dict), "in", str)
        folder = Path(str(self.paths[split])).expanduser().parent
        sources = self._read_sources(folder / beside)

        def read(entry: Mapping[str, Any]) -> ToolSpec:
            tool = read_tool(entry)
            if tool.name not in sources:
                raise RowError(f"no source for the tool {tool.name!r}")
            properties = tuple(tool.parameters.get("properties") or ())
            return replace(tool, source=adapt_source(sources[tool.name], tool.name, properties))

        tools = tools_by_name(read_field(row, "tools", list), read)
        steps = read_field(row, "gold_trace", list)
        calls = read_calls("gold_trace", steps, tools)
        for index, step in enumerate(steps):
            if "result" not in step:
                raise RowError(f"gold_trace[{index}]: result: is missing")
        if "gold_answer" not in row:
            raise RowError("gold_answer: is missing")
        return Task(
            task_id=f"nestful/{read_field(row, 'id', str)}",
            question=read_field(row, "question", str),
            tools=tuple(tools.values()),
            gold_calls=calls,
            answer=value_text(row["gold_answer"]),
            sub_answers=tuple(SubAnswer(s["name"], value_text(s["result"])) for s in steps),
            scenario=f"{len(calls)}_calls" if len(calls) < 5 else "5_or_more_calls",
            gold_turns=_turns(steps),
            metadata={"gold_answer": row["gold_answer"], **meta},
        )

    def _read_sources(self, path: Path) -> Mapping[str, str]:
        """Python source of every function in a functions file, the basic arithmetic filled in.

        Functions without any source are left out.
        """

        def read(row: Mapping[str, Any], number: int) -> tuple[str, str] | None:
            name = read_field(row, "name", str)
            source = read_field(row, "source", str, optional=True) or ARITHMETIC_SOURCES.get(name)
            return (name, source) if source else None

        key = str(path)
        if key not in self._sources:
            if not path.is_file():
                raise RowError(f"executors: in: there is no file {path}")
            found = self.row_filter.filter(path, enumerate(jsonl_rows(path)), read)
            self._sources[key] = dict(pair for _, pair in found)
        return self._sources[key]


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


def function_labels(trajectory: Trajectory) -> list[dict[str, list[str]]]:
    """The names of the functions called, for the macro F1 over function names."""
    gold = {call.name for call in trajectory.task.gold_calls}
    predicted = {call.name for call in _calls(trajectory)}
    return [{"gold": sorted(gold), "predicted": sorted(predicted)}]


def parameter_labels(trajectory: Trajectory) -> list[dict[str, list[str]]]:
    """Pairs of parameter and value, a row for each function, for the macro F1 over the pairs.

    Of several calls of one function the last one counts.
    """
    gold = {call.name: _pairs(call) for call in trajectory.task.gold_calls}
    predicted = {call.name: _pairs(call) for call in _calls(trajectory)}
    return [
        {"gold": gold.get(name, []), "predicted": predicted.get(name, [])}
        for name in sorted(gold.keys() | predicted.keys())
    ]


def partial_match(trajectory: Trajectory) -> float:
    """The share of positions at which gold and predicted calls are the same.

    Sequences of different lengths are aligned first: each gold call in turn takes the next
    predicted call where that has its name; what is left on either side is a position of its own.
    """
    gold, predicted = list(trajectory.task.gold_calls), _calls(trajectory)
    positions = len(gold) + len(predicted)
    same = pairs = 0
    for call in gold:
        if pairs < len(predicted) and (
            len(gold) == len(predicted) or predicted[pairs].name == call.name
        ):
            other = predicted[pairs]
            same += call.name == other.name and _pairs(call) == _pairs(other)
            pairs += 1
    return same / (positions - pairs) if positions else 0.0


def full_match(trajectory: Trajectory) -> float:
    """1 where every position is the same."""
    return float(partial_match(trajectory) == 1.0)


def win(trajectory: Trajectory) -> float:
    """1 where the last call's result is the gold answer, a float at as many decimals as that has.

    Some of the tools return a Python literal as text, which is read too.
    """
    gold = trajectory.task.metadata["gold_answer"]
    if not trajectory.results:
        return 0.0
    output = trajectory.results[-1].output
    if output == value_text(gold):
        return 1.0
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(output)
            if isinstance(value, float) and isinstance(gold, float):
                value = round(value, len(str(gold).partition(".")[2]))
            return float(json_equal(value, gold))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return 0.0


def _calls(trajectory: Trajectory) -> list[ToolCall]:
    return [call for call in trajectory.calls if call.status in _READABLE]


def _pairs(call: ToolCall) -> list[str]:
    """Parameter and value; values that are equal as JSON have the same text."""
    return sorted(
        f"{name} = {json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=False)}"
        for name, value in call.arguments.items()
    )


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    return [_plain_numbers(item) for item in value] if isinstance(value, list) else value
