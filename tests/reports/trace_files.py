"""Runs with traces, small and nasty."""

import json
from dataclasses import replace

import numpy as np

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

GOLD = (ToolCall("find", {"place": "alpha"}), ToolCall("weigh", {"thing": "beta"}))
TASK = Task("t1", "How heavy is it?", (), GOLD, "3 kg", scenario="multi_hop")


def calling(name, output, status=ResultStatus.OK):
    call = ToolCall(name, {"place": "alpha"})
    text = f'<tool_call>{{"name": "{name}"}}</tool_call>'
    return Turn((1, 2), (-0.1, -0.2), text, (call,), (ToolResult(output, status),))


def answering(text):
    return Turn((3,), (-0.3,), text)


def malformed(text):
    call = ToolCall("", None, CallStatus.INVALID_JSON, text=text)
    return Turn((4,), (-0.1,), text, (call,), (ToolResult("not JSON", ResultStatus.REJECTED),))


def record(turns, total=1.0, iteration=1, task=TASK, similarity=0.8, **place):
    """One attempt in the format of the trace files; call k is matched to gold call k."""
    trajectory = Trajectory(task, (0,), tuple(turns), StopReason.ANSWER, policy_version=iteration)
    plan = np.eye(len(trajectory.calls), len(task.gold_calls))
    rewards = np.full(len(turns), total / max(len(turns), 1))
    of_calls = similarity * plan.sum(axis=1)
    credit = Credit(similarity * plan, plan, of_calls, rewards, 0.5, 0.5, total)
    advantages = [total - index for index in range(len(turns))]
    tokens = [TurnTokens([turn.text, "."], [0.2, -0.1]) for turn in turns]
    parts = {"return": advantages, "trajectory_advantage": advantages}
    return trace_record(trajectory, credit, advantages, parts=parts, tokens=tokens, **place)


def a_run(folder):
    """Two iterations: a group of three attempts in each, one of them with errors."""
    for iteration in (1, 10):
        attempts = [
            record([calling("find", "beta"), answering("<answer>3 kg</answer>")], 1.5),
            record([malformed("{"), calling("weigh", "", ResultStatus.TIMEOUT)], -0.5),
            record([answering("I do not know")], 0.0),
        ]
        attempts[1]["stop_reason"] = "max_turns"
        for attempt, each in enumerate(attempts):
            each |= {"policy_version": iteration, "attempt": attempt}
        write_traces(folder / "traces" / f"iteration_{iteration:06d}.jsonl", attempts)
    return folder


MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def a_hostile_run(folder):
    """Markup wherever a model, a tool or a data set can write."""
    evil = ToolCall(MARKUP, {MARKUP: MARKUP})
    task = replace(TASK, task_id=MARKUP, question=MARKUP, answer=MARKUP, scenario=MARKUP)
    turns = [Turn((1,), (0.0,), MARKUP, (evil,), (ToolResult(MARKUP),)), answering(MARKUP)]
    made = record(turns, task=replace(task, gold_calls=(evil,)))
    path = folder / "traces" / "iteration_000001.jsonl"
    write_traces(path, [made])
    assert json.loads(path.read_text())["question"] == MARKUP
    return folder
