"""Soft assignment and partial transport: marginals, limits, an independent solver."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.credit.assignment import HardAssignment, PartialAssignment, SoftAssignment
from tests.credit.builders import assigned
from tests.credit.test_assignment import TIED, matrices

MATRICES = matrices(st.sampled_from(TIED) | st.floats(0, 1), smallest=1, largest=8)
REGS = [1e-4, 0.002, 0.01, 0.1, 1.0, 10.0]


def problems(count, seed, largest=8):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = rng.integers(1, largest + 1, size=2)
        yield rng.choice(TIED, size=shape) if rng.random() < 0.5 else rng.random(shape)


@settings(max_examples=30)
@given(st.lists(MATRICES, min_size=1, max_size=6), st.sampled_from(REGS))
def test_marginals_hold_for_every_regulariser(similarities, reg):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assignments = SoftAssignment(reg)(similarities)
    for similarity, assignment in zip(similarities, assignments, strict=True):
        m, n = similarity.shape
        assert np.isfinite(assignment.plan).all() and (assignment.plan >= 0).all()
        assert np.abs(assignment.plan.sum(axis=1) - 1 / m).max() < 1e-9
        assert np.abs(assignment.plan.sum(axis=0) - 1 / n).max() < 1e-9
        assert assignment.rewards == pytest.approx((assignment.plan * similarity).sum(axis=1))


@pytest.mark.parametrize("reg", [0.05, 0.1, 0.5, 5.0])
def test_the_plan_is_the_optimum_that_pot_finds(reg):
    ot = pytest.importorskip("ot")
    similarities = list(problems(15, seed=1, largest=6))
    compared = 0
    for similarity, assignment in zip(similarities, SoftAssignment(reg)(similarities), strict=True):
        m, n = similarity.shape
        masses = np.full(m, 1 / m), np.full(n, 1 / n)
        plan, log = ot.sinkhorn(
            *masses, -similarity, reg, stopThr=1e-11, numItermax=1000, warn=False, log=True
        )
        if log["err"][-1] < 1e-10:  # it gives up on a few tied problems
            compared += 1
            assert np.abs(assignment.plan - plan).max() < 1e-8
    assert compared > 8


@pytest.mark.parametrize("reg", [0.05, 0.002, 1e-4])
def test_the_plan_is_a_scaled_kernel(reg):
    """log Z = (S + f_i + g_j) / reg is what makes a plan with these marginals the optimum."""
    for similarity in problems(15, seed=2, largest=6):
        if min(similarity.shape) < 2:
            continue
        log_plan = np.log(np.clip(assigned(SoftAssignment(reg), similarity).plan, 1e-300, None))
        residual = log_plan - similarity / reg
        # Mixed differences of f_i + g_j vanish; tiny entries are at the mercy of the tolerance.
        clear = np.log(1e-5)
        mixed = residual[:-1, :-1] + residual[1:, 1:] - residual[:-1, 1:] - residual[1:, :-1]
        lowest = np.minimum.reduce(
            [log_plan[:-1, :-1], log_plan[1:, 1:], log_plan[:-1, 1:], log_plan[1:, :-1]]
        )
        assert np.abs(mixed[lowest > clear]).max(initial=0.0) < 1e-3


def test_soft_tends_to_hard_on_square_matrices():
    rng = np.random.default_rng(4)
    for size in (1, 2, 3, 5):
        similarity = rng.random((size, size))
        hard = assigned(HardAssignment(), similarity)
        soft = assigned(SoftAssignment(1e-4, scale="conditional"), similarity)
        assert soft.rewards == pytest.approx(hard.rewards, abs=1e-6)
        assert soft.plan * size == pytest.approx(hard.plan, abs=1e-6)


@pytest.mark.parametrize("reg", [1e-4, 0.1])
def test_a_problem_is_solved_alike_alone_and_among_others(reg):
    similarities = list(problems(20, seed=5))
    together = SoftAssignment(reg)(similarities)
    for similarity, assignment in zip(similarities, together, strict=True):
        alone = assigned(SoftAssignment(reg), similarity)
        assert assignment.plan == pytest.approx(alone.plan, abs=1e-8)


def test_costs_choose_different_plans_from_the_same_similarity():
    similarity = np.array([[0.9, 0.6, 0.0], [0.5, 0.4, 0.2], [0.3, 0.0, 0.1]])
    low, high = similarity.min(), similarity.max()
    scores = {
        "linear": similarity,
        "normalized_inversion": (similarity - low) / (high - low),
        "exponential": np.exp(similarity),
    }
    for cost, score in scores.items():
        found = assigned(SoftAssignment(cost=cost), similarity)
        assert found.plan == pytest.approx(assigned(SoftAssignment(), score).plan, abs=1e-7)
        paid = (found.plan * similarity).sum(axis=1)  # in similarity, whatever the cost
        assert found.rewards == pytest.approx(paid)
        even = assigned(SoftAssignment(cost=cost), np.full((2, 3), 0.5)).plan
        assert even == pytest.approx(np.full((2, 3), 1 / 6))


@pytest.mark.parametrize(("scale", "expected"), [("mass", -0.125), ("conditional", -0.25)])
def test_a_call_that_resembles_nothing_can_be_made_to_lose(scale, expected):
    similarity = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert assigned(SoftAssignment(scale=scale), similarity).rewards[1] == 0
    soft = SoftAssignment(scale=scale, unmatched_penalty=0.25)
    assert assigned(soft, similarity).rewards[1] == expected
    assert assigned(soft, np.zeros((2, 0))).rewards.tolist() == [expected, expected]


def test_release_stops_where_its_iterations_end():
    tied = np.array([[0.75, 0.0, 0.0], [0.0, 0.75, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    release = assigned(SoftAssignment(0.05, max_iterations=20), tied).plan
    finished = assigned(SoftAssignment(0.05), tied).plan
    assert np.abs(release.sum(axis=0) - 1 / 3).max() > 1e-6
    assert np.abs(finished.sum(axis=0) - 1 / 3).max() < 1e-9


def test_release_refuses_regularisers_beyond_its_arithmetic():
    release = SoftAssignment(1e-3, max_iterations=1000)
    with pytest.raises(ValueError, match="reg=0.001 is too small for Sinkhorn on scores 1 apart"):
        assigned(release, [[1.0, 0.0]])


@given(st.sampled_from([1e-3, 0.1, 1.0]), MATRICES)
@settings(max_examples=25)
def test_partial_transport_sends_at_most_the_mass_there_is(reg, similarity):
    plan = assigned(PartialAssignment(0.5, "transport", reg=reg), similarity).plan
    m, n = similarity.shape
    assert (plan >= 0).all()
    assert (plan.sum(axis=1) <= 1 / m + 1e-8).all()
    assert (plan.sum(axis=0) <= 1 / n + 1e-8).all()


def test_partial_transport_sends_nothing_below_its_threshold():
    similarity = np.array([[2 / 3, 0.0], [0.0, 1.0]])
    partial = assigned(PartialAssignment(0.7, "transport", "conditional", reg=1e-3), similarity)
    assert partial.plan == pytest.approx(np.array([[0, 0], [0, 0.5]]), abs=1e-6)
    assert partial.rewards == pytest.approx([0, 1], abs=1e-6)
