"""Scores that were too kind: empty answers, failed calls, answers that differ, repeated seeds."""

import pytest

from matchtir.credit.outcome import answer_match, succeeds
from matchtir.evaluation.metrics import measure
from matchtir.types import CallStatus, ResultStatus, ToolCall, ToolResult, Turn
from tests.credit import builders

SYMBOLS = ["+", "👍", "∞", "C++", "-5", "?", "…", "42"]


def saying(gold, said):
    return builders.attempt(builders.task(answer=gold), builders.says(said))


@pytest.mark.parametrize("gold", [*SYMBOLS, ""])
@pytest.mark.parametrize("said", ["", " ", "\n"])
def test_an_empty_answer_is_never_right(gold, said):
    assert answer_match(said, gold) == 0.0
    trajectory = saying(gold, said)
    assert not succeeds(trajectory) and measure(trajectory)["answer_f1"] == 0.0


@pytest.mark.parametrize("gold", SYMBOLS)
def test_an_answer_of_symbols_can_be_earned(gold):
    right = saying(gold, f" {gold} ")
    assert succeeds(right) and measure(right)["answer_f1"] == 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *[("5", "-5"), ("x", "-x"), ("∞", "-∞"), ("15", "1.5"), ("1.5", "1/5"), ("5", ".5")],
        *[("C", "C++"), ("C#", "C++"), ("NET", ".NET"), ("A", "A*"), ("a b", "a_b")],
        *[("50", "50%"), ("$5", "€5"), ("a = b", "a != b"), ("1:30", "1 30"), ("2*3", "2 3")],
        *[("[0, 1)", "(0, 1]"), ("[0, 1)", "[0, 1]"), ("x < y", "x > y"), ("10 20", "20 10")],
    ],
)
def test_success_does_not_merge_answers_that_differ(first, second):
    for gold, said in ((first, second), (second, first)):
        assert not succeeds(saying(gold, said))


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        *[("Paris", "**Paris**"), ("Paris", "paris."), ("A", "*A*"), ("a, b", "a b")],
        *[("5", "+5"), ("-5", "−5"), ("Paris", "_Paris_"), ("(1, 2)", "[1, 2]")],
        ("Oslo", "- Oslo"),
    ],
)
def test_success_forgives_how_an_answer_is_written(gold, said):
    assert succeeds(saying(gold, said))


REFUSED = ToolCall("find", None, CallStatus.INVALID_JSON)
CALL = ToolCall("find", {"place": "Paris"})


@pytest.mark.parametrize("gold", ["", ",", "Paris"])
@pytest.mark.parametrize(
    ("call", "result"),
    [
        (REFUSED, ToolResult("Error: Paris", ResultStatus.REJECTED)),
        *[
            (CALL, ToolResult("Error: find raised KeyError: 'Paris'", status))
            for status in ResultStatus
            if status not in (ResultStatus.OK, ResultStatus.TRUNCATED)
        ],
        (CALL, ToolResult('{"error": "no place called Paris"}')),
        (CALL, ToolResult("Error: no place called Paris")),
    ],
)
def test_a_call_that_failed_solves_nothing(gold, call, result):
    def solved(call, result):
        task = builders.task(sub_answers=builders.sub_answers(("find", gold)))
        values = measure(builders.attempt(task, Turn((1,), (0.0,), "", (call,), (result,))))
        return [values[name] for name in ("solve_p", "solve_r", "solve_f1")]

    assert solved(call, result) == [0.0, 0.0, 0.0]
    assert solved(CALL, ToolResult("Paris, France")) == [1.0, 1.0, 1.0]
