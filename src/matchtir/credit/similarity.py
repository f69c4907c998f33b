"""How well one predicted call fits one gold call, for all pairs of a trajectory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from matchtir.types import CallStatus, ToolCall
from matchtir.utils.options import check_option

# A name that is not offered equals no gold name, so those calls may be compared like any other.
COMPARABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)

# ---------------------------------------------------------------- equality of argument values

_TRUE, _FALSE = object(), object()  # equal to themselves alone, where Python has True == 1
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")
_LONGEST_NUMBER = 300  # int() refuses strings over 4,300 digits; nobody writes such numbers


def json_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 3 == 3.0, true != 1, object keys in any order."""
    try:
        return bool(_as_json(left) == _as_json(right))
    except RecursionError:  # nested deeper than Python can follow: no evidence that they agree
        return False


def _as_json(value: Any) -> Any:
    """A value whose ``==`` is that of JSON."""
    kind = type(value)
    if kind is str:  # most values are; the tests below are slow
        return value
    if kind is bool:
        return _TRUE if value else _FALSE
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_as_json, value))
    return value


def _python_eq_is_json(value: Any) -> bool:
    """Whether ``==`` with this value is that of JSON: no part of it equals true or false."""
    if type(value) is dict:
        return all(map(_python_eq_is_json, value.values()))
    if type(value) is list:
        return all(map(_python_eq_is_json, value))
    return type(value) in (str, int, float, type(None)) and value not in (0, 1)


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


class GoldCall(NamedTuple):
    """A gold call, ready to be compared."""

    column: int
    arguments: Mapping[str, Any]
    as_json: bool  # it holds booleans, 0 or 1: both sides go through `_as_json`


class GoldIndex(NamedTuple):
    """The gold calls of a task that can be resembled at all, by name."""

    size: int  # of all gold calls: n
    by_name: Mapping[str, Sequence[GoldCall]]


@dataclass(frozen=True)
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

    names: str = "exact"
    values: str = "json"

    def __post_init__(self) -> None:
        check_option("names", self.names, ("exact", "casefold"))
        check_option("values", self.values, ("json", "python", "normalized"))

    def __call__(
        self, predicted: Sequence[ToolCall], gold: Sequence[ToolCall]
    ) -> Float[np.ndarray, "m n"]:
        """Similarities of all pairs, in [0, 1], float64."""
        return self.matrix(predicted, self.index(gold))

    def index(self, gold: Sequence[ToolCall]) -> GoldIndex:
        """Gold calls by name, to be compared with the calls of many trajectories."""
        by_name: dict[str, list[GoldCall]] = {}
        for column, call in enumerate(gold):
            arguments = self._arguments(call)
            if arguments is not None:
                as_json = self.values != "python" and not _python_eq_is_json(dict(arguments))
                ready = _as_json(arguments) if as_json else arguments
                by_name.setdefault(self._name(call), []).append(GoldCall(column, ready, as_json))
        return GoldIndex(len(gold), by_name)

    def matrix(self, predicted: Sequence[ToolCall], gold: GoldIndex) -> Float[np.ndarray, "m n"]:
        """Similarities of predicted calls and indexed gold calls: only equal names are compared."""
        similarity = np.zeros((len(predicted), gold.size))
        for row, call in enumerate(predicted):
            candidates = gold.by_name.get(self._name(call))
            arguments = None if candidates is None else self._arguments(call)
            if candidates is not None and arguments is not None:
                for candidate in candidates:
                    similarity[row, candidate.column] = _pair(arguments, candidate)
        return similarity

    def _name(self, call: ToolCall) -> str:
        return call.name.casefold() if self.names == "casefold" else call.name

    def _arguments(self, call: ToolCall) -> Mapping[str, Any] | None:
        """The arguments to compare; None where the call can resemble nothing."""
        arguments = call.arguments
        # The first test is for speed: isinstance against an abstract class is slow.
        if type(arguments) is not dict and not isinstance(arguments, Mapping):
            return None
        if call.status not in COMPARABLE:
            return None
        return normalized(arguments) if self.values == "normalized" else arguments


def _pair(predicted: Mapping[str, Any], gold: GoldCall) -> float:
    """Similarity of the arguments of two calls of equal name."""
    wanted, as_json = gold.arguments, gold.as_json
    if not as_json and predicted == wanted:
        return 1.0
    shared = right = 0
    for key, value in wanted.items():
        if key in predicted:
            ours = predicted[key]
            shared += 1
            right += (_as_json(ours) if as_json else ours) == value
    union = len(predicted) + len(wanted) - shared
    return (1.0 + (shared / union if union else 1.0) + right) / (2 + len(wanted))
