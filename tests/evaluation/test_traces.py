"""The record of an attempt; the file of records is that of an interrupted evaluation too."""

from dataclasses import replace

import numpy as np
import pytest

from matchtir.credit.rewards import Credit
from matchtir.evaluation.traces import TurnTokens, trace_record
from matchtir.types import ResultStatus, StopReason, ToolCall, ToolResult, Trajectory, Turn
from tests.reports.trace_files import GOLD, TASK, answering, calling, malformed

TURNS = (
    replace(calling("weigh", "3 kg"), policy_version=2),
    malformed("{"),
    Turn((6,), (0.0,), "more", (GOLD[0],)),  # the budget ended before its result
)
TRAJECTORY = Trajectory(TASK, (1, 2), TURNS, StopReason.RESPONSE_BUDGET, policy_version=7)
CREDIT = Credit(
    similarity=np.array([[0.0, 0.9], [0.0, 0.0], [1.0, 0.1]]),
    plan=np.array([[0.1, 0.4], [0.0, 0.0], [0.5, 0.0]]),
    call_rewards=np.array([0.4, 0.0, 0.5]),
    turn_rewards=np.array([0.4, 0.0, 0.5]),
    outcome=0.0,
    outcome_reward=0.0,
    total=0.9,
)
NO_ADVANTAGES = [0.0] * 3


def calls_of(record):
    return [call for turn in record["turns"] for call in turn["calls"]]


@pytest.mark.parametrize(
    ("similarity", "plan", "matches"),
    [
        (CREDIT.similarity, CREDIT.plan, [(1, 0.4, 0.9), (None, 0.0, None), (0, 0.5, 1.0)]),
        (  # a soft plan gives weight to what is like nothing, too
            [[0.0, 0.9], [0.0, 0.0], [0.5, 0.4]],
            [[0.3, 0.1], [0.4, 0.3], [0.1, 0.2]],
            [(1, 0.1, 0.9), (None, 0.0, None), (1, 0.2, 0.4)],
        ),
    ],
)
def test_each_call_names_the_gold_call_that_pays_it_most(similarity, plan, matches):
    credit = replace(CREDIT, similarity=np.array(similarity), plan=np.array(plan))
    calls = calls_of(trace_record(TRAJECTORY, credit, NO_ADVANTAGES))
    assert [(call["gold"], call["weight"], call["similarity"]) for call in calls] == matches


def test_turns_calls_and_totals():
    record = trace_record(TRAJECTORY, CREDIT, [1.0, -1.0, 0.0])
    calls = calls_of(record)
    assert [call["status"] for call in calls] == ["ok", "invalid_json", "ok"]
    assert [call["result_status"] for call in calls] == ["ok", "rejected", None]
    assert [call["output"] for call in calls] == ["3 kg", "not JSON", None]
    assert [call["reward"] for call in calls] == [0.4, 0.0, 0.5]
    turns = [(turn["tokens"], turn["reward"], turn["advantage"]) for turn in record["turns"]]
    assert turns == [(2, 0.4, 1.0), (1, 0.0, -1.0), (1, 0.5, 0.0)]
    assert [turn["policy_version"] for turn in record["turns"]] == [2, 0, 0]
    assert (record["total"], record["stop_reason"]) == (0.9, "response_budget")
    assert record["gold_calls"][1] == {"name": "weigh", "arguments": {"thing": "beta"}}
    assert record["answer"] is None


def test_a_call_whose_tool_answers_with_an_error_has_not_succeeded():
    results = {
        ToolResult("3 kg", ResultStatus.OK): True,
        ToolResult('{"error": "no such place"}', ResultStatus.OK): False,
        ToolResult("Error: it raised", ResultStatus.EXCEPTION): False,
    }
    turn = Turn((1,), (0.0,), "", (ToolCall("a", {}),) * 3, tuple(results))
    trajectory = Trajectory(TASK, (), (turn, answering("<answer>3</answer>")), StopReason.ANSWER)
    record = trace_record(trajectory, replace(CREDIT, turn_rewards=np.ones(2)), [0.0, 0.0])
    assert [call["succeeded"] for call in calls_of(record)] == [*results.values()]
    assert record["answer"] == "3"


def test_the_whole_matrices_the_parts_and_the_tokens():
    tokens = [TurnTokens(["a", "b"], [0.1, 0.00001]), *[TurnTokens(["d"], [0.3])] * 2]
    parts = {"return": [0.6, 0.5, 0.5]}
    record = trace_record(
        TRAJECTORY, CREDIT, NO_ADVANTAGES, group=3, attempt=2, parts=parts, tokens=tokens
    )
    assert record["similarity"] == CREDIT.similarity.tolist()
    assert record["plan"] == CREDIT.plan.tolist()
    assert (record["group"], record["attempt"]) == (3, 2)
    assert [turn["return"] for turn in record["turns"]] == parts["return"]
    assert record["turns"][0]["pieces"] == ["a", "b"]
    assert record["turns"][0]["log_ratios"] == [0.1, 0.0]
    assert "pieces" not in trace_record(TRAJECTORY, CREDIT, NO_ADVANTAGES)["turns"][0]


def test_an_episode_without_turns_and_a_task_without_gold_calls():
    nothing = np.zeros((0, 2))
    credit = Credit(nothing, nothing, np.zeros(0), np.zeros(0), 0.0, 0.0, 0.0)
    assert trace_record(replace(TRAJECTORY, turns=()), credit, [])["turns"] == []
    bare = replace(TRAJECTORY, task=replace(TASK, gold_calls=()))
    credit = replace(CREDIT, similarity=np.zeros((3, 0)), plan=np.zeros((3, 0)))
    calls = calls_of(trace_record(bare, credit, NO_ADVANTAGES))
    assert [call["gold"] for call in calls] == [None] * 3


def test_advantages_of_another_length_are_refused():
    with pytest.raises(ValueError, match="t1: 3 turns, 3 turn rewards, 1 advantages"):
        trace_record(TRAJECTORY, CREDIT, [1.0])
