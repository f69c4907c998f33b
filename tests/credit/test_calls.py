"""Calls of one turn that earn different things, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from matchtir.credit.advantages import DualAdvantage, TrajectoryAdvantage, TurnAdvantage
from matchtir.credit.calls import call_advantages, deviations, with_call_variance
from matchtir.credit.estimators import ShrinkageAdvantage
from matchtir.credit.normalisation import group_std
from tests.credit import builders
from tests.credit.builders import attempt, call, match_reward, says, task, turn

A, B, NO = call("a"), call("b"), call("no_tool")
OF = task(A, B)
MIXED = attempt(OF, turn(A, NO), turn(B), says("blue"))
RIGHT = attempt(OF, turn(A, B), says("red"))


def scored(*trajectories, **options):
    _, credits, batch = builders.scored(trajectories, **options)
    return credits, with_call_variance(batch, credits, trajectories)


def per_call(advantage, *trajectories, **options):
    """Advantages of turns, and of calls."""
    credits, batch = scored(*trajectories, **options)
    turns = advantage(batch)
    return turns, call_advantages(turns, advantage.call_weight(batch), credits, trajectories)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_call_is_compared_with_the_others_of_its_turn(reduction):
    credits, batch = scored(MIXED, RIGHT, turn_reduction=reduction)
    assert deviations(credits[0], MIXED).tolist() == [0.5, -0.5, 0]
    assert batch.call_variance.tolist() == [[0.25, 0, 0], [0, 0, 0]]
    plain = TurnAdvantage(gamma=0.0, turn_scale="none", level="call")
    turns, calls = per_call(plain, MIXED, RIGHT, turn_reduction=reduction)
    assert calls[0].tolist() == [turns[0, 0] + 0.5, turns[0, 0] - 0.5, turns[0, 1]]
    assert calls[1].tolist() == [turns[1, 0]] * 2


def test_the_scale_counts_what_differs_inside_turns():
    # Returns 0.5 and 1: squared differences 0.125, and a quarter within the first.
    turns, calls = per_call(TurnAdvantage(gamma=0.0, level="call"), MIXED, RIGHT)
    assert turns[:, 0] == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-5)
    step = 0.5 / (0.375**0.5 + 1e-6)
    assert calls[0] == pytest.approx([turns[0, 0] + step, turns[0, 0] - step, turns[0, 1]])


def test_turns_that_all_earn_the_same_do_not_blow_up_their_calls():
    turns, calls = per_call(DualAdvantage(level="call"), *[attempt(OF, turn(A, NO))] * 4)
    assert turns.tolist() == [[0]] * 4
    step = 0.5 / (1 / 3) ** 0.5  # a variance of 4 * 0.25 / 3
    assert np.array(calls) == pytest.approx(np.array([[step, -step]] * 4), abs=1e-5)


@pytest.mark.parametrize(
    "advantage",
    [
        DualAdvantage(turn_weight=0.5, level="call"),
        DualAdvantage(combination="product", turn_groups="trajectory", level="call"),
        ShrinkageAdvantage(level="call"),
        TurnAdvantage(turn_baseline="absorbing", turn_scale="shrunk", level="call"),
    ],
)
def test_over_the_calls_of_a_turn_the_mean_is_the_turns(advantage):
    turns, calls = per_call(advantage, MIXED, RIGHT, MIXED)
    assert calls[0][:2].mean() == pytest.approx(turns[0, 0])
    assert calls[0][2] == pytest.approx(turns[0, 1])
    assert calls[0][0] > calls[0][1]


def test_the_weight_is_what_a_difference_of_the_return_makes():
    """Without a scale that moves with it: the product's derivative, against a step."""
    _, batch = scored(MIXED, RIGHT)
    product = DualAdvantage(combination="product", turn_scale="none", turn_baseline="others")
    step = np.zeros_like(batch.turn_rewards)
    step[0, 0] = 1e-6
    moved = replace(batch, turn_rewards=batch.turn_rewards + step)
    slope = (product(moved) - product(batch))[0, 0] / 1e-6
    assert product.call_weight(batch)[0, 0] == pytest.approx(slope, rel=1e-5)


def test_variance_within_is_part_of_the_pooled_one_too():
    values, group, within = np.array([0.0, 2, 1, 1]), np.array([0, 0, 1, 1]), np.array([1.0] * 4)
    assert group_std(values, group, "batch", within).tolist() == pytest.approx([3**0.5] * 4)


def test_what_has_no_calls_to_compare_is_refused():
    _, batch = scored(MIXED)
    with pytest.raises(ValueError, match="call_variance"):
        TurnAdvantage(level="call").call_weight(replace(batch, call_variance=None))
    assert not hasattr(TrajectoryAdvantage(), "call_weight")
    assert match_reward(rewards="turn").pays_calls
    assert not match_reward(rewards="outcome").pays_calls
