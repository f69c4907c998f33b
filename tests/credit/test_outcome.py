"""The outcome of tasks that ask for a state of their tools."""

from dataclasses import replace

import pytest

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.outcome import reaches_state, succeeds
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from tests.credit.builders import attempt, call, says, task, turn

GOLD = {"Cart": {"lines": ["tea"], "total": 3}}


def ended(state, answer="blue", of=None, last="blue"):
    """An attempt with one call and an answer, that left the tools in a state."""
    of = of or task(call("add"), answer=answer, gold_state=GOLD)
    return replace(attempt(of, turn(call("add")), says(last)), final_state=state)


@pytest.mark.parametrize(
    ("state", "reached"),
    [
        ({"Cart": {"lines": ["tea"], "total": 3.0, "owner": "anyone"}, "Other": {}}, True),
        ({"Cart": {"lines": ["tea"], "total": True}}, False),
        ({"Cart": {"lines": ["tea"]}}, False),
        ({"Cart": {"lines": ["tea", "tea"], "total": 3}}, False),
        ({}, False),
        (None, False),
    ],
)
def test_every_attribute_that_is_named_must_have_its_value(state, reached):
    assert reaches_state(ended(state)) is reached


def test_a_task_without_a_gold_state_asks_for_none():
    assert reaches_state(ended(None, of=task(call("add"))))


@pytest.mark.parametrize(
    ("state", "answer", "said", "expected"),
    [
        (GOLD, "blue", "blue", 1.0),
        (GOLD, "blue", "red", 0.0),
        ({}, "blue", "blue", 0.0),
        (GOLD, "", "anything", 1.0),
        ({}, "", "anything", 0.0),
    ],
)
def test_the_outcome_is_paid_where_answer_and_state_are_right(state, answer, said, expected):
    reward = MatchReward(Similarity(), HardAssignment(), no_answer_penalty=0.5)
    trajectory = ended(state, answer, last=said)
    (credit,) = reward([trajectory])
    assert (credit.outcome, credit.turn_rewards.tolist()) == (expected, [1.0, expected])
    assert succeeds(trajectory) is bool(expected)


def test_no_outcome_is_no_reward_for_a_state_either():
    (credit,) = MatchReward(Similarity(), HardAssignment(), outcome="none")(
        [ended(GOLD, "", last="anything")]
    )
    assert (credit.outcome, credit.turn_rewards.tolist()) == (0.0, [1.0, 0.0])


def test_reaching_the_state_without_an_answer_is_no_end():
    of = task(call("add"), answer="", gold_state=GOLD)
    trajectory = replace(attempt(of, turn(call("add")), turn(text="done")), final_state=GOLD)
    (credit,) = MatchReward(Similarity(), HardAssignment(), no_answer_penalty=0.5)([trajectory])
    assert credit.outcome_reward == -0.5
    assert not succeeds(trajectory)
