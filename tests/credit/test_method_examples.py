"""The worked examples of docs/method.md: what each estimator pays for, wanted or not."""

import numpy as np
import pytest

from matchtir.credit.advantages import DualAdvantage, TrajectoryAdvantage, TurnAdvantage
from matchtir.credit.assignment import HardAssignment, PartialAssignment, SoftAssignment
from tests.credit.builders import attempt, batch, call, says, score, task, turn

A, B, C = call("a", x=1), call("b", x=1), call("c", x=1)
ABC = task(A, B, C)
A_WRONG = call("a", x=2)


def total(trajectory, assignment=None, **options):
    return score(trajectory, assignment, **options).total


def test_serialising_is_paid_three_times():
    at_once = attempt(ABC, turn(A, B, C), says("blue"))
    one_by_one = attempt(ABC, turn(A), turn(B), turn(C), says("blue"))
    assert total(at_once) == pytest.approx(1 + 1)
    assert total(one_by_one) == pytest.approx(3 + 1)
    for trajectory in (at_once, one_by_one):
        assert total(trajectory, turn_reduction="sum") == pytest.approx(3 + 1)


def test_duplicates_in_turns_of_their_own_cost_nothing():
    plain = attempt(ABC, turn(A), says("blue"))
    repeated = attempt(ABC, turn(A), turn(A), turn(A), says("blue"))
    assert total(repeated) == total(plain) == 2
    assert total(repeated, HardAssignment(0.25)) == total(plain) - 0.5


def test_endless_calling_pays_more_than_answering():
    answers = attempt(ABC, turn(A), says("red"))
    keeps_calling = attempt(ABC, turn(A), turn(call("b", x=9)), turn(call("c", x=9)))
    assert total(answers) == 1
    assert total(keeps_calling) == pytest.approx(1 + 2 / 3 + 2 / 3)
    strict = PartialAssignment(0.7, unmatched_penalty=0.25)
    assert total(answers, strict, no_answer_penalty=0.5) == 1
    assert total(keeps_calling, strict, no_answer_penalty=0.5) == pytest.approx(1 - 0.5 - 0.5)


def advantages(estimator, rows, kinds=None):
    return estimator(batch(rows, has_calls=kinds))


def test_the_last_turns_of_the_longest_episode_get_a_bonus():
    # Equal work, but the second goes on for two turns that earn a little each.
    rows = [[1.0, 0.0], [1.0, 0.0, 0.1, 0.1]]
    raw = advantages(TurnAdvantage(gamma=0.0), rows)
    assert raw[1, 2:] == pytest.approx([0.1, 0.1], abs=1e-5)
    assert advantages(TurnAdvantage(gamma=0.0, singleton="zero"), rows)[1, 2:].tolist() == [0, 0]
    # A group of one is paid for whatever it did, however bad beside other tasks.
    assert advantages(DualAdvantage(), [[0.2]])[0, 0] == pytest.approx(0.4, abs=1e-5)


def test_the_baseline_of_a_turn_depends_on_who_has_stopped():
    # Return of turn 2, three trajectories. Every one of them earns 1 per further turn.
    stays = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert advantages(TurnAdvantage(1.0), stays)[0].tolist() == [0, 0, 0]
    # Were two of them to stop one turn earlier, nothing that the first does in turn 1 changes;
    # yet its advantage there does, because returns of unequal length are compared.
    leave = [[1.0, 1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    assert advantages(TurnAdvantage(1.0), leave)[0, 1] > 1
    assert advantages(TurnAdvantage(0.0, singleton="zero"), leave).tolist() == [[0, 0, 0]] * 3


def test_answers_are_normalised_among_calls():
    # Both answers are perfect (1.0); calls at the same index earn 1.0 or 0.0.
    rows = [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    kinds = [[True, False, False], [True, True, False], [True, True, False]]
    by_index = advantages(TurnAdvantage(0.0), rows, kinds)
    assert by_index[0, 1] > 1  # the early answer is praised because others had a poor call there
    by_kind = advantages(TurnAdvantage(0.0, turn_groups="kind_and_index"), rows, kinds)
    assert by_kind[0, 1] == by_kind[1, 2] == by_kind[2, 2] == 0


def test_transport_forces_mass_onto_wrong_calls():
    # A perfect call and a call to another tool: the second takes half of every gold call's mass.
    alone = SoftAssignment(0.01)([np.array([[1.0]])])[0]
    beside = SoftAssignment(0.01)([np.array([[1.0], [0.0]])])[0]
    assert alone.rewards.tolist() == [pytest.approx(1.0)]
    assert beside.plan[:, 0].tolist() == [pytest.approx(0.5), pytest.approx(0.5)]
    assert beside.rewards.tolist() == [pytest.approx(0.5), 0]
    dustbin = PartialAssignment(0.5, "transport", "conditional", reg=0.01)
    assert dustbin([np.array([[1.0], [0.0]])])[0].rewards.tolist() == [pytest.approx(1.0), 0]


def test_the_scale_of_soft_rewards_shrinks_with_the_number_of_calls():
    for calls in (1, 2, 5):
        perfect = [np.eye(calls)]
        assert SoftAssignment(0.01)(perfect)[0].rewards == pytest.approx(np.full(calls, 1 / calls))
        conditional = SoftAssignment(0.01, scale="conditional")(perfect)[0]
        assert conditional.rewards == pytest.approx(np.ones(calls))


def test_dividing_by_the_spread_blows_up_differences_that_do_not_matter():
    nearly_equal = [[0.50], [0.51]]
    far_apart = [[0.0], [1.0]]
    rloo = TrajectoryAdvantage(baseline="others", scale="none")
    unit = 1 / np.sqrt(2)
    for rows in (nearly_equal, far_apart):
        assert advantages(TrajectoryAdvantage(), rows)[1, 0] == pytest.approx(unit, abs=1e-3)
    assert advantages(rloo, nearly_equal)[1, 0] == pytest.approx(0.01)
    assert advantages(rloo, far_apart)[1, 0] == pytest.approx(1)


def test_the_right_tool_with_a_wrong_value_earns_two_thirds():
    wrong = attempt(task(A), turn(A_WRONG), says("red"))
    assert total(wrong) == pytest.approx(2 / 3)
    assert total(wrong, PartialAssignment(0.7)) == 0
