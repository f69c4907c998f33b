"""Rows of other people's data files as tasks: reading them, checking them, leaving bad ones out."""

from __future__ import annotations

import ast
import functools
import json
import logging
import os
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from matchtir.tools.formats import extract_answer, parse_calls, render_call
from matchtir.types import CallStatus, SubAnswer, Task, ToolCall, ToolSpec
from matchtir.utils.options import UserError, check_option

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

Item = TypeVar("Item")
Made = TypeVar("Made")


@runtime_checkable
class TaskSet(Protocol):
    """Tasks in splits; which splits are empty is the task set's own affair."""

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"."""
        ...


class RowError(UserError):
    """A row that cannot become a task; the message names the field, then file and row too."""


Row = Mapping[str, Any] | RowError  # a row, or why it cannot be read


@contextmanager
def error_at(place: str) -> Iterator[None]:
    """Names the place of a RowError that is raised inside."""
    try:
        yield
    except RowError as error:
        raise RowError(f"{place}: {error}") from None


class RowFilter:
    """What becomes of rows that cannot be used, the same for every file.

    Args:
        on_bad_row: "stop" raises for the first of them, "skip" logs each one and their count.
        quarantine: JSON lines with `file`, `row` and `reason` of all of them, of each file as it
            was last read; None: nothing is written.

    Raises:
        ValueError: another word.
    """

    def __init__(self, on_bad_row: str, quarantine: str | None) -> None:
        check_option("on_bad_row", on_bad_row, ("stop", "skip"))
        self.on_bad_row = on_bad_row
        self.quarantine = Path(quarantine) if quarantine else None
        self._bad: dict[str, dict[int, str]] = {}  # by file and row

    def filter(
        self,
        path: object,
        rows: Iterable[tuple[int, Item | RowError]],
        make: Callable[[Item, int], Made | None],
    ) -> list[tuple[int, Made]]:
        """(number, what `make` made of it) of the numbered rows of a file; None is left out.

        Raises:
            RowError: a bad row, a task of an earlier one's id, or one whose gold solution cannot be
                written (with on_bad_row=stop): file, row and field.
        """
        made: list[tuple[int, Made]] = []
        bad: dict[int, str] = {}
        ids: set[str] = set()
        numbered = list(rows)
        for number, row in numbered:
            try:
                if isinstance(row, RowError):
                    raise row
                result = make(row, number)
                if isinstance(result, Task):
                    check_gold(result)
                    if result.task_id in ids:
                        raise RowError(f"id: an earlier row has {result.task_id!r} too")
                    ids.add(result.task_id)
                if result is not None:
                    made.append((number, result))
            except RowError as error:
                bad[number] = str(error)
        self._quarantine(str(path), bad)
        for number, problem in bad.items():
            if self.on_bad_row == "stop":
                raise RowError(
                    f"{path}, row {number}: {problem} (on_bad_row=skip leaves out such rows; there "
                    f"are {len(bad)}, {self.quarantine or 'quarantine=FILE'} names them)"
                )
            log.warning("left out: %s, row %d: %s", path, number, problem)
        if bad:
            log.warning("%s: left out %d of %d rows", path, len(bad), len(numbered))
        return made

    def _quarantine(self, path: str, bad: Mapping[int, str]) -> None:
        """Put the bad rows of a file, those of its other sifts too, in the place of former ones."""
        found = self._bad.setdefault(path, {})
        found |= bad
        if self.quarantine is None or not (found or self.quarantine.exists()):
            return
        kept = read_jsonl(self.quarantine) if self.quarantine.exists() else []
        entries = [entry for entry in kept if entry["file"] != path]
        entries += [{"file": path, "row": row, "reason": why} for row, why in found.items()]
        self.quarantine.parent.mkdir(parents=True, exist_ok=True)
        # Whole at any moment, whoever else reads or writes it.
        written = self.quarantine.with_suffix(f".{os.getpid()}")
        written.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        written.replace(self.quarantine)


def check_gold(task: Task) -> None:
    """Raise RowError for a gold solution that is read otherwise than it is written."""
    for number, trace in enumerate(task.gold_traces):
        field = "gold_calls" if number == 0 else f"alternatives[{number - 1}]"
        for index, call in enumerate(trace):
            try:
                text = render_call(call.name, call.arguments)
            except (ValueError, TypeError) as error:
                raise RowError(f"{field}[{index}]: is not JSON: {error}") from None
            read = [(c.name, c.arguments, c.status) for c in parse_calls(text, None)]
            if read != [(call.name, call.arguments, CallStatus.OK)]:
                raise RowError(
                    f"{field}[{index}]: arguments: as the text of a call they are read otherwise "
                    "(tags of calls or thinking, numbers out of range, deep nesting)"
                )
    if extract_answer(f"<answer>{task.answer}</answer>") != task.answer.strip():
        raise RowError("answer: holds tags that end an answer or begin thinking")


def jsonl_rows(path: str | Path) -> Iterator[Row]:
    """The objects of a JSON-lines file, or why a line is none; blank lines are left out."""
    # Split at "\n" alone: str.splitlines would also cut at separators inside JSON strings.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            with error_at(f"line {number}"):
                row = parse_json(line.decode(), dict)
            yield row
        except UnicodeDecodeError as error:
            yield RowError(f"line {number}: not UTF-8: {error}")
        except RowError as error:
            yield error


def read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON-lines file; blank lines are left out.

    Raises:
        RowError: a line is not a JSON object; the message names file and line.
    """
    made = []
    for row in jsonl_rows(path):
        if isinstance(row, RowError):
            raise RowError(f"{path}, {row}")
        made.append(row)
    return made


def parse_json(text: str, kind: type) -> Any:
    """The value of a JSON text.

    Raises:
        RowError: it is broken, nested deeper than Python reads, of another type, or holds half of a
            surrogate pair, which no file could be written with.
    """
    try:
        value = json.loads(text)
        named = value if isinstance(value, dict) else {"value": value}
        for name, item in named.items() if "\\u" in text else ():
            try:
                json.dumps(item, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise RowError(f"{name!r:.50}: holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON: {error}") from error
    except RecursionError:
        raise RowError("broken JSON: nested too deeply") from None
    if not isinstance(value, kind):
        name = "object" if kind is dict else kind.__name__
        raise RowError(f"expected a JSON {name}, got {type(value).__name__}")
    return value


def read_field(row: Mapping[str, Any], field: str, kind: type, optional: bool = False) -> Any:
    """The value of a field, checked for its type; None for an optional one that is not there.

    Raises:
        RowError: the field is missing, null, or of another type, or the row is no object.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"expected an object, got {type(row).__name__}")
    value = row.get(field)
    if value is None and not optional:
        problem = "is null" if field in row else f"is missing (the row has {', '.join(row)})"
        raise RowError(f"{field}: {problem}")
    if value is not None and not isinstance(value, kind):
        raise RowError(f"{field}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def read_json_field(row: Mapping[str, Any], field: str, kind: type, optional: bool = False) -> Any:
    """The decoded value of a field that holds JSON text, checked for its type.

    Raises:
        RowError: the field is missing, null, not JSON, or JSON of another type.
    """
    text = read_field(row, field, str, optional)
    with error_at(field):
        return None if text is None else parse_json(text, kind)


def tools_by_name(entries: Sequence[Any], read: Callable[[Any], ToolSpec]) -> dict[str, ToolSpec]:
    """The tools of a row by name.

    Raises:
        RowError: two of one name, or what `read` says of an entry.
    """
    tools: dict[str, ToolSpec] = {}
    for index, entry in enumerate(entries):
        with error_at(f"tools[{index}]"):
            tool = read(entry)
            if tool.name in tools:
                raise RowError(f"two tools are called {tool.name!r}")
        tools[tool.name] = tool
    return tools


def read_tool(entry: Mapping[str, Any]) -> ToolSpec:
    """A tool by its schema, without its source.

    In the schema properties are named schemas, and what is required is a list of names. What is
    null there is absent, but for a default or constant.
    """
    name, description = read_field(entry, "name", str), read_field(entry, "description", str)
    parameters = _without_nulls(read_field(entry, "parameters", dict))
    with error_at("parameters"):
        properties = read_field(parameters, "properties", dict, optional=True) or {}
        for key, item in properties.items():
            if not isinstance(item, (dict, bool)):
                got = type(item).__name__
                raise RowError(f"properties: {key}: expected a schema, got {got}")
        required = read_field(parameters, "required", list, optional=True) or []
        if not all(isinstance(key, str) for key in required):
            raise RowError("required: expected a list of names")
    return ToolSpec(name, description, parameters)


def _without_nulls(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    values = ("default", "const")
    return {
        key: item if key in values else _without_nulls(item)
        for key, item in schema.items()
        if item is not None or key in values
    }


def read_calls(
    field: str,
    items: Sequence[Any],
    tools: Collection[str],
    arguments: str = "arguments",
    check: Callable[[Any], None] = lambda item: None,
) -> tuple[ToolCall, ...]:
    """The gold calls of a field, in order.

    Args:
        tools: names of those that may be called.
        arguments: the field that has them.
        check: raises RowError for an item that has more against it.
    """
    calls = []
    for index, item in enumerate(items):
        with error_at(f"{field}[{index}]"):
            name = read_field(item, "name", str)
            if name not in tools:
                raise RowError(f"name: {name!r} is none of the row's tools ({', '.join(tools)})")
            calls.append(ToolCall(name, read_field(item, arguments, dict)))
            check(item)
    return tuple(calls)


def value_text(value: Any) -> str:
    """A value as the sandbox shows it to the policy: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def align_sub_answers(
    calls: Sequence[ToolCall], sub_answers: Sequence[SubAnswer]
) -> tuple[SubAnswer, ...]:
    """The sub-answers in the order of the calls where both name the same tools, else unchanged.

    The sub-answers of one tool keep their order among themselves, which the Solve metrics use.
    """
    if Counter(call.name for call in calls) != Counter(item.tool for item in sub_answers):
        return tuple(sub_answers)
    waiting: defaultdict[str, deque[SubAnswer]] = defaultdict(deque)
    for item in sub_answers:
        waiting[item.tool].append(item)
    return tuple(waiting[call.name].popleft() for call in calls)


@functools.cache
def parameter_names(source: str, name: str) -> set[str] | None:
    """Names that a function takes as keywords; None where the source does not define it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of other people's escape sequences
            body = ast.parse(source).body
    except SyntaxError:
        return None
    for node in reversed(body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    return None
