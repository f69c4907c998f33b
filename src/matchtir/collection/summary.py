"""What a collection of gold traces came to: yield and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from matchtir.collection.attempts import Attempt
from matchtir.types import Task


def summarise(
    attempts: Mapping[str, Sequence[Attempt]],
    gold: Sequence[Task],
    usage: Mapping[str, int],
    price: Mapping[str, float],
) -> dict[str, Any]:
    """Counts of tasks, attempts, calls and tokens; all of the folder, tokens of this run alone.

    Args:
        attempts: at each task, by its id.
        gold: the tasks that got gold calls.
        usage: requests and tokens of this run.
        price: of a million tokens, "input" and "output".
    """
    made = [attempt for group in attempts.values() for attempt in group]
    kept = [attempt for attempt in made if attempt.trace is not None]
    tokens = {"input": usage.get("prompt_tokens", 0), "output": usage.get("completion_tokens", 0)}
    solved = {task.task_id for task in gold}
    return {
        "tasks": len(attempts),
        "tasks with gold calls": len(solved),
        "attempts": len(made),
        "right attempts": sum(attempt.right for attempt in made),
        "right attempts that replay": len(kept),
        "distinct traces": sum(1 + len(task.alternative_gold_calls) for task in gold),
        "calls in right attempts": sum(attempt.calls for attempt in kept),
        "calls kept of them": sum(len(attempt.trace or ()) for attempt in kept),
        "requests": usage.get("requests", 0),
        "requests made again": usage.get("retries", 0),
        "input tokens": tokens["input"],
        "output tokens": tokens["output"],
        "cost": round(sum(tokens[kind] * price[kind] for kind in tokens) / 1e6, 6),
        "unsolved": [name for name in attempts if name not in solved],
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The counts, one per row."""
    table = Table("collected", "", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in summary.items():
        if not isinstance(value, list):
            table.add_row(name, f"{value:,}")
    return table
