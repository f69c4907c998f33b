import pytest

from matchtir.credit.answer import answer_f1, answer_match, final_answer
from matchtir.types import StopReason
from tests.credit.builders import attempt, call, says, task, turn


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("Alan Turing", "Alan Turing", 1.0),
        ("alan, turing!", "Alan Turing", 1.0),
        ("Turing", "Alan Turing", 2 / 3),
        ("Alan Alan Alan", "Alan Turing", 2 / 3),  # sets, not lists
        ("1912-06-23", "1912 06 23", 1.0),
        ("a_b", "a b", 1.0),
        ("someone else", "Alan Turing", 0.0),
        ("", "Alan Turing", 0.0),
        ("?!", "Alan Turing", 0.0),
        ("Alan Turing", "", 0.0),
        ("", "", 0.0),
        (None, "Alan Turing", 0.0),
        ("हिन्दी", "हिन्दी", 1.0),
        ("हिन्दी", "हन्द", 0.0),  # vowel signs belong to their word
    ],
)
def test_f1(predicted, gold, expected):
    assert answer_f1(predicted, gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("Alan Turing", "alan turing.", 1.0),
        ("Turing Alan", "Alan Turing", 0.0),
        ("Turing", "Alan Turing", 0.0),
        (None, "", 0.0),
    ],
)
def test_match(predicted, gold, expected):
    assert answer_match(predicted, gold) == expected


def test_the_final_answer_is_that_of_a_last_turn_without_calls():
    of = task(call())
    assert final_answer(attempt(of, turn(call()), says("blue"))) == "blue"
    assert final_answer(attempt(of, says("blue"), turn(text="none"))) is None
    assert final_answer(attempt(of, says("blue"), turn(call()))) is None
    assert final_answer(attempt(of, turn(call(), text="<answer>blue</answer>"))) is None
    assert final_answer(attempt(of)) is None
    assert final_answer(attempt(of, says("blue"), stop=StopReason.TURN_LENGTH)) is None
