"""One row of ToolHop's file as a task; whatever is wrong with a row is named with its field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from matchtir.tasks.gold_traces import Trace, read_trace, worst_quality
from matchtir.tasks.rows import RowError, align_sub_answers, parameter_names, read_field
from matchtir.types import SubAnswer, Task, ToolSpec


def task_from_row(row: Mapping[str, Any], number: int, gold_trace: Trace = ()) -> Task:
    """One question with its tools; the hops are its sub-questions.

    Args:
        gold_trace: steps that give the row its gold calls; of tools that share a name, a step's
            `sub_question` says which one it means.

    Raises:
        RowError: what is wrong, and with which field.
    """
    tools = _read_tools(row)  # by hop
    hops = read_field(row, "sub_task", dict)
    for hop, output in hops.items():
        if hop not in tools or not isinstance(output, str):
            raise RowError(f"sub_task: {hop!r}: no tool for it, or no text as its answer")
    steps = [
        {**step, "name": tools[step["sub_question"]].name}
        if step.get("sub_question") in tools
        else step
        for step in gold_trace
    ]
    calls, turns = read_trace(steps, {tool.name for tool in tools.values()})
    sub_answers = [SubAnswer(tools[hop].name, output) for hop, output in hops.items()]
    return Task(
        task_id=str(number),
        question=read_field(row, "question", str),
        tools=tuple(tools.values()),
        gold_calls=tuple(calls),
        answer=read_field(row, "answer", str),
        sub_answers=align_sub_answers(calls, sub_answers),
        gold_turns=turns,
        metadata={
            "row": number,
            "domain": row.get("domain"),
            "answer_type": row.get("answer_type"),
            "gold_quality": worst_quality(gold_trace),
        },
    )


def _read_tools(row: Mapping[str, Any]) -> dict[str, ToolSpec]:
    """The tool of each hop, in the order of their sources, which is the published order.

    Several tools of one row may share a name. Each gets a name of its own, the first one keeps it;
    the published evaluation offers them under one name and runs the last.
    """
    schemas = read_field(row, "tools", dict)
    sources = read_field(row, "functions", list)
    if len(sources) != len(schemas):
        raise RowError(f"functions: {len(sources)} sources for {len(schemas)} tools")
    waiting = dict(schemas)
    tools: dict[str, ToolSpec] = {}
    names: Counter[str] = Counter()
    for index, source in enumerate(sources):
        hop = _hop_of(source, waiting, index, list(schemas)[index])
        schema = waiting.pop(hop)
        name = schema["name"]
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}_{names[name]}"
        if unique != name:
            source = f"{source}\n\n{unique} = {name}\n"
        tools[hop] = ToolSpec(unique, schema["description"], schema["parameters"], source)
    return tools


def _hop_of(source: Any, waiting: Mapping[str, Any], index: int, in_place: str) -> str:
    """The hop whose tool a source defines: by name, and by parameters where several have it.

    A source that does not parse belongs to the hop in its place, if that is still waiting.
    """
    if not isinstance(source, str):
        raise RowError(f"functions[{index}]: expected text, got {type(source).__name__}")
    named = []
    for hop, schema in waiting.items():
        try:
            if not isinstance(schema, Mapping):
                raise RowError(f"expected an object, got {type(schema).__name__}")
            name = read_field(schema, "name", str)
            read_field(schema, "description", str)
            properties = read_field(schema, "parameters", dict).get("properties") or {}
        except RowError as error:
            raise RowError(f"tools: {hop!r}: {error}") from None
        known = parameter_names(source, name)
        if known is not None:
            named.append((len(known & set(properties)) - len(set(properties) - known), hop))
    if not named and in_place in waiting:
        return in_place
    if not named:
        raise RowError(f"functions[{index}]: defines none of the tools that are left")
    return max(named, key=lambda item: item[0])[1]
