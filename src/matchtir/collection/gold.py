"""Gold traces out of a teacher's cleaned attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matchtir.collection.cleaning import Trace, trace_key
from matchtir.types import SubAnswer, Task


def gold_task(
    task: Task, traces: Sequence[Trace], alternatives: int, provenance: Mapping[str, Any]
) -> Task:
    """The task with the shortest trace as its gold calls, and some others as alternatives.

    Traces with the same calls count once. Of equally long ones the earlier is preferred.

    Args:
        traces: at least one.
        alternatives: how many further traces are kept, at most.
        provenance: where the traces come from, kept in the task's metadata.
    """
    distinct: dict[str, Trace] = {}
    for trace in traces:
        distinct.setdefault(trace_key(trace), trace)
    best, *others = sorted(distinct.values(), key=len)
    return replace(
        task,
        gold_calls=tuple(step.call for step in best),
        gold_turns=tuple(step.turn for step in best),
        sub_answers=tuple(SubAnswer(step.call.name, step.output) for step in best),
        alternative_gold_calls=tuple(
            tuple(step.call for step in trace) for trace in others[:alternatives]
        ),
        metadata={
            **task.metadata,
            "provenance": {**provenance, "right": len(traces), "distinct": len(distinct)},
        },
    )
