"""The Solve metrics: FTRL's rules one by one, their bounds, and the recorded cases."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.evaluation.solve import SolveMetrics, contains_answer, score_calls, solve_metrics
from matchtir.tasks.ftrl import FtrlTasks
from matchtir.tools.sandbox import ProcessPoolSandbox, replay_all
from matchtir.types import (
    CallStatus,
    StopReason,
    SubAnswer,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)


def score(calls, sub_answers):
    """Solve metrics of (tool, output) pairs against (tool, gold output) pairs."""
    return score_calls(
        [ToolCall(tool, {}) for tool, _ in calls],
        [output for _, output in calls],
        [SubAnswer(tool, output) for tool, output in sub_answers],
    )


def test_each_call_that_finds_its_answer_counts():
    gold = [("a", "Paris"), ("b", "1902")]
    metrics = score([("a", "It is Paris."), ("b", "unknown"), ("b", "in 1902")], gold)
    assert metrics == SolveMetrics(2 / 3, 2 / 2, 4 / 5)


def test_a_repeated_call_solves_nothing_more():
    assert score([("a", "Paris"), ("a", "Paris")], [("a", "Paris")]) == SolveMetrics(0.5, 1, 2 / 3)


def test_one_call_solves_one_sub_question_even_if_its_output_holds_two():
    gold = [("a", "Paris"), ("a", "Rome")]
    assert score([("a", "Paris and Rome")], gold).rate == 0.5
    assert score([("a", "Paris and Rome"), ("a", "Paris and Rome")], gold).rate == 1.0


def test_equal_sub_questions_are_solved_one_by_one():
    gold = [("a", "Paris"), ("a", "Paris")]
    assert score([("a", "Paris")], gold).rate == 0.5
    assert score([("a", "Paris")] * 2, gold).rate == 1.0


def test_another_tools_output_does_not_count():
    assert score([("b", "Paris")], [("a", "Paris")]) == SolveMetrics(0.0, 0.0, 0.0)


def test_without_calls_precision_is_one_and_without_sub_questions_rate_is_zero():
    assert score([], [("a", "Paris")]) == SolveMetrics(1.0, 0.0, 0.0)
    assert score([("a", "Paris")], []) == SolveMetrics(0.0, 0.0, 0.0)
    assert score([], []) == SolveMetrics(1.0, 0.0, 0.0)


def test_a_refused_call_counts_as_made_and_solves_nothing():
    refused = ToolCall("a", None, CallStatus.ARGUMENTS_NOT_OBJECT)
    metrics = score_calls([refused], ["Error: Paris"], [SubAnswer("a", "Paris")])
    assert metrics == SolveMetrics(0.0, 0.0, 0.0)


def test_calls_and_outputs_belong_together():
    with pytest.raises(ValueError):
        score_calls([ToolCall("a", {})], [], [])


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


def test_trajectories_and_pairs_score_alike():
    task = Task("t", "q", (), (), "", (SubAnswer("a", "1"), SubAnswer("b", "2")))
    calls, results = (ToolCall("a", {}), ToolCall("b", {})), (ToolResult("1"), ToolResult("0"))
    turns = tuple(
        Turn((1,), (0.0,), "", (call,), (result,))
        for call, result in zip(calls, results, strict=True)
    )
    trajectory = Trajectory(task, (1,), turns, StopReason.MAX_TURNS)
    assert solve_metrics(trajectory, task) == solve_metrics((calls, results), task)
    assert solve_metrics(trajectory, task) == SolveMetrics(0.5, 0.5, 0.5)


pairs = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", "1 2", "x"])))


@given(pairs, pairs)
def test_bounds_and_the_harmonic_mean(calls, gold):
    metrics = score(calls, gold)
    assert all(0 <= value <= 1 for value in (metrics.precision, metrics.rate, metrics.f1))
    if calls and gold and metrics.f1:
        mean = 2 / (1 / metrics.precision + 1 / metrics.rate)
        assert metrics.f1 == pytest.approx(mean)


@given(pairs, pairs, st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", "x"])))
def test_a_further_call_never_lowers_the_rate(calls, gold, further):
    assert score([*calls, further], gold).rate >= score(calls, gold).rate


@pytest.mark.skipif(
    not {"MATCHTIR_DATA", "MATCHTIR_REFERENCE"} <= set(os.environ),
    reason="MATCHTIR_DATA or MATCHTIR_REFERENCE is not set",
)
def test_the_recorded_cases_come_out_exactly():
    test_path = Path(os.environ["MATCHTIR_DATA"]) / "ftrl" / "test.parquet"
    tasks = FtrlTasks(test_path=str(test_path)).tasks("test")
    cases = json.loads((Path(os.environ["MATCHTIR_REFERENCE"]) / "ftrl_solve.json").read_text())
    assert len(cases) == 280
    if importlib.util.find_spec("pytz") is None:  # one tool needs it; two cases call that tool
        cases = [case for case in cases if case["row"] != 106]
    attempts = [
        (tasks[case["row"]], [ToolCall(call["name"], call["arguments"]) for call in case["calls"]])
        for case in cases
    ]
    sandbox = ProcessPoolSandbox(workers=2)
    outcomes = [replay.results for replay in replay_all(attempts, sandbox)]
    sandbox.shutdown()
    for case, (task, calls), results in zip(cases, attempts, outcomes, strict=True):
        metrics = solve_metrics((calls, results), task)
        recorded = case["metrics"]
        assert metrics.precision == pytest.approx(recorded["solve_precision"], abs=1e-9), case
        assert metrics.rate == pytest.approx(recorded["solve_rate"], abs=1e-9), case
        assert metrics.f1 == pytest.approx(recorded["solve_f1"], abs=1e-9), case
