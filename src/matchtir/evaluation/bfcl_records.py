"""Conversations of BFCL: what scripted policies write, and attempts in the form of all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from matchtir.credit.rewards import Reward
from matchtir.evaluation.attempts import Record
from matchtir.evaluation.policies import random_turn_texts
from matchtir.reports.trace import trace_record
from matchtir.tasks.bfcl import BfclEntry, gold_turn_texts
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


def scripted_texts(entry: BfclEntry, name: str, seed: int) -> tuple[str, ...]:
    """The messages of a scripted policy: for random ones, some calls in each turn of the user."""
    if name == "gold":
        return gold_turn_texts(entry)
    turns = [
        random_turn_texts(Task(f"{entry.entry_id}/{number}", text, entry.tools, (), ""), seed)
        for number, text in enumerate(entry.user_turns)
    ]
    return tuple(text for turn in turns for text in turn)


def attempt_record(
    number: int, entry: BfclEntry, line: Mapping[str, Any], reward: Reward
) -> Record:
    """An attempt in the form of all others; the reward compares its calls with the gold calls."""
    gold = tuple(call for turn in entry.gold_calls or () for call in turn)
    task = Task(
        task_id=f"bfcl/{entry.entry_id}",
        question="\n\n".join(entry.user_turns),
        tools=entry.tools,
        gold_calls=gold,
        answer=" | ".join(entry.gold_answers),
        scenario=entry.category,
    )
    turns = tuple(_turn(step) for step in line["steps"])
    trajectory = Trajectory(task, (), turns, StopReason.ANSWER)
    (credit,) = reward([trajectory])
    correct = float(line["valid"])
    return {
        **trace_record(trajectory, credit, [0.0] * len(turns), group=number),
        "error": line["error"],
        "groups": {"scenario": entry.category},
        "values": {
            "correct": correct,
            entry.category: correct,
            "turns": float(len(turns)),
            "calls": float(len(trajectory.calls)),
            "reward": credit.total,
        },
    }


def _turn(step: Mapping[str, Any]) -> Turn:
    calls = tuple(_call(name, arguments) for name, arguments in step["calls"])
    failed = "Error during execution:"
    results = tuple(
        ToolResult(text, ResultStatus.EXCEPTION if text.startswith(failed) else ResultStatus.OK)
        for text in step["outputs"]
    )
    return Turn((), (), step["text"], calls, results)


def _call(name: str, arguments: str) -> ToolCall:
    """A call as the server gave it; other servers than ours may give arguments that are no JSON."""
    try:
        return ToolCall(name, json.loads(arguments))
    except ValueError:
        return ToolCall(name, None, CallStatus.INVALID_JSON, arguments)
