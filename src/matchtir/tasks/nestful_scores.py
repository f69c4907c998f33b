"""NESTFUL's own metrics (arXiv 2409.03797), computed as its published scorer does.

The scorer reads one program of calls that name earlier results ("$var_1.result$"). Here the calls
are made one after the other and carry the values themselves, so gold arguments are the resolved
ones, and values are compared as JSON. Calls that the parser refused are left out, as there.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from matchtir.credit.equality import json_equal
from matchtir.tasks.nestful_rows import value_text
from matchtir.types import CallStatus, ToolCall, Trajectory

_READABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)


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
    pairs = _aligned(gold, predicted)
    positions = len(gold) + len(predicted) - len(pairs)
    return sum(_same(*pair) for pair in pairs) / positions if positions else 0.0


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
            return float(json_equal(_rounded(read(output), gold), gold))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return 0.0


def _calls(trajectory: Trajectory) -> list[ToolCall]:
    return [call for call in trajectory.calls if call.status in _READABLE]


def _pairs(call: ToolCall) -> list[str]:
    return sorted(f"{name} = {_canonical(value)}" for name, value in call.arguments.items())


def _canonical(value: Any) -> str:
    """The same text for values that are equal as JSON."""
    return json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=False)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    return [_plain_numbers(item) for item in value] if isinstance(value, list) else value


def _aligned(
    gold: Sequence[ToolCall], predicted: Sequence[ToolCall]
) -> list[tuple[ToolCall, ToolCall]]:
    if len(gold) == len(predicted):
        return list(zip(gold, predicted, strict=True))
    pairs: list[tuple[ToolCall, ToolCall]] = []
    for call in gold:
        following = len(pairs)  # every pair takes the next predicted call
        if following < len(predicted) and predicted[following].name == call.name:
            pairs.append((call, predicted[following]))
    return pairs


def _same(left: ToolCall, right: ToolCall) -> bool:
    return left.name == right.name and _pairs(left) == _pairs(right)


def _rounded(value: Any, gold: Any) -> Any:
    if isinstance(value, float) and isinstance(gold, float):
        return round(value, len(str(gold).partition(".")[2]))
    return value
