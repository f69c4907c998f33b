import json
import math
from dataclasses import replace

import numpy as np
import pytest

from matchtir.credit import diagnostics
from matchtir.credit.advantages import RewardBatch, TurnAdvantage
from matchtir.credit.assignment import HardAssignment, SoftAssignment
from matchtir.types import Span, SpanKind, Turn
from tests.credit.builders import attempt, call, match_reward, says, task, turn

A, B = call("a", x=1), call("b")
AB = task(A, B)


def scored(trajectories, group=None, **options):
    reward = match_reward(**options)
    credits = reward(trajectories)
    batch = RewardBatch.from_credits(credits, trajectories, group or [0] * len(trajectories))
    return reward, credits, batch


def test_groups_without_signal():
    same = [attempt(AB, turn(A)), attempt(AB, turn(B))]
    unlike = [attempt(AB, turn(A)), attempt(AB, turn(call("z")))]
    _, _, batch = scored([*same, *unlike], [0, 0, 1, 1])
    advantages = np.array([[0.0], [0.0], [1.0], [-1.0]])
    assert diagnostics.signal(batch, advantages) == {
        "groups_equal_reward": 0.5,
        "groups_no_advantage": 0.5,
    }


def test_turn_rewards_that_go_with_success():
    good, bad = attempt(AB, turn(A), says("blue")), attempt(AB, turn(call("z")), says("red"))
    _, credits, batch = scored([good, bad, good])
    assert diagnostics.success_correlation(batch, credits) == {
        "turn_reward_success": pytest.approx(1.0)
    }
    _, credits, batch = scored([good, good])
    assert diagnostics.success_correlation(batch, credits) == {}  # nothing varies


def test_what_a_longer_episode_is_paid():
    short, long = attempt(AB, turn(A)), attempt(AB, turn(A), turn(B), turn(call("z")))
    _, _, batch = scored([short, long])
    advantages = np.array([[0.5, 0, 0], [1.0, 1.0, 1.0]])
    assert diagnostics.episode_length(batch, advantages) == {
        "reward_per_turn": pytest.approx((2 - 1) / 2),
        "advantage_per_turn": pytest.approx((1 - 0.5) / 2),
    }
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
    sums = {
        "tokens": np.array([[3.0, 1], [0, 0], [0, 0]]),
        "entropy": np.array([[6.0, 1], [0, 0], [0, 0]]),
    }
    given = trajectories, advantages, sums
    found = diagnostics.by_place(diagnostics.sums_by_place(level, 1.0, *given))
    first = {
        "advantage": 1.0,
        "advantage_std": 2.0,
        "length": 4.0,
        "turn_share": 6 / 14,
        "entropy": 2,
    }
    last = {"advantage": 1.0, "advantage_std": 0.0, "length": 1.0, "turn_share": 0, "entropy": 1.0}
    # nothing was learned from the second attempt; the third has no turn
    chained = {"advantage": -1.0, "advantage_std": 0.0, "length": 5.0, "turn_share": 0.0}
    copied = {"advantage": 2, "advantage_std": 1, "length": 2, "turn_share": 0.6, "entropy": 7 / 4}
    places = {"turn/0": first, "turn/1": last, "scenario/chain": chained, "scenario/copy": copied}
    assert found == {
        f"by/{place}/{name}": pytest.approx(value)
        for place, numbers in places.items()
        for name, value in numbers.items()
    }
    parts = [
        diagnostics.sums_by_place(
            level[rows],
            1.0,
            trajectories[rows],
            advantages[rows],
            {k: v[rows] for k, v in sums.items()},
        )
        for rows in (slice(1), slice(1, 3))
    ]
    joined = diagnostics.by_place(diagnostics.added(parts))
    assert joined == pytest.approx(found)  # of one process or two
    idle = {"turn/0": {"turns": 0.0}}  # a process that learned nothing measured less
    assert diagnostics.by_place(diagnostics.added([idle, *parts])) == pytest.approx(found)
    alone = diagnostics.by_place(diagnostics.sums_by_place(None, 1.0, *given))
    assert found.keys() - alone.keys() == {f"by/{place}/turn_share" for place in places}


def test_spans_and_what_they_get():
    two = long(6, ("call", 0, 2), ("reasoning", 2, 3), ("call", 3, 6), calls=(A, B))
    trajectories = [attempt(AB, two, long(2, ("answer", 0, 2)))]
    advantages = np.array([[1.0, -1.0]])
    found = diagnostics.by_span(
        diagnostics.sums_by_span(trajectories, advantages, [np.array([4.0, -1.0])])
    )
    assert found == {
        **{"by/span/call/share": 5 / 8, "by/span/call/advantage": (2 * 4 - 3) / 5},
        **{"by/span/reasoning/share": 1 / 8, "by/span/reasoning/advantage": 1.0},
        **{"by/span/answer/share": 2 / 8, "by/span/answer/advantage": -1.0},
    }
    alone = diagnostics.by_span(diagnostics.sums_by_span(trajectories, advantages, None))
    assert alone["by/span/call/advantage"] == 1.0


def test_singletons_and_what_they_get():
    _, _, batch = scored([attempt(AB, turn(A)), attempt(AB, turn(A), turn(B))])
    found = diagnostics.singletons(batch, TurnAdvantage()(batch))
    assert found == {
        "singleton_share": pytest.approx(1 / 3),
        "singleton_advantage": pytest.approx(1.0, abs=1e-5),
    }


def test_duplicates_and_what_they_get():
    trajectories = [attempt(AB, turn(A, A), turn(B)), attempt(AB, turn(B), turn(A))]
    _, credits, _ = scored(trajectories, assignment=HardAssignment(0.25))
    assert diagnostics.duplicates(trajectories, credits) == {
        "duplicate_share": 0.2,
        "duplicate_reward": -0.25,
    }


def test_rewards_by_number_of_calls():
    trajectories = [attempt(AB, turn(A), says("blue")), attempt(AB, turn(A, B), says("red"))]
    _, credits, batch = scored(trajectories, assignment=SoftAssignment(0.01), turn_reduction="sum")
    assert diagnostics.reward_by_calls(batch, credits) == {
        "reward_of_1_calls": pytest.approx(0.5),
        "reward_of_2_calls": pytest.approx(1.0),
    }


def test_probes_find_the_bonus_for_serialised_calls():
    trajectories = [attempt(AB, turn(A), turn(B), says("blue"))]
    mean, _, _ = scored(trajectories)
    total, _, _ = scored(trajectories, turn_reduction="sum")
    assert diagnostics.probes(mean, trajectories)["gain_serialised"] == pytest.approx(1.0)
    assert diagnostics.probes(total, trajectories)["gain_serialised"] == pytest.approx(0.0)
    joined = diagnostics.merged(trajectories[0])
    assert [len(t.calls) for t in joined.turns] == [2, 0]
    assert joined.final_text == trajectories[0].final_text


def test_probes_find_what_useless_calls_cost():
    trajectories = [attempt(AB, turn(A), says("blue"))]
    free, _, _ = scored(trajectories)
    assert diagnostics.probes(free, trajectories) == {"gain_duplicate": 0.0, "gain_wrong_call": 0.0}
    strict, _, _ = scored(trajectories, assignment=HardAssignment(0.25))
    assert set(diagnostics.probes(strict, trajectories).values()) == {-0.25}


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
