"""Hard, greedy, ordered and partial matchings against brute force."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matchtir.credit.assignment import (
    GreedyAssignment,
    HardAssignment,
    OrderedAssignment,
    PartialAssignment,
    SoftAssignment,
)
from tests.credit.builders import assigned

TIED = [0.0, 0.0, 0.0, 0.25, 0.5, 2 / 3, 0.75, 1.0]


def matrices(elements, smallest=0, largest=4):
    shape = st.tuples(st.integers(smallest, largest), st.integers(smallest, largest))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=elements))


FLOATS = st.floats(0, 1, width=32)
ANY = matrices(FLOATS) | matrices(st.sampled_from(TIED))
MATCHINGS = [HardAssignment, GreedyAssignment, OrderedAssignment, PartialAssignment]
TRANSPORTS = [SoftAssignment(), PartialAssignment(kind="transport")]
ASSIGNMENTS = [*(kind() for kind in MATCHINGS), *TRANSPORTS]


def pairings(m, n):
    """Every one-to-one matching of min(m, n) pairs."""
    if m <= n:
        yield from (list(enumerate(columns)) for columns in permutations(range(n), m))
    else:
        yield from ([(r, c) for c, r in enumerate(rows)] for rows in permutations(range(m), n))


@given(ANY)
def test_hard_equals_brute_force(similarity):
    best = max(sum(similarity[r, c] for r, c in pairs) for pairs in pairings(*similarity.shape))
    assert assigned(HardAssignment(), similarity).rewards.sum() == pytest.approx(best, abs=1e-9)


@given(ANY)
def test_ordered_equals_brute_force(similarity):
    m, n = similarity.shape
    best = max(
        sum(similarity[r, c] for r, c in zip(rows, columns, strict=True))
        for size in range(min(m, n) + 1)
        for rows in combinations(range(m), size)
        for columns in combinations(range(n), size)
    )
    assert assigned(OrderedAssignment(), similarity).rewards.sum() == pytest.approx(best, abs=1e-9)


@given(ANY, st.sampled_from([0.0, 0.3, 0.7]))
def test_partial_matching_equals_brute_force(similarity, threshold):
    best = max(
        sum(max(similarity[r, c] - threshold, 0) for r, c in pairs)
        for pairs in pairings(*similarity.shape)
    )
    assignment = assigned(PartialAssignment(threshold), similarity)
    gain = (assignment.plan * (similarity - threshold)).sum()
    assert gain == pytest.approx(best, abs=1e-9)
    assert (similarity[assignment.plan > 0] > threshold).all()


@given(ANY, st.sampled_from([0.0, 0.25]), st.sampled_from(MATCHINGS))
def test_plans_are_one_to_one_and_pay_what_they_match(similarity, penalty, kind):
    assignment = assigned(kind(unmatched_penalty=penalty), similarity)
    plan = assignment.plan
    assert plan.shape == similarity.shape
    assert set(np.unique(plan)) <= {0.0, 1.0}
    assert (plan.sum(axis=0) <= 1).all() and (plan.sum(axis=1) <= 1).all()
    assert (similarity[plan > 0] > 0).all()
    matched = plan.sum(axis=1) > 0
    assert assignment.rewards[matched] == pytest.approx((plan * similarity).sum(axis=1)[matched])
    assert (assignment.rewards[~matched] == -penalty).all()


@pytest.mark.parametrize(
    ("kind", "rewards"), [(GreedyAssignment, [1.0, 0.0]), (HardAssignment, [0.9, 0.9])]
)
def test_greedy_is_not_hungarian(kind, rewards):
    assert assigned(kind(), [[1.0, 0.9], [0.9, 0.0]]).rewards.tolist() == rewards


@pytest.mark.parametrize("kind", [HardAssignment, GreedyAssignment, OrderedAssignment])
@pytest.mark.parametrize("calls", [2, 40])
def test_of_equal_calls_the_first_is_paid(kind, calls):
    rewards = assigned(kind(0.5), np.full((calls, 1), 0.75)).rewards
    assert rewards.tolist() == [0.75] + [-0.5] * (calls - 1)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_empty_sides(assignment):
    shapes = [(0, 0), (0, 3), (3, 0)]
    for shape, result in zip(shapes, assignment([np.zeros(s) for s in shapes]), strict=True):
        assert result.plan.shape == shape
        assert result.rewards.tolist() == [0.0] * shape[0]
    assert assignment([]) == []


@pytest.mark.parametrize("kind", [*MATCHINGS, SoftAssignment])
def test_similarities_that_are_no_numbers_are_refused_with_their_row(kind):
    for bad in (np.nan, np.inf):
        matrix = np.zeros((3, 2))
        matrix[2, 1] = bad
        with pytest.raises(ValueError, match="similarity matrix 2, row 2 is not finite"):
            kind()([np.zeros((2, 2)), np.zeros((3, 2)), matrix])
