"""Measures a task set: the figures in which the `ftrl` difficulty is to resemble FTRL."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from matchtir.types import Task, ToolSpec

_TYPES = ("string", "boolean", "object", "number", "array", "integer")
_ORIGINS = ("earlier output", "enum", "question", "elsewhere")
_ERROR_SIGNS = {
    "object": re.compile(r"""["']error["']\s*:"""),
    "text": re.compile(r"""["']Error"""),
    "raised": re.compile(r"\braise\b"),
}
_NOT_FOUND = re.compile(
    r"\b(not?|unknown|none|unavailable|unsupported|invalid)\b|\bn't\b", re.IGNORECASE
)


def question_text(task: Task) -> str:
    """The question without the instructions that FTRL's rows put before it."""
    return task.question.rpartition("Question: ")[2]


def measure_tasks(tasks: Sequence[Task]) -> dict[str, float]:
    """Sizes of the tasks of one scenario: means, and some extremes."""
    tools = [len(task.tools) for task in tasks]
    calls = [len(task.gold_calls) for task in tasks]
    depths = [len(set(task.gold_turns)) for task in tasks]
    called = [len({call.name for call in task.gold_calls}) for task in tasks]
    return {
        "tools offered, mean": fmean(tools),
        "tools offered, least": min(tools),
        "tools offered, most": max(tools),
        "gold calls, mean": fmean(calls),
        "gold calls, least": min(calls),
        "gold calls, most": max(calls),
        "depth, mean": fmean(depths),
        "depth, most": max(depths),
        "width, mean": fmean(max(Counter(task.gold_turns).values(), default=0) for task in tasks),
        "distractor tools, mean": fmean(a - b for a, b in zip(tools, called, strict=True)),
        "question characters, mean": fmean(len(question_text(task)) for task in tasks),
        "prompt and tools characters, mean": fmean(map(_prompt_size, tasks)),
        "arguments per gold call, mean": _mean(
            len(call.arguments) for task in tasks for call in task.gold_calls
        ),
    }


def measure_tools(tasks: Sequence[Task]) -> dict[str, float]:
    """Parameters and error styles of all tools of the tasks."""
    tools = [tool for task in tasks for tool in task.tools]
    properties = [list(tool.parameters.get("properties", {}).values()) for tool in tools]
    schemas = [schema for group in properties for schema in group]
    enums = [schema["enum"] for schema in schemas if "enum" in schema]
    kinds = Counter(str(schema.get("type")) for schema in schemas)
    styles = Counter(_error_style(tool) for tool in tools)
    return {
        "parameters per tool": fmean(map(len, properties)),
        "required parameters per tool": fmean(
            len(tool.parameters.get("required", ())) for tool in tools
        ),
        **{f"type {kind}": kinds[kind] / len(schemas) for kind in _TYPES},
        "with an enum": len(enums) / len(schemas),
        "values per enum": _mean(map(len, enums)),
        "with a default": fmean("default" in schema for schema in schemas),
        **{f"errors: {style}": styles[style] / len(tools) for style in _ERROR_SIGNS},
    }


def measure_origins(tasks: Sequence[Task]) -> dict[str, float]:
    """Where the argument values of gold calls come from, the first that applies."""
    origins = Counter(origin for task in tasks for origin in _origins(task))
    total = max(sum(origins.values()), 1)
    return {f"argument from {origin}": origins[origin] / total for origin in _ORIGINS}


def classify_refusal(output: str) -> str:
    """What a tool makes of an unknown entity: "error object", "error text", "soft" or "value"."""
    if _ERROR_SIGNS["object"].search(output[:12]):
        return "error object"
    if output.lower().startswith("error"):
        return "error text"
    return "soft" if _NOT_FOUND.search(output) else "value"


def _prompt_size(task: Task) -> int:
    return len(task.question) + len(json.dumps([tool.schema() for tool in task.tools]))


def _error_style(tool: ToolSpec) -> str:
    for style, sign in _ERROR_SIGNS.items():
        if sign.search(tool.source):
            return style
    return "none"


def _origins(task: Task) -> Iterable[str]:
    question = question_text(task).lower()
    schemas = {tool.name: tool.parameters.get("properties", {}) for tool in task.tools}
    outputs: list[str] = []
    for position, call in enumerate(task.gold_calls):
        for name, value in call.arguments.items():
            yield _origin(value, schemas[call.name].get(name, {}), question, outputs)
        if position < len(task.sub_answers):
            outputs.append(task.sub_answers[position].output.lower())


def _origin(value: Any, schema: Any, question: str, outputs: Sequence[str]) -> str:
    texts = [str(item).lower() for item in (value if isinstance(value, list) else [value])]

    def all_in(holds: Callable[[str, str], bool], places: Sequence[str]) -> bool:
        return all(any(holds(text, place) for place in places) for text in texts)

    if all_in(lambda text, output: text in output.replace(",", "") or output in text, outputs):
        return "earlier output"
    if value in schema.get("enum", ()):
        return "enum"
    return "question" if all_in(lambda text, place: text in place, [question]) else "elsewhere"


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return fmean(values) if values else 0.0
