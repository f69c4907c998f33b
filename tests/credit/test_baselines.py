import pytest

from matchtir.credit.baselines import FtrlReward, ToolRlReward
from matchtir.credit.outcome import solving_calls
from matchtir.types import CallStatus, ToolCall
from tests.credit.builders import MALFORMED, attempt, call, says, sub_answers, task, turn


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


FOUND = turn(call("a"), call("b"), call("z"), outputs=["Paris", "1912", ""])
FIRST, SECOND = turn(call("a"), outputs=["Paris"]), turn(call("b"), outputs=["1912"])
LAST = turn(call("a"), outputs=["Rome"])


@pytest.mark.parametrize(
    ("scope", "turns", "expected"),
    [
        ("turn", [FOUND], [2 * 2 / 4]),
        ("turn", [FOUND, LAST, turn(text="done")], [1.0, 1.0, 0.5]),
        ("turn", [FIRST, turn(text="  ")], [1.0, -0.5]),
        ("turn", [FIRST, turn(MALFORMED, text="<tool_call>{")], [1.0, -0.3]),
        ("turn", [FIRST, turn(text="stray </tool_call>")], [1.0, -0.3]),
        ("turn", [FIRST, turn(text="It is Blue.")], [1.0, 1 / 3]),  # one of three is solved
        ("turn", [FIRST, turn(text="no idea")], [1.0, 0.0]),
        # one number in the last turn
        ("trajectory", [FIRST, SECOND, turn(text="blue")], [0.0, 0.0, 2 * 2 / 3 + 1 / 2]),
        ("trajectory", [FIRST, SECOND], [0.0, 2 * 2 / 3]),
        ("trajectory", [], []),
    ],
)
def test_ftrl(scope, turns, expected):
    assert rewards(FtrlReward(scope), SOLVABLE, *turns) == pytest.approx(expected)


GOLD = call("a", x=1, y=2), call("b")
KNOWN = task(*GOLD, gold_turns=(0, 0))
IN_TURN, UNKNOWN_TURNS = task(*GOLD, gold_turns=(0, 1)), task(*GOLD)
RIGHT = turn(GOLD[0]), turn(GOLD[1]), says("blue")
SWAPPED = turn(GOLD[1]), turn(GOLD[0]), says("blue")
# Names {a, b} and {a, c}: Jaccard 1/3; a: keys {x} of {x, y} 1/2, values 1; b: missing.
PARTLY = 1 + 6 * (1 / 3 + 1 / 2 + 1) / (1 + (1 + 2) + (1 + 0)) - 3
ALIKE = task(call("a", x=1), call("a", x=2), gold_turns=(0, 0))
ODD = [ToolCall("a", given, CallStatus.ARGUMENTS_NOT_OBJECT) for given in (None, [1], "x")]


@pytest.mark.parametrize(
    ("scope", "of", "turns", "expected"),
    [
        ("turn", KNOWN, [turn(*GOLD)], [4.0]),
        ("turn", KNOWN, [says("blue")], [-2.0]),  # well formed, no call
        ("turn", KNOWN, [turn(text="blue")], [-3.0]),
        ("turn", KNOWN, [turn(call("a", x=1), call("c"))], [PARTLY]),
        ("turn", ALIKE, [turn(call("a", x=2), call("a", x=1))], [4.0]),  # the best unused one
        ("turn", IN_TURN, RIGHT, [4.0, 4.0, 1.0]),
        ("turn", IN_TURN, SWAPPED, [-2.0, -2.0, 1.0]),
        ("trajectory", IN_TURN, SWAPPED, [0.0, 0.0, 4.0]),
        ("turn", UNKNOWN_TURNS, RIGHT, [4.0, 4.0, 1.0]),
        # the name is right, the format is not
        *(("turn", task(GOLD[0]), [turn(odd)], [6 * 1 / 4 - 3]) for odd in ODD),
    ],
)
def test_toolrl(scope, of, turns, expected):
    assert rewards(ToolRlReward(scope), of, *turns) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [FtrlReward, ToolRlReward])
def test_an_episode_that_never_started_earns_nothing(kind):
    for scope in ("turn", "trajectory"):
        credit = kind(scope)([attempt(KNOWN)])[0]
        assert (credit.total, credit.similarity.shape) == (0, (0, 2))
