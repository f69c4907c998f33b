"""Statistics over tasks, their intervals and differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multilabel_f1_score

from matchtir.evaluation.statistics import (
    MacroF1,
    Mean,
    MeanOf,
    Ratio,
    Total,
    difference,
    estimate,
    nested_bootstrap,
    paired_bootstrap,
    resample_weights,
    value,
)

TASKS = [{"a": 1.0, "calls": 4, "errors": 1}, {"a": 0.0, "calls": 0, "errors": 0}, {"calls": 6}]


def test_means_leave_out_tasks_without_the_measure():
    assert value(Mean("a"), TASKS) == 0.5
    assert value(Mean("a"), [{"a": None}, {"a": 1.0}]) == 1.0
    assert np.isnan(value(Mean("b"), TASKS))
    assert np.isnan(value(Mean("a"), []))


def test_sums_and_ratios_are_over_all_tasks():
    assert value(Total("calls"), TASKS) == 10
    assert value(Ratio("errors", "calls"), TASKS) == 0.1
    assert np.isnan(value(Ratio("errors", "a"), [{"errors": 1}]))


def test_a_mean_of_statistics_counts_each_once_and_skips_those_without_tasks():
    parts = MeanOf([Mean("a"), MeanOf([Ratio("errors", "calls"), Mean("missing")])])
    assert value(parts, TASKS) == pytest.approx((0.5 + 0.1) / 2)
    assert np.isnan(value(MeanOf([Mean("missing")]), TASKS))


LABELS = "abcd"
rows = st.lists(st.tuples(st.sets(st.sampled_from(LABELS)), st.sets(st.sampled_from(LABELS))))


@given(rows.filter(lambda drawn: len({label for gold, _ in drawn for label in gold}) > 1))
def test_macro_f1_is_that_of_multilabel_classification(drawn):
    known = sorted({label for gold, _ in drawn for label in gold})
    target = torch.tensor([[label in gold for label in known] for gold, _ in drawn]).int()
    found = torch.tensor([[label in predicted for label in known] for _, predicted in drawn]).int()
    per_label = multilabel_f1_score(found, target, len(known), average="none")
    tasks = [{"f1": [{"gold": [*gold], "predicted": [*found]}]} for gold, found in drawn]
    assert value(MacroF1("f1"), tasks) == pytest.approx(float(per_label.mean()), abs=1e-6)


def test_macro_f1_of_several_rows_a_task():
    both = {"f1": [{"gold": ["x"], "predicted": ["x"]}, {"gold": ["y"], "predicted": ["z", "z"]}]}
    assert value(MacroF1("f1"), [both]) == 0.5
    assert value(MacroF1("f1"), [both, {"f1": [{"gold": ["y"], "predicted": ["y"]}]}]) == (
        pytest.approx((1 + 2 / 3) / 2)
    )
    assert np.isnan(value(MacroF1("f1"), [{}]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 5))
def test_weights_are_copies_of_tasks(scores, seed):
    (weights,) = resample_weights(len(scores), seed, samples=1)
    assert weights.sum() == len(scores)
    tasks = [{"a": score} for score in scores]
    copies = [task for task, w in zip(tasks, weights, strict=True) for _ in range(int(w))]
    for statistic in (Mean("a"), Total("a"), MeanOf([Mean("a")])):
        assert statistic(tasks, weights[None])[0] == pytest.approx(value(statistic, copies))


def test_an_interval_covers_the_mean_and_narrows_with_more_tasks():
    few, many = [{"a": float(n % 2)} for n in range(10)], [{"a": float(n % 2)} for n in range(1000)]
    wide = estimate(Mean("a"), few, resample_weights(10))
    narrow = estimate(Mean("a"), many, resample_weights(1000))
    assert wide.mean == narrow.mean == 0.5
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high
    assert narrow.high - narrow.low == pytest.approx(4 * 0.5 / 1000**0.5, rel=0.1)


def test_the_difference_of_a_mean_is_the_paired_bootstrap_of_its_tasks():
    generator = np.random.default_rng(0)
    before, after = generator.random(20), generator.random(20)
    tasks = [[{"a": score} for score in scores] for scores in (before, after)]
    gain = difference(Mean("a"), *tasks, resample_weights(20, seed=3, samples=500))
    pair = paired_bootstrap(before, after, seed=3, samples=500)
    assert (gain.low, gain.mean, gain.high) == pytest.approx((pair.low, pair.mean, pair.high))
    with pytest.raises(ValueError, match="20 tasks before, 1 after"):
        difference(Mean("a"), tasks[0], tasks[1][:1], resample_weights(20))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-1, 1))
def test_a_constant_gain_has_no_width(before, gain):
    result = paired_bootstrap(before, [score + gain for score in before], seed=0, samples=300)
    assert (result.mean, result.low, result.high) == pytest.approx((gain, gain, gain), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_swapping_before_and_after_mirrors_the_interval(pairs):
    before, after = zip(*pairs, strict=True)
    gain = paired_bootstrap(before, after, seed=3, samples=300)
    loss = paired_bootstrap(after, before, seed=3, samples=300)
    assert (loss.mean, loss.low, loss.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


def test_the_interval_is_the_normal_one_for_many_tasks():
    generator = np.random.default_rng(0)
    before = generator.normal(size=400)
    after = before + generator.normal(0.1, 0.5, size=400)
    gain = paired_bootstrap(before, after, seed=1)
    error = (after - before).std(ddof=1) / np.sqrt(400)
    assert gain.mean == pytest.approx((after - before).mean())
    assert (gain.low, gain.high) == pytest.approx(
        (gain.mean - 1.96 * error, gain.mean + 1.96 * error), abs=0.1 * error
    )


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        difference = generator.normal(0.1, 1.0, size=60)
        gain = paired_bootstrap(np.zeros(60), difference, seed=seed, samples=500)
        covered += gain.low <= 0.1 <= gain.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_seed_decides():
    before, after = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.5, 1.0]
    assert paired_bootstrap(before, after, seed=1) == paired_bootstrap(before, after, seed=1)


def test_pairing_takes_out_how_hard_a_task_is():
    before = np.linspace(0, 1, 50)
    paired = paired_bootstrap(before, before + 0.05, seed=0)
    shuffled = paired_bootstrap(before, np.random.default_rng(0).permutation(before + 0.05), seed=0)
    assert paired.low > 0 > shuffled.low


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_scores_that_cannot_be_paired_are_refused(before, after):
    with pytest.raises(ValueError, match="paired scores of shapes"):
        paired_bootstrap(before, after, seed=0)


def test_starts_and_seeds_widen_an_interval() -> None:
    """Two starts that gain 0 and 1 on every task: the tasks alone would say 0.5 exactly."""
    values = np.broadcast_to(np.array([0.0, 1.0])[:, None, None], (2, 3, 40))
    gain = nested_bootstrap(values)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.5, 0.0, 1.0))
    seeds = np.broadcast_to(np.array([0.0, 1.0])[None, :, None], (3, 2, 40))
    assert 0.0 < nested_bootstrap(seeds).low < 0.5 < nested_bootstrap(seeds).high < 1.0


@given(st.floats(-1, 1), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_where_nothing_differs_the_interval_is_a_point(
    gain: float, starts: int, seeds: int, tasks: int
) -> None:
    found = nested_bootstrap(np.full((starts, seeds, tasks), gain), samples=50)
    assert (found.low, found.high) == (pytest.approx(gain), pytest.approx(gain))


def test_tasks_of_one_run_give_the_interval_of_tasks() -> None:
    scores = np.random.default_rng(0).random(60)
    nested = nested_bootstrap(scores[None, None])
    alone = paired_bootstrap(np.zeros(60), scores, seed=0)
    assert nested.low == pytest.approx(alone.low, abs=0.01)
    assert nested.high == pytest.approx(alone.high, abs=0.01)


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="shape"):
        nested_bootstrap(np.zeros((0, 3, 5)))
