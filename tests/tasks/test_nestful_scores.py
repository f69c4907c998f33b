"""NESTFUL's metrics, by worked examples of what its published scorer gives."""

import pytest

from matchtir.tasks.nestful import (
    full_match,
    function_labels,
    parameter_labels,
    partial_match,
    win,
)
from matchtir.types import CallStatus, StopReason, Task, ToolCall, ToolResult, Trajectory, Turn


def call(name, status=CallStatus.OK, **arguments):
    return ToolCall(name, arguments, status)


def attempt(gold, predicted, output="1", gold_answer=1):
    task = Task("t", "?", (), tuple(gold), "", metadata={"gold_answer": gold_answer})
    results = tuple(ToolResult(output) for _ in predicted)
    turn = Turn((1,), (0.0,), "", tuple(predicted), results)
    return Trajectory(task, (1,), (turn,), StopReason.ANSWER)


A, B, C = call("a", x=1), call("b", x=2), call("c", x=3)


@pytest.mark.parametrize(
    ("gold", "predicted", "partial"),
    [
        ([A, B], [A, B], 1.0),
        ([A, B], [B, A], 0.0),  # position by position
        ([A, B, C], [A, C, B], 1 / 3),
        ([A, B], [A, call("b", x=9)], 0.5),
        ([A, B], [A], 0.5),
        ([A, B, C], [A, C], 2 / 3),  # b is skipped, c is aligned
        ([A], [B, A], 0.0),  # b is no next predicted call of a: three positions
        ([A, B], [A, B, B], 2 / 3),
        ([A], [], 0.0),
        ([A, B], [call("a", x=1.0), B], 1.0),
        ([call("a", x=True)], [A], 0.0),
        ([A, B], [call("a", CallStatus.INVALID_JSON), A, B], 1.0),
    ],
)
def test_partial_and_full_match(gold, predicted, partial):
    assert partial_match(attempt(gold, predicted)) == pytest.approx(partial)
    assert full_match(attempt(gold, predicted)) == float(partial == 1.0)


def test_labels_of_functions_and_parameters():
    predicted = [call("a", x=1, y="s"), call("a", x=2), call("d")]
    played = attempt([call("a", x=2.0), B], predicted)
    assert function_labels(played) == [{"gold": ["a", "b"], "predicted": ["a", "d"]}]
    assert parameter_labels(played) == [
        {"gold": ["x = 2"], "predicted": ["x = 2"]},  # the last call of a
        {"gold": ["x = 2"], "predicted": []},
        {"gold": [], "predicted": []},
    ]


@pytest.mark.parametrize(
    ("output", "gold", "won"),
    [
        ("text", "text", True),
        ("text", "other", False),
        ("8.333333", 8.33, True),
        ("8.336", 8.33, False),
        ("8.5", 8.33, False),
        ("3", 3.0, True),
        ("2.6", 3, False),  # only floats are rounded
        ("true", True, True),
        ("1", True, False),
        ("[1, 2]", [1, 2], True),
        ("[1, 2]", [1, 2, 3], False),
        ("{'a': 1}", {"a": 1}, True),
        ("(1, 2)", [1, 2], True),
        ("Error: nothing", 3, False),
        ("NaN", 3, False),
        ("(", 3, False),
    ],
)
def test_the_last_result_must_be_the_gold_answer(output, gold, won):
    assert win(attempt([A], [A], output, gold)) == float(won)


def test_without_calls_there_is_nothing_to_win():
    assert win(attempt([A], [])) == 0.0
