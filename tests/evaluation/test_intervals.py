import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.evaluation.intervals import paired_bootstrap


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-1, 1))
def test_a_constant_gain_has_no_width(before: list[float], gain: float) -> None:
    result = paired_bootstrap(before, [score + gain for score in before], seed=0, samples=300)
    assert (result.mean, result.low, result.high) == pytest.approx((gain, gain, gain), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_swapping_before_and_after_mirrors_the_interval(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    gain = paired_bootstrap(before, after, seed=3, samples=300)
    loss = paired_bootstrap(after, before, seed=3, samples=300)
    assert (loss.mean, loss.low, loss.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


def test_the_interval_is_the_normal_one_for_many_tasks() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=400)
    after = before + generator.normal(0.1, 0.5, size=400)
    gain = paired_bootstrap(before, after, seed=1)
    error = (after - before).std(ddof=1) / np.sqrt(400)
    assert gain.mean == pytest.approx((after - before).mean())
    assert (gain.low, gain.high) == pytest.approx(
        (gain.mean - 1.96 * error, gain.mean + 1.96 * error), abs=0.1 * error
    )


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        difference = generator.normal(0.1, 1.0, size=60)
        gain = paired_bootstrap(np.zeros(60), difference, seed=seed, samples=500)
        covered += gain.low <= 0.1 <= gain.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_seed_decides() -> None:
    before, after = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.5, 1.0]
    assert paired_bootstrap(before, after, seed=1) == paired_bootstrap(before, after, seed=1)


def test_pairing_takes_out_how_hard_a_task_is() -> None:
    before = np.linspace(0, 1, 50)
    paired = paired_bootstrap(before, before + 0.05, seed=0)
    shuffled = paired_bootstrap(before, np.random.default_rng(0).permutation(before + 0.05), seed=0)
    assert paired.low > 0 > shuffled.low


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_scores_that_cannot_be_paired_are_refused(before: list, after: list) -> None:
    with pytest.raises(ValueError, match="paired scores of shapes"):
        paired_bootstrap(before, after, seed=0)
