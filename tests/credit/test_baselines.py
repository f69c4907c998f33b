import pytest

from matchtir.credit.baselines import FtrlReward, ToolRlReward
from matchtir.credit.outcome import contains_answer, solving_calls
from matchtir.types import CallStatus, ToolCall
from tests.credit.builders import attempt, call, says, sub_answers, task, turn

MALFORMED = ToolCall("", None, CallStatus.INVALID_JSON, "{")


def rewards(reward, of, *turns):
    credit = reward([attempt(of, *turns)])[0]
    assert credit.total == pytest.approx(credit.turn_rewards.sum())
    return credit.turn_rewards.tolist()


SUBS = sub_answers(("a", "Paris"), ("b", "1,912"), ("a", "Rome"))
SOLVABLE = task(call("a"), call("b"), call("a"), answer="blue", sub_answers=SUBS)


def test_a_call_solves_at_most_one_open_question_of_its_tool():
    calls = [call("a"), call("b"), call("a"), call("a"), call("b")]
    outputs = ["paris or rome", "paris", "Rome", "Paris", "1912"]
    assert solving_calls(calls, outputs, SUBS) == [True, False, True, False, True]


def test_a_call_that_was_refused_or_failed_solves_nothing():
    refused = ToolCall("a", {}, CallStatus.ARGUMENTS_NOT_OBJECT)
    assert solving_calls([refused], ["Paris"], SUBS) == [False]
    outputs = ["Error: a raised AssertionError: no such item", ""]
    empty, ended_well = sub_answers(("a", "")), [False, True]
    assert solving_calls([call("a"), call("a")], outputs, empty, ended_well) == [False, True]
    assert solving_calls([call("b")], ["Error: 1912"], SUBS, [False]) == [False]
    assert solving_calls([call("b")], ["Error: 1912"], SUBS) == [True]  # as FTRL counts


def test_every_part_must_stand_in_the_output():
    assert contains_answer("born in PARIS, 1912", "Paris, 1912")
    assert not contains_answer("born in Paris", "Paris, 1912")


def test_ftrl_scores_each_turn():
    found = turn(call("a"), call("b"), call("z"), outputs=["Paris", "1912", ""])
    assert rewards(FtrlReward(), SOLVABLE, found) == [2 * 2 / 4]
    last = turn(call("a"), outputs=["Rome"])
    assert rewards(FtrlReward(), SOLVABLE, found, last, turn(text="done")) == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("closing", "expected"),
    [
        (turn(text="  "), -0.5),
        (turn(MALFORMED, text="<tool_call>{"), -0.3),
        (turn(text="stray </tool_call>"), -0.3),
        (turn(text="It is Blue."), 1 / 3),  # one of three is solved
        (turn(text="no idea"), 0.0),
    ],
)
def test_ftrl_scores_turns_without_calls(closing, expected):
    first = turn(call("a"), outputs=["Paris"])
    assert rewards(FtrlReward(), SOLVABLE, first, closing) == [1.0, pytest.approx(expected)]


def test_ftrl_multi_is_one_number_in_the_last_turn():
    turns = turn(call("a"), outputs=["Paris"]), turn(call("b"), outputs=["1912"])
    answered = rewards(FtrlReward("trajectory"), SOLVABLE, *turns, turn(text="blue"))
    assert answered == [0.0, 0.0, pytest.approx(2 * 2 / 3 + 1 / 2)]
    cut = rewards(FtrlReward("trajectory"), SOLVABLE, *turns)
    assert cut == [0.0, pytest.approx(2 * 2 / 3)]
    assert rewards(FtrlReward("trajectory"), SOLVABLE) == []


GOLD = call("a", x=1, y=2), call("b")
KNOWN = task(*GOLD, gold_turns=(0, 0))


def test_toolrl_pays_a_perfect_turn_four_and_a_missing_one_minus_three():
    assert rewards(ToolRlReward(), KNOWN, turn(*GOLD)) == [pytest.approx(4.0)]
    assert rewards(ToolRlReward(), KNOWN, says("blue")) == [-2.0]  # well formed, no call
    assert rewards(ToolRlReward(), KNOWN, turn(text="blue")) == [-3.0]


def test_toolrl_by_hand():
    # names {a, b} and {a, c}: Jaccard 1/3; a: keys {x} of {x, y} 1/2, values 1; b: missing
    made = turn(call("a", x=1), call("c"))
    expected = 1 + 6 * (1 / 3 + 1 / 2 + 1) / (1 + (1 + 2) + (1 + 0)) - 3
    assert rewards(ToolRlReward(), KNOWN, made) == [pytest.approx(expected)]


def test_toolrl_takes_the_best_unused_call_of_the_name():
    of = task(call("a", x=1), call("a", x=2), gold_turns=(0, 0))
    swapped = turn(call("a", x=2), call("a", x=1))
    assert rewards(ToolRlReward(), of, swapped) == [pytest.approx(4.0)]


def test_toolrl_compares_turn_by_turn_or_as_a_whole():
    of = task(*GOLD, gold_turns=(0, 1))
    right = turn(GOLD[0]), turn(GOLD[1]), says("blue")
    assert rewards(ToolRlReward(), of, *right) == pytest.approx([4.0, 4.0, 1.0])
    swapped = turn(GOLD[1]), turn(GOLD[0]), says("blue")
    assert rewards(ToolRlReward(), of, *swapped)[:2] == pytest.approx([-2.0, -2.0])
    assert rewards(ToolRlReward("trajectory"), of, *swapped) == pytest.approx([0, 0, 4.0])
    unknown_turns = task(*GOLD)
    assert rewards(ToolRlReward(), unknown_turns, *right) == pytest.approx([4.0, 4.0, 1.0])


@pytest.mark.parametrize("arguments", [None, [1], "x"])
def test_toolrl_survives_odd_arguments(arguments):
    odd = ToolCall("a", arguments, CallStatus.ARGUMENTS_NOT_OBJECT)
    (value,) = rewards(ToolRlReward(), task(GOLD[0]), turn(odd))
    assert value == pytest.approx(6 * 1 / 4 - 3)  # the name is right, the format is not


@pytest.mark.parametrize("kind", [FtrlReward, ToolRlReward])
def test_a_scope_is_known_and_an_episode_that_never_started_earns_nothing(kind):
    for scope in ("turn", "trajectory"):
        credit = kind(scope)([attempt(KNOWN)])[0]
        assert (credit.total, credit.similarity.shape) == (0, (0, 2))
    with pytest.raises(ValueError, match="scope='step'.*turn, trajectory"):
        kind("step")
