"""BFCL's gold solutions (multi-turn and memory) as turns that a policy could have written.

The entries come from the official package, `bfcl-eval`, by `matchtir.evaluation.bfcl_worker`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tools.formats import render_call
from matchtir.types import ToolCall, ToolSpec

DONE = "Done."  # ends a turn of the user
NOT_POSSIBLE = "I cannot do that with what I have."  # where the gold solution makes no call

_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


@dataclass(frozen=True, slots=True)
class BfclEntry:
    """One conversation: what the user says turn by turn, and what should come of it."""

    entry_id: str
    category: str
    user_turns: tuple[str, ...]
    tools: tuple[ToolSpec, ...]
    gold_calls: tuple[tuple[ToolCall, ...], ...] | None  # of each turn; None: no calls are known
    gold_answers: tuple[str, ...]  # any of them will do; empty where calls are scored
    needs: tuple[str, ...]  # entries that must be run before

    @property
    def is_scored(self) -> bool:
        """Whether it counts; the others fill a memory for those that need them."""
        return self.gold_calls is not None or bool(self.gold_answers)


def entry_from_row(row: Mapping[str, Any]) -> BfclEntry:
    """An entry as the worker describes it.

    Raises:
        ValueError: a gold call that is no call of a known function with literal arguments.
    """
    tools = tuple(_tool(document) for document in row["functions"])
    gold = row["gold"] or ()
    answers = tuple(item for item in gold if isinstance(item, str))
    calls = None
    if row["gold"] is not None and not answers:
        parameters = {tool.name: list(tool.parameters["properties"]) for tool in tools}
        calls = tuple(tuple(read_call(text, parameters) for text in turn) for turn in gold)
    return BfclEntry(
        entry_id=row["id"],
        category=row["category"],
        user_turns=tuple("\n".join(texts) for texts in row["turns"]),
        tools=tools,
        gold_calls=calls,
        gold_answers=answers,
        needs=tuple(row["needs"]),
    )


def read_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """A gold call such as ``mv(source='a', destination='b')``, or with its arguments by position.

    Args:
        parameters: names of each function's parameters, in order.

    Raises:
        ValueError: it is no such call.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("not a call by name")
        given = [ast.literal_eval(argument) for argument in call.args]
        named = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        by_position = dict(zip(parameters[call.func.id], given, strict=False))
    except (SyntaxError, KeyError, ValueError) as error:
        raise ValueError(f"gold call {text!r}: {error}") from error
    if len(by_position) < len(given):
        raise ValueError(f"gold call {text!r}: {len(given)} arguments are too many")
    return ToolCall(call.func.id, by_position | named)


def gold_turn_texts(entry: BfclEntry) -> tuple[str, ...]:
    """The messages of the gold solution over the whole conversation.

    For each turn of the user the gold calls in one message, then one that ends the turn. An entry
    without gold calls is answered; one that only fills a memory is acknowledged, since nobody says
    what should be remembered.
    """
    if entry.gold_calls is not None:
        return tuple(text for turn in entry.gold_calls for text in _turn_texts(turn))
    answer = DONE
    if entry.gold_answers:
        answer = str({"answer": entry.gold_answers[0], "context": "It was said so."})
    return (answer,) * len(entry.user_turns)


def _turn_texts(calls: Sequence[ToolCall]) -> tuple[str, ...]:
    if not calls:
        return (NOT_POSSIBLE,)
    return "\n".join(render_call(call.name, call.arguments) for call in calls), DONE


def _tool(document: Mapping[str, Any]) -> ToolSpec:
    """A function of BFCL's, its schema in the words of JSON schema."""
    return ToolSpec(document["name"], document["description"], _schema(document["parameters"]))


def _schema(node: Any) -> Any:
    if isinstance(node, list):
        return [_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: _schema(value) for key, value in node.items()}
    kind = node.get("type")
    return {**converted, "type": _TYPES.get(kind, kind)} if isinstance(kind, str) else converted
