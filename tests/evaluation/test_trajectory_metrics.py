"""What is measured of trajectories, and how it adds up over batches and processes."""

import socket

import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn

from matchtir.evaluation.metrics import (
    MEASURES,
    Scoring,
    TrajectoryMetrics,
    final_answer,
    measure,
)
from matchtir.evaluation.statistics import MacroF1
from matchtir.types import StopReason, SubAnswer, Task, ToolCall, ToolResult, Trajectory, Turn

TASK = Task("t", "q", (), (), "Paris", (SubAnswer("a", "1"), SubAnswer("a", "2")))


def calling(*outputs):
    calls = tuple(ToolCall("a", {}) for _ in outputs)
    return Turn((1,), (0.0,), "call", calls, tuple(ToolResult(output) for output in outputs))


def saying(text):
    return Turn((1,), (0.0,), text)


def attempt(*turns, stop=StopReason.ANSWER, task=TASK):
    return Trajectory(task, (1,), turns, stop)


def named(task_id, *turns):
    return attempt(*turns, task=Task(task_id, "q", (), (), "Paris", TASK.sub_answers))


GOOD = attempt(calling("1", "2"), saying("<answer>Paris</answer>"))
POOR = attempt(calling("3"), saying("I do not know"))


def test_measures_of_a_good_attempt():
    values = {"solve_p": 1, "solve_r": 1, "solve_f1": 1, "answer_f1": 1, "success": 1}
    assert measure(GOOD) == {**values, "answered": 1, "turns": 2, "calls": 2}
    assert tuple(measure(GOOD)) == MEASURES


def test_measures_of_an_episode_that_never_started():
    values = measure(attempt(stop=StopReason.PROMPT_TOO_LONG))
    assert values == {**dict.fromkeys(MEASURES, 0.0), "solve_p": 1.0}


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        ([saying("<answer>Rome</answer>")], "Rome"),
        ([saying("Rome")], None),
        ([saying("<answer>Rome</answer>"), calling("1")], None),  # it went on to call
        ([], None),
    ],
)
def test_only_the_final_turn_answers(turns, answer):
    assert final_answer(attempt(*turns)) == answer


def test_means_over_updates():
    metrics = TrajectoryMetrics()
    metrics.update([GOOD], [2.0])
    metrics.update([POOR, POOR], [0.0, 1.0])
    means = metrics.compute()
    assert set(means) == {*MEASURES, "reward"}
    assert means["solve_f1"] == pytest.approx(1 / 3)
    assert means["calls"] == pytest.approx(4 / 3)
    assert means["reward"] == pytest.approx(1.0)
    metrics.reset()
    metrics.update([POOR], [5.0])
    assert metrics.compute()["reward"] == 5.0
    assert list(metrics.per_task()) == ["t"]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_trajectories_means_are_nan():
    assert torch.isnan(TrajectoryMetrics(reward=False).compute()["solve_f1"])


def test_values_of_each_task_are_means_over_its_trajectories():
    metrics = TrajectoryMetrics(reward=False)
    good = named("b", *GOOD.turns)
    metrics.update([good, named("b", *POOR.turns), named("a", *POOR.turns)])
    values = metrics.per_task()
    assert list(values) == ["a", "b"]
    assert values["b"]["solve_f1"] == 0.5
    assert values["a"]["solve_f1"] == 0.0


@pytest.mark.parametrize(
    ("reward", "rewards", "message"),
    [
        (True, None, "missing"),
        (False, [1.0, 1.0], "not wanted"),
        (True, [1.0], "1 rewards for 2 trajectories"),
    ],
)
def test_rewards_must_fit(reward, rewards, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryMetrics(reward).update([GOOD, POOR], rewards)


def labels(trajectory):
    """Every attempt should call a."""
    called = sorted({call.name for call in trajectory.calls if trajectory.task.task_id == "b"})
    return [{"gold": ["a"], "predicted": called}]


def test_scores_and_statistics_besides_the_common_ones():
    scoring = Scoring({"f1": labels, "two": lambda _: 2.0}, {"f1": MacroF1("f1")})
    metrics = TrajectoryMetrics(reward=False, scoring=scoring)
    metrics.update([named("b", *GOOD.turns), named("a", *POOR.turns)])
    values = metrics.compute()
    assert values["f1"] == pytest.approx(2 / 3)
    assert values["two"] == 2.0 and values["solve_f1"] == 0.5
    assert list(metrics.per_task()["a"]) == list(MEASURES)


def _process(rank, port):
    """One of two processes; the second has no trajectories of its own."""
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        metrics = TrajectoryMetrics(scoring=Scoring({"f1": labels}, {"f1": MacroF1("f1")}))
        if rank == 0:
            metrics.update([named("b", *GOOD.turns), named("a", *POOR.turns)], [1.0, 2.0])
        assert metrics.compute()["reward"] == 1.5
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
