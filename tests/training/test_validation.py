"""A benchmark validates in place of the validation split, with its own tasks, limits, measures."""

import logging

import pytest

from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.evaluation.statistics import Ratio
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits
from matchtir.training.data import TaskDataModule
from tests.training.training_parts import TaskList, fit, policy_gradient, tasks, trainer


def benchmark(split=None, **settings):
    return TaskBenchmark(
        "three",
        TaskList(tasks(3), "validation"),
        {},
        split=split,
        limits=EpisodeLimits(max_turns=1),
        scores={"errors": "matchtir.evaluation.metrics.call_errors"},
        statistics={"error_rate": Ratio("errors", "calls")},
        **settings,
    )


def validated(folder, validation, **options):
    module = policy_gradient()
    datamodule = TaskDataModule([], TaskList(tasks(2)), seed=1, validation=validation, **options)
    validating = trainer(folder)
    validating.validate(module, datamodule=datamodule, verbose=False)
    metrics = {name: float(value) for name, value in validating.callback_metrics.items()}
    validating.test(module, datamodule=datamodule, verbose=False)
    assert list(module.test_scores) == ["t0", "t1"]
    return metrics


def test_its_tasks_limits_and_measures(tmp_path):
    own = validated(tmp_path, None)
    metrics = validated(tmp_path, benchmark())
    # The script calls once and then answers: one turn is not enough for that.
    assert own["val/turns"] == 2.0 and own["val/answered"] == 1.0
    assert metrics["val/turns"] == 1.0 and metrics["val/answered"] == 0.0
    assert metrics["val/errors"] == metrics["val/error_rate"] == 0.0
    assert "val/errors" not in own


def test_several_attempts_at_each_task(tmp_path):
    warm = SamplingParams(temperature=1.0)
    metrics = validated(tmp_path, benchmark(attempts=3, sampling=warm))
    assert metrics["val/pass@3"] == metrics["val/pass@1"] == metrics["val/success"]
    own = validated(tmp_path, None, attempts=2, temperature=1.0)
    assert "val/pass@2" in own and "test/pass@2" not in own
    with pytest.raises(ValueError, match="datamodule: attempts=2 at temperature=0"):
        TaskDataModule([], None, seed=1, attempts=2)
    with pytest.raises(ValueError, match=r"say validation\.attempts"):
        TaskDataModule([], None, seed=1, attempts=2, temperature=1.0, validation=benchmark())


def test_it_is_the_validation_split_unless_told_otherwise(caplog):
    with pytest.raises(ValueError, match="three: the split 'test' has no tasks"):
        TaskDataModule([], None, seed=1, validation=benchmark("test"))
    only_tests = TaskBenchmark("three", TaskList(tasks(3), "test"), {})
    with pytest.raises(ValueError, match=r"'validation' has no tasks; validation\.split=test"):
        TaskDataModule([], None, seed=1, validation=only_tests)
    with caplog.at_level(logging.WARNING):
        TaskDataModule([], None, seed=1, validation=benchmark(max_tasks=2))
        assert not caplog.records
        tested = TaskBenchmark("three", TaskList(tasks(3), "test"), {}, split="test")
        TaskDataModule([], None, seed=1, validation=tested)
    assert "must not be tested on them" in caplog.text


def test_numbers_are_logged_without_a_device(tmp_path, monkeypatch):
    """Lightning sums tensors over processes where they are; NCCL has no sums on a CPU."""
    kinds = set()
    module = policy_gradient()
    monkeypatch.setattr(module, "log_dict", lambda row, **_: kinds.update(map(type, row.values())))
    fit(module, tmp_path, validate=True)
    assert kinds == {float}
