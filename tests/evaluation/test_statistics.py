"""Statistics over tasks, their intervals and differences."""

from itertools import combinations
from math import comb, nan

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
    difference,
    estimate,
    nested_bootstrap,
    nested_difference,
    over_attempts,
    pass_at,
    pass_names,
    resample_weights,
    value,
)


def labels(gold, predicted):
    return {"gold": [*gold], "predicted": [*predicted]}


TWO_ROWS = {"f1": [labels("x", "x"), labels("y", "zz")]}
TASKS = [{"a": 1.0, "calls": 4, "errors": 1}, {"a": 0.0, "calls": 0, "errors": 0}, {"calls": 6}]


PARTS = [Mean("a"), MeanOf([Ratio("errors", "calls")])]


@pytest.mark.parametrize(
    ("statistic", "tasks", "expected"),
    [
        (Mean("a"), TASKS, 0.5),  # tasks without the measure are left out
        (Mean("a"), [{"a": None}, {"a": 1.0}], 1.0),
        (Mean("b"), TASKS, nan),
        (Mean("a"), [], nan),
        (Ratio("errors", "calls"), TASKS, 0.1),  # over all tasks
        (Ratio("errors", "a"), [{"errors": 1}], nan),
        (MeanOf(PARTS), TASKS, (0.5 + 0.1) / 2),  # each counts once
        (MeanOf([*PARTS, Mean("missing")]), TASKS, nan),  # all are needed
        (MacroF1("f1"), [{}], nan),
        (MacroF1("f1"), [TWO_ROWS], 0.5),
        (MacroF1("f1"), [TWO_ROWS, {"f1": [labels("y", "y")]}], (1 + 2 / 3) / 2),
    ],
)
def test_statistics_of_tasks(statistic, tasks, expected):
    assert value(statistic, tasks) == pytest.approx(expected, nan_ok=True)


LABELS = "abcd"
rows = st.lists(st.tuples(st.sets(st.sampled_from(LABELS)), st.sets(st.sampled_from(LABELS))))


@given(rows.filter(lambda drawn: len({label for gold, _ in drawn for label in gold}) > 1))
def test_macro_f1_is_that_of_multilabel_classification(drawn):
    known = sorted({label for gold, _ in drawn for label in gold})
    target = torch.tensor([[label in gold for label in known] for gold, _ in drawn]).int()
    found = torch.tensor([[label in predicted for label in known] for _, predicted in drawn]).int()
    per_label = multilabel_f1_score(found, target, len(known), average="none")
    tasks = [{"f1": [labels(*row)]} for row in drawn]
    assert value(MacroF1("f1"), tasks) == pytest.approx(float(per_label.mean()), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 5))
def test_weights_are_copies_of_tasks(scores, seed):
    (weights,) = resample_weights(len(scores), seed, samples=1)
    assert weights.sum() == len(scores)
    tasks = [{"a": score} for score in scores]
    copies = [task for task, w in zip(tasks, weights, strict=True) for _ in range(int(w))]
    for statistic in (Mean("a"), MeanOf([Mean("a")])):
        assert statistic(tasks, weights[None])[0] == pytest.approx(value(statistic, copies))


def paired(before, after, **options):
    """One run before and after."""
    runs = [{("", 0): np.asarray(scores, dtype=float)} for scores in (before, after)]
    return nested_difference(*runs, **options)


def test_the_difference_of_a_mean_is_the_paired_bootstrap_of_its_tasks():
    generator = np.random.default_rng(0)
    before, after = generator.random(20), generator.random(20)
    tasks = [[{"a": score} for score in scores] for scores in (before, after)]
    gain = difference(Mean("a"), *tasks, resample_weights(20, seed=3))
    pair = paired(before, after, seed=3)
    assert (gain.low, gain.mean, gain.high) == pytest.approx((pair.low, pair.mean, pair.high))
    with pytest.raises(ValueError, match="20 tasks before, 1 after"):
        difference(Mean("a"), tasks[0], tasks[1][:1], resample_weights(20))


@given(st.integers(1, 6), st.integers(0, 6), st.floats(0, 1))
def test_pass_at_k_is_the_share_of_choices_with_a_pass_and_without_bias(k, more, chance):
    n = k + more
    of = [sum(any(c) for c in combinations([i < p for i in range(n)], k)) for p in range(n + 1)]
    found = [pass_at(k, n, passed) for passed in range(n + 1)]
    assert found == pytest.approx([count / comb(n, k) for count in of])
    odds = [comb(n, p) * chance**p * (1 - chance) ** (n - p) for p in range(n + 1)]
    assert np.dot(odds, found) == pytest.approx(1 - (1 - chance) ** k)
    for other in (0, n + 1):  # there are not so many attempts
        with pytest.raises(ValueError, match=f"pass@{other} of {n} attempts"):
            pass_at(other, n, 1)


def test_attempts_at_a_task_become_its_values():
    row = labels("x", "")
    attempts = [{"a": 1.0, "b": None, "f1": [row]}, {"a": 0.0, "b": 3.0, "f1": [row, row]}]
    task = over_attempts(attempts, "a")
    assert task == {"a": 0.5, "b": 3.0, "f1": [row] * 3, "pass@1": 0.5, "pass@2": 1.0}
    assert "pass@1" not in over_attempts(attempts, "b")  # one attempt does not say
    assert over_attempts(attempts[:1], "a") == attempts[0] and pass_names(1) == []


def test_the_interval_of_pass_at_k_covers_it_where_attempts_as_tasks_would_not():
    """Tasks of chances drawn from Beta(1/2, 1/2), 8 attempts at each of 40."""
    generator, covered, narrow = np.random.default_rng(2), 0, 0
    weights, flat = resample_weights(40, samples=400), resample_weights(320, samples=400)
    for _ in range(200):
        drawn = generator.random((40, 8)) < generator.beta(0.5, 0.5, size=(40, 1))
        tasks = [over_attempts([{"a": float(a)} for a in each], "a") for each in drawn]
        # E[1 - (1 - p)^2] = 1 - E[(1 - p)^2] = 1 - 3/8
        gain = estimate(Mean("pass@2"), tasks, weights)
        covered += gain.low <= 5 / 8 <= gain.high
        alone = estimate(Mean("a"), [{"a": float(a)} for a in drawn.ravel()], flat)
        narrow += alone.low <= 1 / 2 <= alone.high
    assert 0.88 <= covered / 200 <= 0.99
    assert narrow / 200 < 0.8


def test_without_tasks_there_are_no_numbers():
    gain = estimate(Mean("a"), [], resample_weights(0))
    assert np.isnan([gain.mean, gain.low, gain.high]).all()


def test_pairing_takes_out_how_hard_a_task_is():
    before = np.linspace(0, 1, 50)
    shuffled = np.random.default_rng(0).permutation(before + 0.05)
    assert paired(before, before + 0.05).low > 0 > paired(before, shuffled).low


def grid(values):
    """Runs of values [starts, seeds, n]."""
    return {(str(i), j): scores for i, of in enumerate(values) for j, scores in enumerate(of)}


@pytest.mark.parametrize(
    "runs", [{}, grid(np.zeros((1, 1, 0))), {("", 1): np.zeros(1), ("", 2): np.zeros(2)}]
)
def test_scores_of_no_tasks_or_of_others_are_refused(runs):
    with pytest.raises(ValueError, match="scores of the same tasks for each run"):
        nested_bootstrap(runs)


def test_starts_and_seeds_widen_an_interval():
    """Two starts that gain 0 and 1 on every task: the tasks alone would say 0.5 exactly."""
    gain = nested_bootstrap(grid(np.broadcast_to([[[0.0]], [[1.0]]], (2, 3, 40))))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.5, 0.0, 1.0))
    seeds = nested_bootstrap(grid(np.broadcast_to([[[0.0], [1.0]]], (3, 2, 40))))
    assert 0.0 < seeds.low < 0.5 < seeds.high < 1.0


def test_a_start_counts_once_however_many_seeds_it_has():
    gain = nested_bootstrap({("a", 1): np.zeros(9), ("b", 1): np.ones(9), ("b", 2): np.ones(9)})
    assert (gain.mean, gain.low, gain.high) == (0.5, 0.0, 1.0)


@given(st.floats(-1, 1), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_where_nothing_differs_the_interval_is_a_point(gain, starts, seeds, tasks):
    found = nested_bootstrap(grid(np.full((starts, seeds, tasks), gain)), samples=50)
    assert (found.low, found.mean, found.high) == pytest.approx((gain, gain, gain))


def test_runs_of_the_same_starts_and_seeds_are_paired_and_others_are_not():
    before = {("", seed): np.full(5, float(seed)) for seed in (1, 2, 3)}
    after = {key: scores + 0.5 for key, scores in before.items()}
    assert nested_difference(before, after).low == pytest.approx(0.5)
    other = {("", seed + 3): scores for (_, seed), scores in after.items()}
    gain = nested_difference(before, other)
    assert gain.mean == pytest.approx(0.5) and gain.low < 0 < 1 < gain.high
