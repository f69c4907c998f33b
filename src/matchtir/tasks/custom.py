"""The task set of one's own questions and tools; docs/your-own-tools.md has the schema of a row."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matchtir.credit.outcome import missed
from matchtir.tasks.files import existing_file
from matchtir.tasks.rows import (
    SPLITS,
    RowError,
    RowFilter,
    error_at,
    jsonl_rows,
    read_calls,
    read_field,
    read_tool,
    tools_by_name,
    value_text,
)
from matchtir.tasks.splits import SPLIT_BY, split_tasks
from matchtir.tasks.tool_sources import ToolSource, read_tools
from matchtir.tools.sandbox import Replay, Sandbox, replay_all, succeeded
from matchtir.types import Message, SubAnswer, Task, ToolCall, ToolSpec
from matchtir.utils.options import check_option, suggest

GOLD = ("required", "optional")
DEFAULT_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}

FIELDS = (
    *("id", "split", "scenario", "question", "messages", "tools"),
    *("gold_calls", "alternatives", "answer", "initial_state", "gold_state", "metadata"),
    *("user", "user_goal"),
)
CALL_FIELDS = ("name", "arguments", "turn", "output")
TOOL_FIELDS = ("name", "description", "source", "parameters", "owner", "strict")
COMBINED = {"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "if"}
ROLES = ("system", "user", "assistant")


class CustomTasks:
    """Questions in JSON lines.

    Gold calls without outputs are executed once, when the tasks are read: their outputs are what
    the Solve metrics count and what fine-tuning shows the policy, and a gold call that fails, or
    gold calls that miss the row's gold state, are a mistake in the row.

    Args:
        path: the rows. Each has a `split`, or none has; then they are split here.
        tools: where tools come from that rows name, see `read_tools`; None: rows bring their own.
        sandbox: executes the gold calls, and is shut down afterwards; None: nothing is executed.
        gold: "required", or "optional" for rows whose gold calls are still to be found.
        split_by: what tasks of two splits may not share: "content", "tools" or "entities".
        shares: relative sizes of the splits.
        seed: of the splitting.
        on_bad_row, quarantine: as `RowFilter`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an option that is not allowed, or tools that cannot be read.
    """

    def __init__(
        self,
        path: str,
        tools: ToolSource | Sequence[ToolSource] | None = None,
        sandbox: Sandbox | None = None,
        gold: str = "required",
        split_by: str = "content",
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        on_bad_row: str = "stop",
        quarantine: str | None = None,
    ) -> None:
        check_option("gold", gold, GOLD)
        check_option("split_by", split_by, SPLIT_BY)
        self.path = existing_file(path, "path")
        self.tools = {tool.name: tool for tool in read_tools(tools)}
        self.sandbox = sandbox
        self.gold = gold
        self.split_by = split_by
        self.shares = dict(shares or DEFAULT_SHARES)
        self.seed = seed
        self.row_filter = RowFilter(on_bad_row, quarantine)
        self._splits: Mapping[str, Sequence[Task]] | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; the file is read when first asked for.

        Raises:
            ValueError: an unknown split.
            RowError: a malformed row (with on_bad_row=stop): file, row and field.
        """
        check_option("split", split, SPLITS)
        if self._splits is None:
            tasks = self._read()
            if any("split" in task.metadata for _, task in tasks):
                tasks = self.row_filter.filter(self.path, tasks, _with_split)
                splits = [task.metadata["split"] for _, task in tasks]
            else:
                alone = [task for _, task in tasks]
                splits = split_tasks(alone, self.split_by, self.shares, self.seed)
            parts: dict[str, list[Task]] = {name: [] for name in SPLITS}
            for (_, task), name in zip(tasks, splits, strict=True):
                parts[name].append(replace(task, metadata={**task.metadata, "split": name}))
            self._splits = parts
        return self._splits[split]

    def rows(self) -> tuple[Task, ...]:
        """All tasks in the order of their rows; `metadata` has the split of those that have one."""
        return tuple(task for _, task in self._read())

    def _read(self) -> list[tuple[int, Task]]:
        """(row, task with the outputs of its gold calls)."""

        def make(row: Mapping[str, Any], number: int) -> Task:
            return task_from_row(row, f"{self.path.stem}/{number}", self.tools, self.gold)

        tasks = self.row_filter.filter(self.path, enumerate(jsonl_rows(self.path)), make)
        if self.sandbox is None:
            return tasks
        try:
            replays = replay_all([(task, task.gold_calls) for _, task in tasks], self.sandbox)
        finally:
            self.sandbox.shutdown()
        played = {number: replay for (number, _), replay in zip(tasks, replays, strict=True)}
        return self.row_filter.filter(
            self.path, tasks, lambda task, number: with_outputs(task, played[number])
        )


def _with_split(task: Task, number: int) -> Task:
    if "split" not in task.metadata:
        raise RowError("split: is missing; other rows have one")
    return task


def with_outputs(task: Task, replay: Replay) -> Task:
    """The task with what its gold calls returned.

    Raises:
        RowError: a call failed, or the gold state was not reached.
    """
    for index, (call, result) in enumerate(zip(task.gold_calls, replay.results, strict=True)):
        if not succeeded(result):
            raise RowError(f"gold_calls[{index}]: {call.name} fails: {result.output}")
    if task.gold_state is not None and task.gold_calls:
        problem = missed(task.gold_state, replay.state)
        if problem:
            raise RowError(f"gold_state: after the gold calls, {problem}")
    outputs = (result.output for result in replay.results)
    answers = tuple(SubAnswer(c.name, o) for c, o in zip(task.gold_calls, outputs, strict=True))
    return replace(task, sub_answers=task.sub_answers or answers)


def task_from_row(
    row: Mapping[str, Any], task_id: str, offered: Mapping[str, ToolSpec], gold: str = "required"
) -> Task:
    """A row as a task.

    Args:
        task_id: for a row without an id.
        offered: tools that rows may name, in the order in which rows without `tools` offer them.
        gold: "required", or "optional" for rows whose gold calls are still to be found.

    Raises:
        RowError: what is wrong, and with which field.
    """
    _check_fields(row, FIELDS)
    question, history = _read_question(row)
    tools = _read_tools(row, offered)
    items = read_field(row, "gold_calls", list, optional=True)
    if items is None and gold == "required":
        raise RowError("gold_calls: is missing (scripts/collect_traces.py finds them)")
    calls = _read_calls("gold_calls", items or (), tools)
    alternatives = tuple(
        _read_calls(f"alternatives[{number}]", trace, tools)
        for number, trace in enumerate(read_field(row, "alternatives", list, optional=True) or ())
    )
    turns = [turn - 1 for turn in _of_all("turn", items or ())]
    outputs = map(value_text, _of_all("output", items or ()))
    gold_state = _read_state(row, "gold_state", tools)
    answer = "" if row.get("answer") is None else value_text(row["answer"])
    if not answer.strip() and gold_state is None:
        raise RowError("answer: is missing or empty, and there is no gold_state")
    return Task(
        task_id=read_field(row, "id", str, optional=True) or task_id,
        question=question,
        tools=tuple(tools.values()),
        gold_calls=calls,
        answer=answer,
        sub_answers=tuple(SubAnswer(c.name, o) for c, o in zip(calls, outputs, strict=False)),
        scenario=read_field(row, "scenario", str, optional=True) or "",
        gold_turns=tuple(turns),
        alternative_gold_calls=alternatives,
        history=history,
        initial_state=_read_state(row, "initial_state", tools) or {},
        gold_state=gold_state,
        metadata=_read_metadata(row),
        **_read_user(row),
    )


def _read_metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the row says of itself, and its split."""
    metadata = dict(read_field(row, "metadata", dict, optional=True) or {})
    if "split" in metadata:
        raise RowError("metadata: split: has a field of its own")
    if (split := read_field(row, "split", str, optional=True)) is not None:
        if split not in SPLITS:
            raise RowError(f"split: {split!r} is none of {', '.join(SPLITS)}")
        metadata["split"] = split
    return metadata


def _read_user(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the user says to turns without calls, or what a simulated one is to reach."""
    said = read_field(row, "user", list, optional=True) or []
    goal = read_field(row, "user_goal", str, optional=True) or ""
    if said and goal:
        raise RowError("user: a row has either what the user says or a user_goal")
    if not all(isinstance(text, str) and text.strip() for text in said):
        raise RowError("user: expected a list of messages")
    return {"user": tuple(said), "user_goal": goal}


def _of_all(field: str, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A field of every gold call; empty where none has it."""
    values = [call[field] for call in calls if call.get(field) is not None]
    if len(values) not in (0, len(calls)):
        raise RowError(f"gold_calls: some have {field}, others have none")
    return values


def row_from_task(task: Task, named: Collection[str] = ()) -> dict[str, Any]:
    """The row that `task_from_row` makes the task of.

    Args:
        named: tools that are written as their names; the others get their schemas and sources.
    """
    called = [call.name for call in task.gold_calls]
    known = [item.tool for item in task.sub_answers] == called
    calls = [
        _call_entry(call)
        | ({"turn": task.gold_turns[index] + 1} if task.gold_turns else {})
        | ({"output": task.sub_answers[index].output} if known else {})
        for index, call in enumerate(task.gold_calls)
    ]
    messages = [{"role": m.role, "content": m.content} for m in task.history]
    metadata = dict(task.metadata)
    row: dict[str, Any] = {
        "id": task.task_id,
        "split": metadata.pop("split", None),
        "scenario": task.scenario,
        "question": None if messages else task.question,
        "messages": messages and [*messages, {"role": "user", "content": task.question}],
        "tools": [tool.name if tool.name in named else _tool_entry(tool) for tool in task.tools],
        "gold_calls": calls,
        "alternatives": [list(map(_call_entry, trace)) for trace in task.alternative_gold_calls],
        "answer": task.answer,
        "initial_state": dict(task.initial_state),
        "gold_state": task.gold_state,
        "metadata": metadata,
        "user": list(task.user),
        "user_goal": task.user_goal,
    }
    kept = ("gold_calls", "tools")  # an empty list says something there
    return {
        key: value for key, value in row.items() if key in kept or value not in (None, "", [], {})
    }


def _call_entry(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _tool_entry(tool: ToolSpec) -> dict[str, Any]:
    written = {field: getattr(tool, field) for field in TOOL_FIELDS}
    special = ("owner", "strict")  # which most have not
    return {field: value for field, value in written.items() if value or field not in special}


def _check_fields(item: Any, fields: Sequence[str]) -> None:
    if not isinstance(item, Mapping):
        raise RowError(f"expected an object, got {type(item).__name__}")
    for key in item:
        if key not in fields:
            hint = suggest(key, fields) or f"; the fields are {', '.join(fields)}"
            raise RowError(f"{key}: there is no such field{hint}")


def _read_question(row: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    if (row.get("question") is None) == (row.get("messages") is None):
        raise RowError("question: a row has either a question or messages")
    if row.get("question") is not None:
        return read_field(row, "question", str), ()
    messages = []
    for index, item in enumerate(read_field(row, "messages", list)):
        with error_at(f"messages[{index}]"):
            role, content = read_field(item, "role", str), read_field(item, "content", str)
            _check_fields(item, ("role", "content"))
            if role not in ROLES:
                raise RowError(f"role: {role!r} is none of {', '.join(ROLES)}")
        messages.append(Message(role, content))
    if not messages or messages[-1].role != "user":
        raise RowError("messages: the last one must be the user's: it is the question")
    return messages[-1].content, tuple(messages[:-1])


def _read_tools(row: Mapping[str, Any], offered: Mapping[str, ToolSpec]) -> dict[str, ToolSpec]:
    """The tools of a row by name; those of `data.tools` where the row names none."""
    entries = read_field(row, "tools", list, optional=True)
    if entries is None:
        if not offered:
            raise RowError("tools: is missing, and no tools are given for all rows (data.tools)")
        return dict(offered)

    def read(entry: Any) -> ToolSpec:
        if not isinstance(entry, str):
            return _read_own_tool(entry)
        if entry not in offered:
            there = ", ".join(offered) or "none: set data.tools"
            raise RowError(f"there is no tool {entry!r} (there is {there})")
        return offered[entry]

    return tools_by_name(entries, read)


def _read_own_tool(entry: Mapping[str, Any]) -> ToolSpec:
    """A tool that is written in the row: its schema, flat or as OpenAI nests it, and its source."""
    if isinstance(entry, Mapping) and isinstance(entry.get("function"), Mapping):
        flat = {key: value for key, value in entry.items() if key not in ("type", "function")}
        entry = {**flat, **entry["function"]}
    _check_fields(entry, TOOL_FIELDS)
    tool = read_tool(entry)
    owner = read_field(entry, "owner", str, optional=True) or ""
    strict = bool(read_field(entry, "strict", bool, optional=True))
    source = read_field(entry, "source", str)
    _check_source(source, owner, tool.name)
    return replace(tool, source=source, owner=owner, strict=strict)


def _check_source(source: str, owner: str, name: str) -> None:
    """The source must parse, and define the class or function; nothing is executed."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise RowError(f"source: not Python: {error}") from None
    kinds = ast.ClassDef if owner else ast.FunctionDef | ast.AsyncFunctionDef
    names = {node.name for node in body if isinstance(node, kinds)}
    for node in body if not owner else ():
        targets = node.targets if isinstance(node, ast.Assign) else ()
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    if (owner or name) not in names:
        raise RowError(f"source: it defines no {f'class {owner}' if owner else f'function {name}'}")


def _read_calls(field: str, items: Any, tools: Mapping[str, ToolSpec]) -> tuple[ToolCall, ...]:
    """Calls of the row's tools with arguments that fit; their turns count from 1."""

    def check(item: Mapping[str, Any]) -> None:
        _check_fields(item, CALL_FIELDS)
        turn = read_field(item, "turn", int, optional=True)
        if turn is not None and turn < 1:
            raise RowError(f"turn: expected a number from 1, got {turn}")
        tool, arguments = tools[item["name"]], item["arguments"]
        properties = tool.parameters.get("properties") or {}
        # What is combined may name more arguments.
        takes_more = tool.parameters.get("additionalProperties") or COMBINED & {*tool.parameters}
        for name in arguments:
            if name not in properties and not takes_more:
                takes = ", ".join(properties) or "no arguments"
                raise RowError(f"arguments: {tool.name} takes no {name!r} (it takes {takes})")
        for name in tool.parameters.get("required") or ():
            if name not in arguments:
                raise RowError(f"arguments: {tool.name} needs {name!r}")

    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError(f"{field}: expected a list of calls")
    return read_calls(field, items, tools, check=check)


def _read_state(
    row: Mapping[str, Any], field: str, tools: Mapping[str, ToolSpec]
) -> dict[str, Any] | None:
    given = read_field(row, field, dict, optional=True) or {}
    state = {owner: item for owner, item in given.items() if item is not None}  # as Arrow fills it
    owners = sorted({tool.owner for tool in tools.values() if tool.owner})
    for owner, attributes in state.items():
        if owner not in owners:
            there = ", ".join(owners) or "none of the row's tools has a class"
            raise RowError(f"{field}: {owner!r} is no class of the row's tools ({there})")
        if not isinstance(attributes, dict):
            raise RowError(f"{field}: {owner}: expected an object, got {type(attributes).__name__}")
    return state or None
