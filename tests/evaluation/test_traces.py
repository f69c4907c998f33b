import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matchtir.credit.rewards import Credit
from matchtir.evaluation.traces import TurnTokens, trace_record, write_traces
from matchtir.types import (
    CallStatus,
    ResultStatus,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)

GOLD = (ToolCall("find", {"x": 1}), ToolCall("weigh", {"y": 2}))
TASK = Task("t1", "Wie schwer?", (), GOLD, "3 kg")
CALLS = (
    ToolCall("weigh", {"y": 2}),
    ToolCall("", None, CallStatus.INVALID_JSON, text="{"),
    ToolCall("find", {"x": 1}),
)
TRAJECTORY = Trajectory(
    TASK,
    prompt_ids=(1, 2),
    turns=(
        Turn(
            (3, 4, 5),
            (0.0, 0.0, 0.0),
            "zwei Aufrufe",
            CALLS[:2],
            (ToolResult("3 kg"), ToolResult("not JSON", ResultStatus.REJECTED)),
        ),
        Turn((6,), (0.0,), "noch einer", CALLS[2:]),  # the budget ended before its result
    ),
    stop_reason=StopReason.RESPONSE_BUDGET,
    policy_version=7,
)
CREDIT = Credit(
    similarity=np.array([[0.0, 0.9], [0.0, 0.0], [1.0, 0.1]]),
    plan=np.array([[0.1, 0.4], [0.0, 0.0], [0.5, 0.0]]),
    call_rewards=np.array([0.4, 0.0, 0.5]),
    turn_rewards=np.array([0.2, 0.5]),
    outcome=0.0,
    outcome_reward=0.0,
    total=0.7,
)


def test_each_call_names_the_gold_call_that_pays_it_most() -> None:
    record = trace_record(TRAJECTORY, CREDIT, np.array([1.0, -1.0]))
    calls = [call for turn in record["turns"] for call in turn["calls"]]
    matches = [(call["gold"], call["weight"], call["similarity"]) for call in calls]
    assert matches == [(1, 0.4, 0.9), (None, 0.0, None), (0, 0.5, 1.0)]
    assert [call["reward"] for call in calls] == [0.4, 0.0, 0.5]


def test_a_soft_plan_matches_no_call_that_is_like_no_gold_call() -> None:
    credit = replace(
        CREDIT,
        similarity=np.array([[0.0, 0.9], [0.0, 0.0], [0.5, 0.4]]),
        plan=np.array([[0.3, 0.1], [0.4, 0.3], [0.1, 0.2]]),
    )
    record = trace_record(TRAJECTORY, credit, [1.0, -1.0])
    calls = [call for turn in record["turns"] for call in turn["calls"]]
    matches = [(call["gold"], call["weight"], call["similarity"]) for call in calls]
    assert matches == [(1, 0.1, 0.9), (None, 0.0, None), (1, 0.2, 0.4)]


def test_turns_calls_and_totals() -> None:
    record = trace_record(TRAJECTORY, CREDIT, [1.0, -1.0])
    calls = [call for turn in record["turns"] for call in turn["calls"]]
    assert [call["status"] for call in calls] == ["ok", "invalid_json", "ok"]
    assert [call["result_status"] for call in calls] == ["ok", "rejected", None]
    assert [call["output"] for call in calls] == ["3 kg", "not JSON", None]
    turns = [(turn["tokens"], turn["reward"], turn["advantage"]) for turn in record["turns"]]
    assert turns == [(3, 0.2, 1.0), (1, 0.5, -1.0)]
    assert [turn["policy_version"] for turn in record["turns"]] == [0, 0]
    assert record["total"] == 0.7
    assert record["stop_reason"] == "response_budget"
    assert record["gold_calls"][1] == {"name": "weigh", "arguments": {"y": 2}}


def test_the_whole_matrices_the_parts_and_the_tokens() -> None:
    tokens = [TurnTokens(["a", "b", "c"], [0.1, 0.00001, -0.2]), TurnTokens(["d"], [0.3])]
    record = trace_record(
        TRAJECTORY,
        CREDIT,
        [1.0, -1.0],
        group=3,
        attempt=2,
        parts={"return": [0.6, 0.5]},
        tokens=tokens,
    )
    assert record["similarity"] == CREDIT.similarity.tolist()
    assert record["plan"] == CREDIT.plan.tolist()
    assert (record["group"], record["attempt"]) == (3, 2)
    assert [turn["return"] for turn in record["turns"]] == [0.6, 0.5]
    assert record["turns"][0]["pieces"] == ["a", "b", "c"]
    assert record["turns"][0]["log_ratios"] == [0.1, 0.0, -0.2]
    assert "pieces" not in trace_record(TRAJECTORY, CREDIT, [1.0, -1.0])["turns"][0]


def test_a_file_has_a_record_per_line_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "iteration_000001.jsonl"
    record = trace_record(TRAJECTORY, CREDIT, [1.0, -1.0])
    write_traces(path, [record] * 3)
    write_traces(path, [record, record])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record, record]


def test_an_episode_that_never_started() -> None:
    nothing = np.zeros((0, 2))
    credit = Credit(nothing, nothing, np.zeros(0), np.zeros(0), 0.0, 0.0, 0.0)
    trajectory = Trajectory(TASK, (1,), (), StopReason.PROMPT_TOO_LONG)
    assert trace_record(trajectory, credit, [])["turns"] == []


def test_a_task_without_gold_calls() -> None:
    task = Task("t2", "?", (), (), "x")
    trajectory = Trajectory(task, (1,), TRAJECTORY.turns, StopReason.ANSWER)
    empty = np.zeros((3, 0))
    credit = Credit(empty, empty, np.zeros(3), np.zeros(2), 0.0, 0.0, 0.0)
    record = trace_record(trajectory, credit, [0.0, 0.0])
    assert [call["gold"] for call in record["turns"][0]["calls"]] == [None, None]


@pytest.mark.parametrize("advantages", [[1.0], [1.0, 2.0, 3.0]])
def test_advantages_of_another_length_are_refused(advantages: list[float]) -> None:
    with pytest.raises(ValueError, match="t1: 2 turns, 2 turn rewards"):
        trace_record(TRAJECTORY, CREDIT, advantages)
