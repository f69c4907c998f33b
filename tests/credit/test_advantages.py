from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matchtir.credit.advantages import (
    DualAdvantage,
    RewardBatch,
    TrajectoryAdvantage,
    TurnAdvantage,
    parts_of,
)
from matchtir.credit.estimators import MtGrpoAdvantage, ShrinkageAdvantage, shrinkage
from matchtir.credit.normalisation import discounted_returns
from matchtir.types import StopReason
from tests.credit.builders import attempt, batch, call, says, scored, task, turn

# As in configs/advantage.
DR_GRPO = TrajectoryAdvantage(scale="none", singleton="zero")
RLOO = TrajectoryAdvantage(baseline="others", scale="none", singleton="zero")
GIGPO = DualAdvantage(gamma=0.95, singleton="zero", turn_groups="state")
GTPO = DualAdvantage(trajectory_reward="outcome", trajectory_weight=0.3, singleton="zero")
SUM = DualAdvantage(turn_groups="trajectory", gamma=0.0)
PRODUCT = DualAdvantage(turn_groups="trajectory", combination="product", gamma=0.0)
REINFORCE = TrajectoryAdvantage(baseline="none", scale="batch", singleton="zero")
REINFORCE_BASELINE = TrajectoryAdvantage(scale="batch", singleton="zero")
PER_GROUP = [
    TrajectoryAdvantage(),
    TrajectoryAdvantage(baseline="none"),
    *(DR_GRPO, RLOO, GIGPO, GTPO, SUM, PRODUCT),
    TurnAdvantage(),
    TurnAdvantage(turn_groups="kind_and_index", singleton="zero"),
    TurnAdvantage(turn_baseline="others", turn_groups="kind_and_index", singleton="zero"),
    TurnAdvantage(turn_baseline="absorbing", turn_scale="none"),
    DualAdvantage(),
    MtGrpoAdvantage(),
    ShrinkageAdvantage(),
]
SCALED = [
    TurnAdvantage(turn_scale="batch", turn_baseline="absorbing"),
    DualAdvantage(turn_scale="shrunk", trajectory_scale="batch"),
]
EVERY = [*PER_GROUP, REINFORCE, REINFORCE_BASELINE, *SCALED]


@st.composite
def batches(draw, smallest=1):
    turns = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=smallest, max_size=4)
    rows = draw(st.lists(turns, min_size=1, max_size=9))
    rows[0] = rows[0] or [0.5]
    made = batch(rows, draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    numbers = hnp.arrays(int, made.turn_mask.shape, elements=st.integers(0, 2))
    # States of different groups are different states.
    return replace(made, states=draw(numbers) + 10 * made.group[:, None], actions=draw(numbers))


def rows_of(made, index):
    given = {name: getattr(made, name) for name in made.__slots__}
    return RewardBatch(**{name: each[index] for name, each in given.items() if each is not None})


@pytest.mark.parametrize("advantage", EVERY)
@settings(max_examples=25)
@given(made=batches(smallest=0), random=st.randoms())
def test_what_holds_for_every_advantage(advantage, made, random):
    values = advantage(made)
    assert values.shape == made.turn_mask.shape and values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values[~made.turn_mask] == 0).all()

    order = list(range(len(made.group)))
    random.shuffle(order)
    shuffled = replace(rows_of(made, order), group=7 - made.group[order])
    np.testing.assert_allclose(advantage(shuffled), values[order], atol=2e-6)

    odd = replace(made, turn_rewards=np.where(made.turn_mask, made.turn_rewards, 99.0))
    fills = {"turn_rewards": 99.0, "turn_mask": False, "has_calls": True, "states": 0, "actions": 0}
    wide = {
        name: np.pad(getattr(odd, name), ((0, 0), (0, 2)), constant_values=fill)
        for name, fill in fills.items()
    }
    np.testing.assert_allclose(advantage(replace(odd, **wide))[:, :-2], values, atol=2e-6)
    if advantage in PER_GROUP:
        for group in np.unique(made.group):
            index = made.group == group
            alone = advantage(rows_of(made, index))
            np.testing.assert_allclose(alone, values[index], atol=2e-6)


@given(made=batches())
def test_advantages_are_centred_where_they_are_compared(made):
    turns = TurnAdvantage(singleton="zero")(made)
    for group in np.unique(made.group):
        index = made.group == group
        assert turns[index].sum(axis=0) == pytest.approx(0, abs=1e-6)
        if index.sum() > 1:
            for advantage in (TrajectoryAdvantage(), DR_GRPO, RLOO):
                assert advantage(made)[index, 0].sum() == pytest.approx(0, abs=1e-6)
    for advantage in (REINFORCE, REINFORCE_BASELINE):
        assert advantage(made)[:, 0].sum() == pytest.approx(0, abs=1e-6)


PAIR = batch([[1.0, 1.0], [0.0]])  # totals 2 and 0
UNLIKE = batch([[0.25, 1.0], [0.5, 0.0]])  # returns 1.15 and 0.5, then 1 and 0
ENDINGS = batch([[0.5, 1.0], [0.5, 0.0]])
TURNS = batch([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
SHORTER = batch([[1.0, 0.0], [1.0, 1.0, 0.0]], outcome=[0.0, 0.0])
STATES = np.zeros((4, 1), dtype=int)
ALIKE = batch([[3.0], [1.0], [1.0], [-1.0]], states=STATES, actions=[[0], [0], [1], [1]])
SQRT2 = np.sqrt(2)
FOUR = batch([[1.0], [3.0], [5.0], [5.0]], group=[0, 0, 1, 1])
ONE = batch([[0.5, 1.0]])


@pytest.mark.parametrize(
    ("advantage", "made", "expected"),
    [
        (TrajectoryAdvantage(), PAIR, [[1, 1], [-1, 0]] / SQRT2),
        (DR_GRPO, PAIR, [[1, 1], [-1, 0]]),
        (RLOO, PAIR, [[2, 2], [-2, 0]]),
        (REINFORCE, FOUR, np.array([[-2.5], [-0.5], [1.5], [1.5]]) / np.sqrt(11 / 3)),
        (REINFORCE_BASELINE, FOUR, np.array([[-1], [1], [0], [0]]) / np.sqrt(2 / 3)),
        # a single trajectory keeps its reward or gets nothing
        (TrajectoryAdvantage(), ONE, [[1.5, 1.5]]),
        (TrajectoryAdvantage(singleton="zero"), ONE, [[0, 0]]),
        (TrajectoryAdvantage(baseline="group", scale="none"), ONE, [[1.5, 1.5]]),
        (TrajectoryAdvantage(baseline="others", scale="none"), ONE, [[1.5, 1.5]]),
        # two unlike numbers are +-1/sqrt(2) when they are normalised
        (DualAdvantage(trajectory_weight=2.0, turn_weight=3.0), UNLIKE, [[5, 5], [-5, -5]] / SQRT2),
        (GTPO, ENDINGS, [[1.3, 1.3], [-1.3, -1.3]] / SQRT2),
        # turn rewards +, - at turn 0 and -, + at turn 1, summed; outcome +, -
        (MtGrpoAdvantage(), TURNS, [[1, 0, 1], [-1, 0, -1]] / SQRT2),
        # at turn 1 only the second one calls: an answer is not held against it
        (MtGrpoAdvantage(), SHORTER, [[0, 0, 0], [0, 0, 0]]),
        # the turn term alone is scaled, by 1/4
        (ShrinkageAdvantage(), ALIKE, 1.25 * np.array([[2], [0], [0], [-2]]) / np.sqrt(8 / 3)),
    ],
)
def test_by_hand(advantage, made, expected):
    assert advantage(made) == pytest.approx(np.array(expected), abs=2e-5)


def test_the_scale_of_two_turns_alike_is_noise_unless_others_have_a_say():
    # Groups of two with q = 2e-4 and 2, of three with q = 6, of one; pooled 8.0002 / 4.
    rows = [[0.49], [0.51], [0.0], [2.0], [0.0], [3.0], [0.0], [5.0]]
    made = batch(rows, group=[0, 0, 1, 1, 2, 2, 2, 3])
    kinds = "group", "batch", "shrunk"
    group, wide, shrunk = (TurnAdvantage(turn_scale=kind)(made)[:, 0] for kind in kinds)
    assert group[:4] == pytest.approx(np.sqrt([0.5, 0.5, 0.5, 0.5]) * [-1, 1, -1, 1], abs=1e-4)
    pooled = 8.0002 / 4
    differences = np.array([-0.01, 0.01, -1, 1, -1, 2, -1])
    assert wide == pytest.approx([*(differences / pooled**0.5), 5], abs=1e-5)
    variance = np.array([4 * pooled + 2e-4, 4 * pooled + 2, 4 * pooled + 6]) / [5, 5, 6]
    assert shrunk[[1, 3, 5]] == pytest.approx([0.01, 1, 2] / np.sqrt(variance), abs=1e-5)
    assert shrunk[7] == pytest.approx(5, abs=1e-5)  # alone: raw, whatever the others' spread


def test_baselines_of_others_by_hand():
    made = batch([[1.0, 3.0, 2.0], [0.0, 1.0], [4.0]], states=[[0, 1, 0], [0, 1, -1], [0, -1, -1]])

    def values(**options):
        return TurnAdvantage(gamma=0.0, turn_scale="none", **options)(made).tolist()

    others = [[-1, 2, 2], [-2.5, -2, 0], [3.5, 0, 0]]
    assert values(turn_baseline="others") == others
    assert values(turn_baseline="others", singleton="zero") == [[-1, 2, 0], *others[1:]]
    # Who stopped before counts as 0.
    assert values(turn_baseline="absorbing") == [[-1, 2.5, 2], [-2.5, -0.5, 0], [3.5, 0, 0]]
    # Turns of the same trajectory are no others, although it was in that state twice.
    of_state = values(turn_baseline="others", turn_groups="state")
    assert of_state == [[-1, 2, 0], [1 - 10 / 3, -2, 0], [3, 0, 0]]


def test_the_sum_and_the_product_of_turns_among_themselves():
    made = batch([[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    level = 0.25 / (np.sqrt(2) * 0.25 + 1e-6)  # of the totals 1 and 0.5
    local = np.array([2.0, -1.0, -1.0]) / 3 / (np.sqrt(1 / 3) + 1e-6)
    assert SUM(made)[0] == pytest.approx(level + local, abs=1e-4)
    product = PRODUCT(made)
    assert product[0] == pytest.approx((1 + 0.1 * local) * level)
    assert product[1] == pytest.approx(-(1 - 0.1 * local[[1, 2, 0]]) * level)
    # an only turn has nothing to be compared with, whatever becomes of an only trajectory
    assert SUM(batch([[0.5]]))[0, 0] == pytest.approx(0.5, abs=1e-5)


def test_gigpo_compares_turns_from_the_same_state():
    states = [[0, 1], [0, 2], [0, 1]]
    made = batch([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], states=states)
    gigpo = DualAdvantage(gamma=0.0, singleton="zero", turn_groups="state")
    local = gigpo(made) - TrajectoryAdvantage(singleton="zero")(made)
    centred = np.array([-1, 2, -1]) / 3
    assert local[:, 0] == pytest.approx(centred / centred.std(ddof=1), abs=1e-5)
    unit = 0.5 / (np.sqrt(0.5) + 1e-6)
    assert local[:, 1] == pytest.approx([unit, 0, -unit])  # state 2 was seen once


@pytest.mark.parametrize(
    ("returns", "actions", "expected"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 1], 1.0),  # the action decides
        ([1, 0, 1, 0], [0, 0, 1, 1], 0.0),  # chance decides
        ([1, 0, 1, 1], [0, 0, 0, 0], 1.0),  # one action: cannot be told
        ([1, 0, 1, 1], [0, 1, 2, 3], 1.0),  # no action twice: cannot be told
        ([1, 1, 1, 1], [0, 0, 1, 1], 1.0),
        ([3, 1, 1, -1], [0, 0, 1, 1], 1 - (4 / 2) / (8 / 3)),
    ],
)
def test_shrinkage_is_the_share_of_variance_between_actions(returns, actions, expected):
    weight = shrinkage(np.array(returns, dtype=float), np.zeros(4, dtype=int), np.array(actions))
    assert weight == pytest.approx(np.full(4, expected))


def test_batches_that_lack_something_are_refused():
    made = batch([[1.0]])
    for advantage in (GIGPO, TurnAdvantage(turn_groups="state")):
        with pytest.raises(ValueError, match="turn_groups=state needs"):
            advantage(made)
    with pytest.raises(ValueError, match="actions"):
        ShrinkageAdvantage()(made)
    with pytest.raises(ValueError, match="longer"):
        RewardBatch.from_credits([], [], [1])


def test_a_batch_from_trajectories():
    of = task(call("a"), call("b"))
    whole = attempt(of, turn(call("a")), turn(call("b")), says("blue"))
    given = [whole, attempt(of, turn(call("a"))), attempt(of, stop=StopReason.PROMPT_TOO_LONG)]
    *_, made = scored(given, [4, 4, 9], no_answer_penalty=0.25)
    assert made.turn_rewards.tolist() == [[1, 1, 1], [0.75, 0, 0], [0, 0, 0]]
    assert made.turn_mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert made.has_calls.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert made.group.tolist() == [4, 4, 9]
    assert made.total.tolist() == [3, 0.75, 0]
    assert made.outcome_reward.tolist() == [1, -0.25, 0]
    assert made.process_rewards.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_states_are_what_is_known_and_actions_what_is_done():
    of = task(call("a"), call("b"))
    a, b = turn(call("a"), outputs=["1"]), turn(call("b"), outputs=["2"])
    other = turn(call("a"), outputs=["x"])
    turns = (a, b, says("blue")), (b, a, says("red")), (other, b, says("blue")), (a,)
    *_, made = scored([attempt(of, *each) for each in turns], [0, 0, 0, 1])
    states, actions = made.states, made.actions
    assert states[0, 0] == states[1, 0] == states[2, 0] != states[3, 0]  # another task
    assert states[0, 1] != states[1, 1]
    assert states[0, 2] == states[1, 2] != states[2, 2]  # the same results in another order
    assert actions[0, 0] == actions[1, 1] == actions[2, 0] == actions[3, 0]
    assert actions[0, 2] == actions[2, 2] != actions[1, 2]
    assert states[3, 1] == actions[3, 1] == -1  # padding


def test_what_a_user_replies_is_known_from_then_on():
    asks = replace(turn(text="Which order?"), reply="It is number 17.")
    *_, made = scored([attempt(task(call("a")), asks, turn(call("a")), says("blue"))])
    (states,) = made.states
    assert len(set(states)) == 3


def test_the_parts_of_an_advantage_make_it_up():
    made = batch([[1.0, 0.5], [0.25, 0.75, 0.0], [0.5]])
    dual = DualAdvantage(trajectory_weight=2.0, turn_weight=0.5)
    parts = parts_of(dual, made)
    whole = 2.0 * parts["trajectory_advantage"] + 0.5 * parts["turn_advantage"]
    assert np.allclose(dual(made), whole)
    expected = discounted_returns(made.turn_rewards, made.turn_mask, 0.9)
    assert np.array_equal(parts["return"], expected)
    assert parts_of(MtGrpoAdvantage(), made) == {}
