"""What happened in one rollout, call by call, as a plain record for JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matchtir.credit.rewards import Credit
from matchtir.types import Trajectory, Turn


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
) -> dict[str, Any]:
    """One rollout with what each call and each turn earned.

    A call's `gold` is the index of the gold call that pays it most, by weight in the plan times
    similarity; null where none pays, as at the similarity 0 to which a soft plan gives weight too.
    `weight` and `similarity` are that pair's.

    Args:
        trajectory: of T turns.
        credit: its rewards.
        advantages: one per turn, [T].
        group: number of the task within the iteration.
        attempt: number of the trajectory within its group.
        parts: what the advantages are made of, by name, each [T].
        tokens: of each turn, [T]; left out where only the text is known.

    Raises:
        ValueError: the number of turns or calls differs between the three.
    """
    turns, calls = len(trajectory.turns), len(trajectory.calls)
    if len(credit.turn_rewards) != turns or len(advantages) != turns:
        raise ValueError(
            f"{trajectory.task.task_id}: {turns} turns, {len(credit.turn_rewards)} turn rewards, "
            f"{len(advantages)} advantages"
        )
    if len(credit.plan) != calls:
        raise ValueError(f"{trajectory.task.task_id}: {calls} calls, {len(credit.plan)} plan rows")
    records: list[dict[str, Any]] = []
    first = 0
    for index, turn in enumerate(trajectory.turns):
        records.append(
            {
                "text": turn.text,
                "tokens": len(turn.token_ids),
                "policy_version": turn.policy_version,
                "reward": float(credit.turn_rewards[index]),
                "advantage": float(advantages[index]),
                **{name: float(values[index]) for name, values in (parts or {}).items()},
                "calls": _call_records(turn, credit, first),
            }
        )
        if tokens:
            ratios = [round(ratio, 4) for ratio in tokens[index].log_ratios]
            records[-1] |= {"pieces": list(tokens[index].pieces), "log_ratios": ratios}
        first += len(turn.calls)
    gold_calls = trajectory.task.gold_traces[credit.gold_trace]
    return {
        "task": trajectory.task.task_id,
        "scenario": trajectory.task.scenario,
        "group": group,
        "attempt": attempt,
        "question": trajectory.task.question,
        "tools": [tool.name for tool in trajectory.task.tools],
        "gold_calls": [{"name": call.name, "arguments": call.arguments} for call in gold_calls],
        "gold_answer": trajectory.task.answer,
        "similarity": np.round(credit.similarity, 4).tolist(),
        "plan": np.round(credit.plan, 6).tolist(),
        "turns": records,
        "stop_reason": str(trajectory.stop_reason),
        "outcome": credit.outcome,
        "total": credit.total,
        "policy_version": trajectory.policy_version,
        "seconds": trajectory.seconds,
    }


def write_traces(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one record per line, in place of any earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    new = path.with_name(f"{path.name}.new")  # whoever looks while it is written sees no half
    new.write_text("".join(lines), encoding="utf-8")
    os.replace(new, path)


def _call_records(turn: Turn, credit: Credit, first: int) -> list[dict[str, Any]]:
    """The calls of one turn; `first` is the index of its first call in the trajectory."""
    records = []
    for offset, call in enumerate(turn.calls):
        row = first + offset
        paid = credit.plan[row] * credit.similarity[row]
        gold = int(paid.argmax()) if (paid > 0).any() else None
        result = turn.results[offset] if offset < len(turn.results) else None
        records.append(
            {
                "name": call.name,
                "arguments": call.arguments,
                "status": str(call.status),
                "result_status": None if result is None else str(result.status),
                "output": None if result is None else result.output,
                "gold": gold,
                "weight": 0.0 if gold is None else float(credit.plan[row, gold]),
                "similarity": None if gold is None else float(credit.similarity[row, gold]),
                "reward": float(credit.call_rewards[row]),
            }
        )
    return records
