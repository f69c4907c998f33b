"""What is measured of trajectories: FTRL's rules one by one, the rest, and sums over processes."""

import socket
from dataclasses import replace
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed
from torch.multiprocessing import spawn

from matchtir.credit.outcome import contains_answer
from matchtir.evaluation.metrics import (
    MEASURES,
    Scoring,
    SolveMetrics,
    TrajectoryMetrics,
    measure,
    solve_metrics,
)
from matchtir.evaluation.statistics import MacroF1
from tests.credit.builders import attempt, call, says, sub_answers, task, turn


def score(calls, answers):
    """Solve metrics of (tool, output) pairs against (tool, gold output) pairs."""
    made = [call(tool) for tool, _ in calls]
    return solve_metrics(made, [output for _, output in calls], sub_answers(*answers))


@pytest.mark.parametrize(
    ("calls", "gold", "metrics"),
    [
        # each call that finds its answer counts
        ("a: It is Paris.; b: unknown; b: in 1902", "a: Paris; b: 1902", (2 / 3, 1, 4 / 5)),
        ("a: Paris; a: Paris", "a: Paris", (0.5, 1, 2 / 3)),  # a repeated one solves nothing more
        # one call solves one sub-question even if its output holds two
        ("a: Paris and Rome", "a: Paris; a: Rome", (1, 0.5, 2 / 3)),
        ("a: Paris and Rome; a: Paris and Rome", "a: Paris; a: Rome", (1, 1, 1)),
        ("a: Paris", "a: Paris; a: Paris", (1, 0.5, 2 / 3)),  # equal ones are solved one by one
        ("a: Paris; a: Paris", "a: Paris; a: Paris", (1, 1, 1)),
        ("b: Paris", "a: Paris", (0, 0, 0)),  # another tool's output
        ("", "a: Paris", (1, 0, 0)),  # without calls precision is one
        ("a: Paris", "", (0, 0, 0)),  # without sub-questions the rate is zero
        ("", "", (1, 0, 0)),
    ],
)
def test_what_solves_a_sub_question(calls, gold, metrics):
    pairs = [[item.split(": ") for item in text.split("; ") if item] for text in (calls, gold)]
    assert score(*pairs) == SolveMetrics(*metrics)


def test_calls_and_outputs_belong_together():
    with pytest.raises(ValueError):
        solve_metrics([call("a")], [], [])


@pytest.mark.parametrize(
    ("output", "gold", "contained"),
    [
        ("the PARIS office", "Paris", True),
        ("2700 km", "2,700", True),
        ("2,700 km", "2700", True),
        ("China, later Brazil", "Brazil, China", True),
        ("Brazil alone", "Brazil, China", False),
        ("August 31 1949", "August 31, 1949", True),
        ("Joaquín Rodrigo", "joaquín rodrigo", True),
        ("", "Paris", False),
        ("anything", "", True),
    ],
)
def test_what_contains_an_answer(output, gold, contained):
    assert contains_answer(output, gold) is contained


pairs = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", "1 2", "x"])))


@given(pairs, pairs)
def test_bounds_the_harmonic_mean_and_a_rate_that_no_call_lowers(calls, gold):
    metrics = score(calls, gold)
    assert all(0 <= value <= 1 for value in (metrics.precision, metrics.rate, metrics.f1))
    if calls and gold and metrics.f1:
        mean = 2 / (1 / metrics.precision + 1 / metrics.rate)
        assert metrics.f1 == pytest.approx(mean)
    assert metrics.rate >= score(calls[:-1], gold).rate


TASK = task(answer="Paris", sub_answers=sub_answers(("a", "1"), ("a", "2")))


def calling(*outputs):
    return turn(*[call("a") for _ in outputs], outputs=outputs)


def named(task_id, *turns):
    return attempt(replace(TASK, task_id=task_id), *turns)


GOOD = (calling("1", "2"), says("Paris"))
POOR = (calling("3"), turn(text="I do not know"))


@pytest.mark.parametrize(
    ("turns", "values"),
    [
        (GOOD, (1, 1, 1, 1, 1, 1, 2, 2)),
        ((calling("1", "0"),), (0, 0.5, 0.5, 0.5, 0, 0, 1, 2)),
        ((), (0, 1, 0, 0, 0, 0, 0, 0)),  # an episode that never started
    ],
)
def test_measures_of_an_attempt(turns, values):
    assert measure(attempt(TASK, *turns)) == dict(zip(MEASURES, values, strict=True))


def test_means_over_updates_and_of_each_task():
    metrics = TrajectoryMetrics()
    assert isnan(metrics.compute()["solve_f1"])
    metrics.update([named("b", *GOOD)])
    metrics.update([named("b", *POOR), named("a", *POOR)])
    means = metrics.compute()
    assert tuple(means) == MEASURES
    assert means["solve_f1"] == pytest.approx(1 / 4)  # tasks weigh the same
    assert means["calls"] == pytest.approx(5 / 4)
    values = metrics.per_task()
    assert {task: found["solve_f1"] for task, found in values.items()} == {"a": 0.0, "b": 0.5}


def labels(trajectory):
    """Every attempt should call a."""
    called = sorted({call.name for call in trajectory.calls if trajectory.task.task_id == "b"})
    return [{"gold": ["a"], "predicted": called}]


def test_scores_and_statistics_besides_the_common_ones():
    scoring = Scoring({"f1": labels, "two": lambda _: 2.0}, {"f1": MacroF1("f1")})
    metrics = TrajectoryMetrics(scoring)
    metrics.update([named("b", *GOOD), named("a", *POOR)])
    values = metrics.compute()
    assert values["f1"] == pytest.approx(2 / 3)
    assert values["two"] == 2.0 and values["solve_f1"] == 0.5
    assert list(metrics.per_task()["a"]) == list(MEASURES)


def test_several_attempts_at_a_task_give_the_chance_that_one_of_them_passes():
    metrics = TrajectoryMetrics(Scoring({"f1": labels}, {"f1": MacroF1("f1")}, attempts=2))
    metrics.update([named("b", *GOOD), named("b", *POOR)])
    metrics.update([named("a", *POOR)] * 2)
    means = metrics.compute()
    assert (means["success"], means["pass@1"], means["pass@2"]) == (0.25, 0.25, 0.5)
    assert means["f1"] == pytest.approx(2 / 3)  # a was called in two of four attempts


def _process(rank, port):
    """One of two processes; the second has no trajectories of its own."""
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        metrics = TrajectoryMetrics(Scoring({"f1": labels}, {"f1": MacroF1("f1")}))
        if rank == 0:
            metrics.update([named("b", *GOOD), named("a", *POOR)])
        assert metrics.compute()["solve_f1"] == 0.5
        assert metrics.compute()["f1"] == pytest.approx(2 / 3)  # a was called in one of two
        assert list(metrics.per_task()) == ["a", "b"]
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_the_same_means_and_tasks():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_process, args=(port,), nprocs=2)
