import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.credit.similarity import Similarity, json_equal, normalized
from matchtir.types import CallStatus, ToolCall

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0.0, 1.0, 0.5, "x", "X", "1"]) | st.integers(-3, 3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.builds(ToolCall, st.sampled_from(["f", "g"]), st.dictionaries(KEYS, VALUES, max_size=3))


def pair(*calls, **options):
    calls = (each if isinstance(each, ToolCall) else ToolCall("f", each) for each in calls)
    return Similarity(**options)(*([each] for each in calls))[0, 0]


ONE = {"a": 1}
REFUSED = [status for status in CallStatus if status not in ("ok", "unknown_tool")]


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ({}, {}, 1.0),
        (ONE, ONE, 1.0),
        ({"a": 2}, ONE, 2 / 3),  # the right tool and argument name, a wrong value
        ({"a": 1, "b": 1}, ONE, (1 + 1 / 2 + 1) / 3),
        ({}, {"a": 1, "b": 2}, 1 / 4),
        (ONE, {"a": 1, "b": 2}, (1 + 1 / 2 + 1) / 4),
        ({"z": 1}, {}, 1 / 2),
        (ONE, ToolCall("g", ONE), 0.0),  # another name
        *((ToolCall("f", ONE, status), ONE, 0.0) for status in REFUSED),
        *((odd, {}, 0.0) for odd in (None, [], "text", 3, [["a", 1]])),  # no object of arguments
        *(({}, odd, 0.0) for odd in (None, [], "text", 3, [["a", 1]])),
    ],
)
def test_values_of_the_formula(predicted, gold, expected):
    assert pair(predicted, gold) == pytest.approx(expected)


def test_case_of_names_counts_unless_told_otherwise():
    calls = ToolCall("Find", {}), ToolCall("find", {})
    assert (pair(*calls), pair(*calls, names="casefold")) == (0, 1)


@pytest.mark.parametrize(
    ("left", "right", "as_json", "as_python", "as_normalized"),
    [
        (3, 3.0, True, True, True),
        (True, 1, False, True, False),
        (False, 0.0, False, True, False),
        ([True], [1], False, True, False),
        ({"x": {"y": 0}}, {"x": {"y": False}}, False, True, False),
        (None, None, True, True, True),
        (None, 0, False, False, False),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True, True, True),
        ([1, 2], [2, 1], False, False, False),
        ("5", 5, False, False, True),
        (" Paris ", "paris", False, False, True),
        ("5.0", "5", False, False, True),
        ("true", True, False, False, False),
        ("1e3", 1000, False, False, True),
        ("nan", "NaN", False, False, True),  # equal as words, not as numbers
        ("9007199254740993", 9007199254740992, False, False, False),
        (["A", {"k": "1"}], ["a", {"k": 1}], False, False, True),
    ],
)
def test_equality_of_values(left, right, as_json, as_python, as_normalized):
    kinds = "json", "python", "normalized"
    equal = [pair({"a": left}, {"a": right}, values=values) == 1 for values in kinds]
    assert equal == [as_json, as_python, as_normalized]


def test_values_nested_beyond_recursion_are_unequal_rather_than_an_error():
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    assert json_equal(deep, deep) is False


def test_numbers_with_absurdly_many_digits_stay_text():
    assert normalized("9" * 5000) == "9" * 5000
    assert normalized("1e999") == "1e999"


@given(st.lists(CALLS, max_size=5), st.lists(CALLS, max_size=5))
def test_bounds_and_identity(predicted, gold):
    similarity = Similarity()(predicted, gold)
    assert similarity.shape == (len(predicted), len(gold))
    assert similarity.dtype == np.float64
    assert ((similarity >= 0) & (similarity <= 1)).all()
    own = Similarity()(predicted, predicted)
    assert (np.diag(own) == 1).all()


def canonical(value):
    """JSON text in which equal values look alike: an independent definition of equality."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


@given(VALUES, VALUES)
def test_json_equality_agrees_with_canonical_text(left, right):
    assert json_equal(left, right) is (canonical(left) == canonical(right))
