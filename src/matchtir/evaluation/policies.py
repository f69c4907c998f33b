"""What policies without weights write: the gold solution, and chance.

What they write goes through tokenizer, parser, sandbox and scorer like the text of any policy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tasks.gold import gold_turn_texts
from matchtir.tools.formats import render_call
from matchtir.types import Task, ToolSpec
from matchtir.utils.options import check_option

SCRIPTED_POLICIES = ("gold", "random")

_TURNS, _CALLS = (1, 5), (1, 2)  # of a random attempt, and of a turn: about FTRL's gold traces
_OPTIONAL_SHARE = 0.25  # chance that an optional parameter is given
_DEFAULT_SHARE = 0.5  # chance that a parameter with a default gets it


def scripted_turns(name: str, task: Task, seed: int) -> tuple[str, ...]:
    """What "gold" or "random" writes, turn by turn.

    Raises:
        ValueError: another name.
    """
    check_option("policy", name, SCRIPTED_POLICIES)
    return gold_turn_texts(task) if name == "gold" else random_turn_texts(task, seed)


def random_turn_texts(task: Task, seed: int) -> tuple[str, ...]:
    """One to five turns of well-formed calls to random tools, then a word of the question.

    The texts depend on the seed and the task's id alone.
    """
    generator = random.Random(f"{seed}/{task.task_id}")
    words = task.question.split() or ["?"]
    turns = []
    for _ in range(generator.randint(*_TURNS) if task.tools else 0):
        tools = generator.choices(task.tools, k=generator.randint(*_CALLS))
        calls = [render_call(tool.name, _arguments(tool, words, generator)) for tool in tools]
        turns.append("\n".join(calls))
    return (*turns, f"<answer>{generator.choice(words)}</answer>")


def _arguments(tool: ToolSpec, words: Sequence[str], generator: random.Random) -> dict[str, Any]:
    """Arguments that fit the tool's schema: all required ones, some of the others."""
    required = tool.parameters.get("required") or ()
    properties = tool.parameters.get("properties") or {}
    return {
        name: random_value(schema, words, generator)
        for name, schema in properties.items()
        if name in required or generator.random() < _OPTIONAL_SHARE
    }


def random_value(schema: Any, words: Sequence[str], generator: random.Random) -> Any:
    """A value that fits a JSON schema: its default, one of its enum, or one of its type.

    Strings are made of one to three neighbouring `words`. An unknown type is taken as a string.
    """
    if not isinstance(schema, Mapping):
        schema = {}
    if "default" in schema and generator.random() < _DEFAULT_SHARE:
        return schema["default"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return generator.choice(schema["enum"])
    kind = schema.get("type", "string")
    if isinstance(kind, list):  # one of several types
        kind = generator.choice(kind) if kind else "string"
    match kind:
        case "boolean":
            return generator.random() < 0.5
        case "integer":
            return _whole_number(schema, generator)
        case "number":
            return round(_whole_number(schema, generator) + generator.choice((0.0, 0.5)), 1)
        case "array":
            count = generator.randint(1, 3)
            return [random_value(schema.get("items"), words, generator) for _ in range(count)]
        case "object":
            return {
                name: random_value(inner, words, generator)
                for name, inner in (schema.get("properties") or {}).items()
            }
        case "null":
            return None
    start = generator.randrange(len(words))
    return " ".join(words[start : start + generator.randint(1, 3)])


def _whole_number(schema: Mapping[str, Any], generator: random.Random) -> int:
    """A number within the schema's bounds, between 0 and 100 where it has none."""
    lowest, highest = _bound(schema.get("minimum")), _bound(schema.get("maximum"))
    if lowest is None:
        lowest = 0 if highest is None else min(0, highest)
    if highest is None:
        highest = lowest + 100
    return generator.randint(lowest, max(lowest, highest))


def _bound(value: Any) -> int | None:
    """A bound as a whole number; None where the schema states none that can be read."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None
