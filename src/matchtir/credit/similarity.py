"""How well one predicted call fits one gold call, for all pairs of a trajectory."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from matchtir.types import CallStatus, ToolCall
from matchtir.utils.options import check_option

# A name that is not offered equals no gold name, so those calls may be compared like any other.
COMPARABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)

# ---------------------------------------------------------------- equality of argument values

Equality = Callable[[Any, Any], bool]

python_equal: Equality = operator.eq  # True == 1: the release's rule

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")
_LONGEST_NUMBER = 300  # int() refuses strings over 4,300 digits; nobody writes such numbers


def json_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 3 == 3.0, true != 1, object keys in any order."""
    try:
        return _json_equal(left, right)
    except RecursionError:  # nested deeper than Python can follow: no evidence that they agree
        return False


def _json_equal(left: Any, right: Any) -> bool:
    kind = type(left)
    if kind is str or kind is bool or left is None:
        return type(right) is kind and bool(left == right)
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and left.keys() == right.keys()
            and all(_json_equal(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, list | tuple):
        return (
            isinstance(right, list | tuple)
            and len(left) == len(right)
            and all(map(_json_equal, left, right))
        )
    return type(right) is not bool and bool(left == right)


def json_equality_to(value: Any) -> Equality:
    """The fastest equality that agrees with `json_equal` wherever `value` is the right side.

    Python's own ``==`` takes true for 1 and false for 0, so it will do for values without any of
    the four inside.
    """
    try:
        return python_equal if _python_compares_well(value) else json_equal
    except RecursionError:
        return json_equal


def _python_compares_well(value: Any) -> bool:
    kind = type(value)
    if kind is str or value is None:
        return True
    if kind is int or kind is float:
        return value not in (0, 1)
    if kind is dict:
        return all(map(_python_compares_well, value.values()))
    return kind is list and all(map(_python_compares_well, value))


def normalized(value: Any) -> Any:
    """A value with strings stripped and casefolded, and numeric strings read as numbers."""
    if isinstance(value, str):
        text = value.strip().casefold()
        if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text):
            number = int(text) if text.lstrip("+-").isdecimal() else float(text)
            return number if math.isfinite(number) else text
        return text
    if isinstance(value, Mapping):
        return {key: normalized(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normalized(item) for item in value]
    return value


# ---------------------------------------------------------------- similarity of calls


@dataclass(frozen=True, slots=True)
class GoldCall:
    """A gold call, ready to be compared: its column, its arguments, and the equality to use."""

    column: int
    arguments: Mapping[str, Any]
    equal: Equality


@dataclass(frozen=True, slots=True)
class GoldIndex:
    """The gold calls of a task that can be resembled at all, by name."""

    count: int  # of all gold calls: n
    by_name: Mapping[str, Sequence[GoldCall]]


class Similarity:
    """Similarity of predicted and gold calls (paper eq. 1-4).

    ``S = S_tn (S_tn + S_pn + S_pc) / (2 + |keys(g)|)`` where ``S_tn`` says whether the names
    agree, ``S_pn`` is the Jaccard index of the argument names (1 where both are empty) and
    ``S_pc`` counts gold arguments with an equal value. It is 0 for calls that the parser refused
    and for arguments that are not an object, and 1 exactly for an equal call.

    Args:
        names: ``exact``, or ``casefold`` to ignore case in tool names (release).
        values: ``json``, ``python`` (``True == 1``, release) or ``normalized`` (JSON equality
            after casefold and strip, numeric strings read as numbers).
    """

    def __init__(self, names: str = "exact", values: str = "json") -> None:
        check_option("names", names, ("exact", "casefold"))
        check_option("values", values, ("json", "python", "normalized"))
        self._casefold = names == "casefold"
        self._normalize = values == "normalized"
        self._python = values == "python"

    def __call__(
        self, predicted: Sequence[ToolCall], gold: Sequence[ToolCall]
    ) -> Float[np.ndarray, "m n"]:
        """Similarities of all pairs, in [0, 1], float64."""
        return self.rows(predicted, self.index(gold))

    def index(self, gold: Sequence[ToolCall]) -> GoldIndex:
        """Gold calls by name, to be compared with the calls of many trajectories."""
        by_name: dict[str, list[GoldCall]] = {}
        for column, call in enumerate(gold):
            arguments = self._arguments(call)
            if arguments is not None:
                equal = python_equal if self._python else json_equality_to(dict(arguments))
                known = by_name.setdefault(self._name(call), [])
                known.append(GoldCall(column, arguments, equal))
        return GoldIndex(len(gold), by_name)

    def rows(self, predicted: Sequence[ToolCall], gold: GoldIndex) -> Float[np.ndarray, "m n"]:
        """Similarities of predicted calls and indexed gold calls: only equal names are compared."""
        similarity = np.zeros((len(predicted), gold.count))
        for row, call in enumerate(predicted):
            candidates = gold.by_name.get(self._name(call))
            if candidates is None:
                continue
            arguments = self._arguments(call)
            if arguments is not None:
                for candidate in candidates:
                    similarity[row, candidate.column] = _pair(arguments, candidate)
        return similarity

    def _name(self, call: ToolCall) -> str:
        return call.name.casefold() if self._casefold else call.name

    def _arguments(self, call: ToolCall) -> Mapping[str, Any] | None:
        """The arguments to compare; None where the call can resemble nothing."""
        arguments = call.arguments
        # The first test is for speed: isinstance against an abstract class is slow.
        if type(arguments) is not dict and not isinstance(arguments, Mapping):
            return None
        if call.status not in COMPARABLE:
            return None
        return normalized(arguments) if self._normalize else arguments


def _pair(predicted: Mapping[str, Any], gold: GoldCall) -> float:
    """Similarity of the arguments of two calls of equal name."""
    wanted, equal = gold.arguments, gold.equal
    if equal is python_equal and predicted == wanted:
        return 1.0
    shared = right = 0
    for key, value in wanted.items():
        if key in predicted:
            shared += 1
            right += equal(predicted[key], value)
    union = len(predicted) + len(wanted) - shared
    return (1.0 + (shared / union if union else 1.0) + right) / (2 + len(wanted))
