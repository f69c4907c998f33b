"""When two argument values count as the same."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

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
