"""Answers, and the outcome of tasks that ask for a state of their tools."""

from dataclasses import replace

import pytest

from matchtir.credit.outcome import answer_f1, answer_match, final_answer, succeeds
from matchtir.types import StopReason
from tests.credit.builders import attempt, call, says, score, task, turn

GOLD = {"Cart": {"lines": ["tea"], "total": 3}}
RIGHT = "blue", "blue"  # the answer, and what is said


def ended(state, answer="blue", of=None, last="blue"):
    """An attempt with one call and an answer, that left the tools in a state."""
    of = of or task(call("add"), answer=answer, gold_state=GOLD)
    return replace(attempt(of, turn(call("add")), says(last)), final_state=state)


@pytest.mark.parametrize(
    ("state", "answer", "said", "expected"),
    [
        (GOLD, "blue", "blue", 1.0),
        (GOLD, "blue", "red", 0.0),
        (GOLD, "", "anything", 1.0),
        ({}, "", "anything", 0.0),
        # every attribute that is named must have its value
        ({"Cart": {"lines": ["tea"], "total": 3.0, "owner": "anyone"}, "Other": {}}, *RIGHT, 1.0),
        ({"Cart": {"lines": ["tea"], "total": True}}, *RIGHT, 0.0),
        ({"Cart": {"lines": ["tea"]}}, *RIGHT, 0.0),
        ({"Cart": {"lines": ["tea", "tea"], "total": 3}}, *RIGHT, 0.0),
        ({}, *RIGHT, 0.0),
        (None, *RIGHT, 0.0),
    ],
)
def test_the_outcome_is_paid_where_answer_and_state_are_right(state, answer, said, expected):
    trajectory = ended(state, answer, last=said)
    credit = score(trajectory, no_answer_penalty=0.5)
    assert (credit.outcome, credit.turn_rewards.tolist()) == (expected, [1.0, expected])
    assert succeeds(trajectory) is bool(expected)


def test_what_a_state_alone_is_worth():
    assert succeeds(ended(None, of=task(call("add"))))  # of a task that asks for none
    credit = score(ended(GOLD, "", last="anything"), outcome="none")
    assert (credit.outcome, credit.turn_rewards.tolist()) == (0.0, [1.0, 0.0])
    of = task(call("add"), answer="", gold_state=GOLD)  # reached, but without an answer
    trajectory = replace(attempt(of, turn(call("add")), turn(text="done")), final_state=GOLD)
    assert score(trajectory, no_answer_penalty=0.5).outcome_reward == -0.5
    assert not succeeds(trajectory)


@pytest.mark.parametrize(
    ("stop", "state", "paid"),
    [
        (StopReason.ANSWER, GOLD, 1.0),
        (StopReason.ANSWER, {}, 0.0),
        (StopReason.MAX_TURNS, GOLD, -0.5),
    ],
)
def test_a_conversation_that_its_user_ends_misses_no_answer(stop, state, paid):
    of = task(call("add"), answer="", gold_state=GOLD, user=("Two, please.",))
    trajectory = attempt(of, turn(call("add")), turn(text="done"), stop=stop)
    credit = score(replace(trajectory, final_state=state), no_answer_penalty=0.5)
    assert credit.outcome_reward == paid


@pytest.mark.parametrize(
    ("predicted", "gold", "f1", "match"),
    [
        ("alan, turing!", "Alan Turing", 1, 1),
        ("Alan Turing", "alan turing.", 1, 1),
        ("Turing", "Alan Turing", 2 / 3, 0),
        ("Alan Alan Alan", "Alan Turing", 2 / 3, 0),  # sets, not lists
        ("Turing Alan", "Alan Turing", 1, 0),
        ("1912-06-23", "1912 06 23", 1, 1),
        ("1990\u201395", "1990-95", 1, 1),
        ("1,000", "1 000", 1, 1),
        *((said, "Alan Turing", 0, 0) for said in ("", "?!", None)),
        ("Alan Turing", "", 0, 0),
        ("", "", 0, 0),
        ("...", "?!", 0, 0),
        ("five", "+", 0, 0),
        ("\u2212", "+", 0, 0),
        ("+", "+", 1, 1),  # else it could not be earned
        ("हिन्दी", "हिन्दी", 1, 1),
        ("हिन्दी", "हन्द", 0, 0),  # vowel signs belong to their word
        ("c++.", "C++", 1, 1),
        ("C#", "C++", 1, 0),
        ("5", "-5", 1, 0),
        ("1.5", "1 5", 1, 0),
    ],
)
def test_answers(predicted, gold, f1, match):
    assert answer_f1(predicted, gold) == pytest.approx(f1)
    assert answer_match(predicted, gold) == match


def test_the_final_answer_is_that_of_a_last_turn_without_calls():
    of = task(call())
    assert final_answer(attempt(of, turn(call()), says("blue"))) == "blue"
    assert final_answer(attempt(of, says("blue"), turn(text="none"))) is None
    assert final_answer(attempt(of, says("blue"), turn(call()))) is None
    assert final_answer(attempt(of, turn(call(), text="<answer>blue</answer>"))) is None
    assert final_answer(attempt(of)) is None
    assert final_answer(attempt(of, says("blue"), stop=StopReason.TURN_LENGTH)) is None
