import pytest

from matchtir.credit.assignment import HardAssignment
from matchtir.types import StopReason
from tests.credit.builders import MALFORMED, attempt, call, match_reward, says, score, task, turn
from tests.credit.test_assignment import ASSIGNMENTS

A, B, C = call("a", x=1), call("b", y="p"), call("c")
ABC = task(A, B, C)


def turn_rewards(*turns, of=ABC, **options):
    return score(attempt(of, *turns), **options).turn_rewards.tolist()


def test_turn_rewards_are_means_and_the_answer_is_paid_last():
    credit = score(attempt(ABC, turn(A, call("nothing")), turn(B), says("blue")))
    assert credit.turn_rewards.tolist() == [0.5, 1.0, 1.0]
    assert credit.call_rewards.tolist() == [1.0, 0.0, 1.0]
    assert credit.plan.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert (credit.outcome, credit.outcome_reward, credit.total) == (1.0, 1.0, 2.5)


ANSWERED = turn(A), says("blue sky")
MIXED = turn(A, call("nothing")), turn(B), says("blue")
WHEREVER = turn(A, text="<answer>blue</answer>"), says("blue"), turn(B)
PENALTY = {"no_answer_penalty": 0.5}


@pytest.mark.parametrize(
    ("turns", "options", "expected"),
    [
        (MIXED, {"turn_reduction": "sum"}, [1.0, 1.0, 1.0]),
        (ANSWERED, {}, [1.0, 2 / 3]),
        (ANSWERED, {"rewards": "turn"}, [1.0, 0.0]),
        (ANSWERED, {"rewards": "outcome"}, [0.0, 2 / 3]),
        (ANSWERED, {"outcome": "answer_match"}, [1.0, 0.0]),
        (ANSWERED, {"outcome": "none"}, [1.0, 0.0]),
        (WHEREVER, {}, [1.0, 0.0, 1.0]),
        (WHEREVER, {"outcome_turns": "every"}, [2.0, 1.0, 1.0]),  # release
        ([turn(A), says("blue")], PENALTY, [1.0, 1.0]),
        ([turn(A), turn(text="blue")], PENALTY, [1.0, -0.5]),  # no tags, no answer
        ([turn(A), turn(B)], PENALTY, [1.0, 0.5]),  # still calling when the episode was cut
        ([turn(A, text="<answer>blue</answer>")], PENALTY, [0.5]),  # beside a call it is none
        ([turn(A), turn(B)], {**PENALTY, "rewards": "turn"}, [1.0, 1.0]),
        ([says("red")], PENALTY, [0.0]),  # a wrong answer is an answer
        ([says("")], PENALTY, [0.0]),
    ],
)
def test_what_turns_are_paid(turns, options, expected):
    assert turn_rewards(*turns, **options) == pytest.approx(expected)


def test_sums_over_turns_and_an_outcome_that_is_not_paid():
    assert score(attempt(ABC, *MIXED), trajectory_reduction="mean").total == pytest.approx(2.5 / 3)
    assert score(attempt(ABC, *ANSWERED), rewards="turn").outcome == pytest.approx(2 / 3)


def test_an_episode_that_never_started_earns_nothing():
    credit = score(attempt(ABC, stop=StopReason.PROMPT_TOO_LONG), no_answer_penalty=0.5)
    assert credit.turn_rewards.shape == (0,)
    assert credit.similarity.shape == (0, 3)
    assert (credit.total, credit.outcome, credit.outcome_reward) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_malformed_call_counts_as_a_wrong_one_or_not_at_all(assignment):
    with_it = attempt(ABC, turn(A, MALFORMED), turn(MALFORMED), says("blue"))
    without = attempt(ABC, turn(A), turn(), says("blue"))
    counted = score(with_it, assignment)
    assert counted.call_rewards[0] > counted.call_rewards[1] == counted.call_rewards[2] == 0
    assert counted.turn_rewards[0] == counted.call_rewards[0] / 2
    ignored = score(with_it, assignment, malformed_calls="ignored")
    plain = score(without, assignment, malformed_calls="ignored")
    assert ignored.turn_rewards.tolist() == plain.turn_rewards.tolist()
    assert ignored.plan.shape == ignored.similarity.shape == (3, 3)
    assert ignored.call_rewards.tolist() == [plain.call_rewards[0], 0.0, 0.0]


def test_of_several_gold_traces_the_best_counts():
    other = task(A, B, alternative_gold_calls=((C, C, A), (C,)))
    credit = score(attempt(other, turn(C, C, A), says("blue")))
    assert credit.turn_rewards.tolist() == [1.0, 1.0]
    assert credit.similarity.shape == (3, 3) and credit.gold_index == 1
    first = score(attempt(other, turn(A, B), says("blue")))
    assert first.similarity.shape == (2, 2) and first.gold_index == 0
    equal = score(attempt(task(A, B, alternative_gold_calls=((A,),)), turn(A)))
    assert equal.similarity.shape == (1, 2)  # the first of equally good ones


def test_tasks_without_gold_calls():
    free = task()
    assert turn_rewards(turn(A), says("blue"), of=free) == [0.0, 1.0]
    strict = HardAssignment(unmatched_penalty=0.25)
    assert score(attempt(free, turn(A)), strict).turn_rewards.tolist() == [-0.25]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_together_is_apart(assignment):
    trajectories = [
        attempt(ABC, turn(A), turn(B, C), says("blue")),
        attempt(ABC),
        attempt(ABC, turn(C), turn(B), turn(A), says("green")),
        attempt(task(C), turn(A, C), says("blue")),
    ]
    reward = match_reward(assignment)
    for credit, trajectory in zip(reward(trajectories), trajectories, strict=True):
        alone = reward([trajectory])[0]
        assert credit.turn_rewards == pytest.approx(alone.turn_rewards, abs=1e-8)
        assert credit.total == pytest.approx(alone.total, abs=1e-8)
        assert len(credit.call_rewards) == len(trajectory.calls)
        assert credit.total == pytest.approx(credit.turn_rewards.sum())
    assert reward([]) == []
