"""What happened in an attempt, call by call, as a plain record for JSON; files of such records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from matchtir.credit.outcome import final_answer
from matchtir.credit.rewards import Credit
from matchtir.tasks.rows import read_jsonl
from matchtir.tools.sandbox import succeeded
from matchtir.types import ToolCall, ToolResult, Trajectory
from matchtir.utils.run_folder import replace_text

Record = Mapping[str, Any]  # a line of a file: "task" says of what


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """The sampled tokens of one turn."""

    pieces: Sequence[str]  # text of each
    log_ratios: Sequence[float]  # log-probability after the update minus that at sampling


def trace_record(
    trajectory: Trajectory,
    credit: Credit,
    advantages: Sequence[float],
    *,
    group: int = 0,
    attempt: int = 0,
    parts: Mapping[str, Sequence[float]] | None = None,
    tokens: Sequence[TurnTokens] | None = None,
    call_advantages: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One rollout with what each call and each turn earned.

    Args:
        trajectory, credit: of T turns and m calls, and its rewards.
        advantages: one per turn, [T].
        group, attempt: of the task within the iteration, and of the trajectory within its group.
        parts: what the advantages are made of, by name, each [T].
        tokens: of each turn, [T]; left out where only the text is known.
        call_advantages: one per call, [m], where calls have their own.

    Raises:
        ValueError: the number of turns or calls differs between the three.
    """
    task = trajectory.task
    turns = _turn_records(trajectory, credit, advantages, parts or {}, tokens)
    calls = [call for turn in turns for call in turn["calls"]]
    for call, advantage in zip(calls, call_advantages or (), strict=call_advantages is not None):
        call["advantage"] = float(advantage)
    gold_calls = task.gold_traces[credit.gold_index]
    return {
        "task": task.task_id,
        "scenario": task.scenario,
        "group": group,
        "attempt": attempt,
        "question": task.question,
        "tools": [tool.name for tool in task.tools],
        "gold_calls": [{"name": call.name, "arguments": call.arguments} for call in gold_calls],
        "gold_answer": task.answer,
        "answer": final_answer(trajectory),
        "similarity": np.round(credit.similarity, 4).tolist(),
        "plan": np.round(credit.plan, 6).tolist(),
        "turns": turns,
        "stop_reason": str(trajectory.stop_reason),
        "outcome": credit.outcome,
        "outcome_reward": credit.outcome_reward,
        "total": credit.total,
        "policy_version": trajectory.policy_version,
        "seconds": trajectory.seconds,
    }


def _turn_records(
    trajectory: Trajectory,
    credit: Credit,
    advantages: Sequence[float],
    parts: Mapping[str, Sequence[float]],
    tokens: Sequence[TurnTokens] | None,
) -> list[dict[str, Any]]:
    name, turns = trajectory.task.task_id, len(trajectory.turns)
    if not len(credit.turn_rewards) == len(advantages) == turns:
        rewards, given = len(credit.turn_rewards), len(advantages)
        raise ValueError(f"{name}: {turns} turns, {rewards} turn rewards, {given} advantages")
    if len(credit.plan) != len(trajectory.calls):
        raise ValueError(f"{name}: {len(trajectory.calls)} calls, {len(credit.plan)} plan rows")
    of_calls = zip(credit.plan, credit.similarity, credit.call_rewards, strict=True)
    records = []
    for index, turn in enumerate(trajectory.turns):
        record = {
            "text": turn.text,
            "tokens": len(turn.token_ids),
            "policy_version": turn.policy_version,
            "reward": float(credit.turn_rewards[index]),
            "advantage": float(advantages[index]),
            **{part: float(values[index]) for part, values in parts.items()},
            "calls": [
                _call_record(call, result, *next(of_calls))
                for call, result in zip_longest(turn.calls, turn.results)
            ],
        }
        if turn.reply:
            record["reply"] = turn.reply
        if tokens:
            record["pieces"] = list(tokens[index].pieces)
            record["log_ratios"] = [round(ratio, 4) for ratio in tokens[index].log_ratios]
        if turn.spans:
            record["spans"] = [[str(span.kind), span.start, span.end] for span in turn.spans]
        records.append(record)
    return records


def _call_record(
    call: ToolCall,
    result: ToolResult | None,
    plan: np.ndarray,
    similarity: np.ndarray,
    reward: np.floating[Any],
) -> dict[str, Any]:
    """A call with its rows of plan and similarity.

    Its `gold` is the index of the gold call that pays it most, by weight in the plan times
    similarity; null where none pays, as at the similarity 0 to which a soft plan gives weight too.
    `weight` and `similarity` are that pair's. `succeeded`: it ran to its end, and its tool did not
    answer with an error.
    """
    paid = plan * similarity
    gold = int(paid.argmax()) if (paid > 0).any() else None
    return {
        "name": call.name,
        "arguments": call.arguments,
        "status": str(call.status),
        "result_status": None if result is None else str(result.status),
        "succeeded": result is not None and succeeded(result),
        "output": None if result is None else result.output,
        "gold": gold,
        "weight": 0.0 if gold is None else float(plan[gold]),
        "similarity": None if gold is None else float(similarity[gold]),
        "reward": float(reward),
    }


# -- files -----------------------------------------------------------------------------------------


def write_traces(path: Path, records: Sequence[Record]) -> None:
    """Write one record per line, in place of any earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    replace_text(path, "".join(lines))


def attempt_name(task_id: str, attempt: int) -> str:
    """The first attempt at a task is called as the task, others with their number behind it."""
    return f"{task_id}#{attempt}" if attempt else task_id


class AttemptLog:
    """The finished attempts at some tasks, by `attempt_name`: a JSON line each on file.

    An interrupted program finds here what it has done already. A last line that was cut short is
    dropped: its attempt is made again.

    Raises:
        ValueError: a line that is no attempt; the message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            drop_unfinished_line(path)
            self.done = {_name(record): record for record in read_jsonl(path)}

    def add(self, record: Record) -> None:
        """Keep a finished attempt."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.done[_name(record)] = record

    def finish(self, names: Sequence[str]) -> list[Record]:
        """The attempts of these names, in their order, which the file takes too."""
        records = [self.done[name] for name in names]
        write_traces(self.path, records)
        return records


def _name(record: Record) -> str:
    return attempt_name(record["task"], record.get("attempt", 0))


def drop_unfinished_line(path: Path) -> None:
    """Cut a file of lines after its last complete one."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
