import json
import math
from dataclasses import replace

import numpy as np
import pytest

from matchtir.credit import diagnostics
from matchtir.credit.advantages import TurnAdvantage
from matchtir.credit.assignment import HardAssignment, SoftAssignment
from matchtir.types import Span, SpanKind, Turn
from tests.credit.builders import attempt, call, says, scored, task, turn

A, B = call("a", x=1), call("b")
AB = task(A, B)


def test_groups_without_signal():
    same = [attempt(AB, turn(A)), attempt(AB, turn(B))]
    unlike = [attempt(AB, turn(A)), attempt(AB, turn(call("z")))]
    _, _, batch = scored([*same, *unlike], [0, 0, 1, 1])
    advantages = np.array([[5e-9], [0.0], [1.0], [-1.0]])  # rounding, over epsilon: see ZERO
    shares = {"groups_equal_reward": 0.5, "groups_no_advantage": 0.5}
    assert diagnostics.signal(batch, advantages) == shares


def test_what_a_longer_episode_is_paid():
    short, long = attempt(AB, turn(A)), attempt(AB, turn(A), turn(B), turn(call("z")))
    _, _, batch = scored([short, long])
    advantages = np.array([[0.5, 0, 0], [1.0, 1.0, 1.0]])
    per_turn = {"reward_per_turn": (2 - 1) / 2, "advantage_per_turn": (1 - 0.5) / 2}
    assert diagnostics.episode_length(batch, advantages) == pytest.approx(per_turn)
    _, _, batch = scored([short, short])
    assert diagnostics.episode_length(batch, advantages[:, :1]) == {}


def long(tokens, *spans, calls=()):
    spans = tuple(Span(SpanKind(kind), *place) for kind, *place in spans)
    return Turn((1,) * tokens, (0.0,) * tokens, "", calls, spans=spans)


def test_numbers_by_turn_and_scenario():
    copy, chain = replace(AB, scenario="copy"), replace(AB, scenario="chain")
    trajectories = [attempt(copy, long(3), long(1)), attempt(chain, long(5)), attempt(chain)]
    level = np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    advantages = np.array([[3.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    counts = {"tokens": [[3.0, 1], [0, 0], [0, 0]], "entropy": [[6.0, 1], [0, 0], [0, 0]]}
    sums = {name: np.array(each) for name, each in counts.items()}
    given = trajectories, advantages, sums
    found = diagnostics.by_slice(diagnostics.sums_by_slice(level, 1.0, *given))
    names = "advantage", "advantage_std", "length", "turn_share", "entropy"
    places = {
        "turn/0": (1, 2, 4, 6 / 14, 2),
        "turn/1": (1, 0, 1, 0, 1),
        "scenario/copy": (2, 1, 2, 0.6, 7 / 4),
        # nothing was learned from the second attempt; the third has no turn
        "scenario/chain": (-1, 0, 5, 0),
    }
    assert found == {
        f"by/{place}/{name}": pytest.approx(value)
        for place, numbers in places.items()
        for name, value in zip(names, numbers, strict=False)
    }

    def of(rows):
        some = {name: each[rows] for name, each in sums.items()}
        given = trajectories[rows], advantages[rows], some
        return diagnostics.sums_by_slice(level[rows], 1.0, *given)

    parts = [of(slice(1)), of(slice(1, 3))]
    joined = diagnostics.by_slice(diagnostics.added(parts))
    assert joined == pytest.approx(found)  # of one process or two
    idle = {"turn/0": {"turns": 0.0}}  # a process that learned nothing measured less
    assert diagnostics.by_slice(diagnostics.added([idle, *parts])) == pytest.approx(found)
    alone = diagnostics.by_slice(diagnostics.sums_by_slice(None, 1.0, *given))
    assert found.keys() - alone.keys() == {f"by/{place}/turn_share" for place in places}


def test_spans_and_what_they_get():
    two = long(6, ("call", 0, 2), ("reasoning", 2, 3), ("call", 3, 6), calls=(A, B))
    trajectories = [attempt(AB, two, long(2, ("answer", 0, 2)))]
    advantages = np.array([[1.0, -1.0]])
    of_calls = [np.array([4.0, -1.0])]
    found = diagnostics.by_span(diagnostics.sums_by_span(trajectories, advantages, of_calls))
    assert found == {
        **{"by/span/call/share": 5 / 8, "by/span/call/advantage": (2 * 4 - 3) / 5},
        **{"by/span/reasoning/share": 1 / 8, "by/span/reasoning/advantage": 1.0},
        **{"by/span/answer/share": 2 / 8, "by/span/answer/advantage": -1.0},
    }
    alone = diagnostics.by_span(diagnostics.sums_by_span(trajectories, advantages, None))
    assert alone["by/span/call/advantage"] == 1.0


GOOD, BAD = attempt(AB, turn(A), says("blue")), attempt(AB, turn(call("z")), says("red"))
APART, AT_ONCE = attempt(AB, turn(A), turn(B)), attempt(AB, turn(A, B), says("red"))
TWICE = [attempt(AB, turn(A, A), turn(B)), attempt(AB, turn(B), turn(A))]
STRICT = {"assignment": HardAssignment(0.25)}
BY_CALLS = {"reward_of_1_calls": 0.5, "reward_of_2_calls": 1.0}


@pytest.mark.parametrize(
    ("trajectories", "options", "expected"),
    [
        ([GOOD, BAD, GOOD], {}, {"turn_reward_success": 1.0}),
        ([GOOD, GOOD], {}, {"turn_reward_success": None}),  # nothing varies
        ([attempt(AB, turn(A)), APART], {}, {"singleton_share": 1 / 3, "singleton_advantage": 1.0}),
        (TWICE, STRICT, {"duplicate_share": 0.2, "duplicate_reward": -0.25}),
        ([GOOD, AT_ONCE], {"assignment": SoftAssignment(0.01), "turn_reduction": "sum"}, BY_CALLS),
        ([APART], {}, {"gain_serialised": 1.0}),
        ([APART], {"turn_reduction": "sum"}, {"gain_serialised": 0.0}),
        ([GOOD], {}, {"gain_duplicate": 0.0, "gain_wrong_call": 0.0, "gain_serialised": None}),
        ([GOOD], STRICT, {"gain_duplicate": -0.25, "gain_wrong_call": -0.25}),
    ],
)
def test_what_a_reward_and_an_estimator_pay_for(trajectories, options, expected):
    reward, credits, batch = scored(trajectories, **options)
    found = diagnostics.diagnose(reward, trajectories, credits, batch, TurnAdvantage()(batch))
    assert {name: found.get(name) for name in expected} == pytest.approx(expected, abs=1e-5)


def test_calls_that_are_made_at_once_are_followed_by_the_answer():
    joined = diagnostics.merged(attempt(AB, turn(A), turn(B), says("blue")))
    assert [len(t.calls) for t in joined.turns] == [2, 0]
    assert joined.final_text == says("blue").text


@pytest.mark.parametrize(
    "trajectories",
    [
        [],
        [attempt(AB)],
        [attempt(AB, says("blue"))],
        [attempt(AB, turn(A, A), turn(B), says("blue")), attempt(AB, turn(B)), attempt(AB)],
    ],
)
def test_everything_is_a_finite_number_that_can_be_logged(trajectories):
    reward, credits, batch = scored(trajectories)
    found = diagnostics.diagnose(reward, trajectories, credits, batch, TurnAdvantage()(batch))
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    json.dumps(found)
