"""FTRL's Solve metrics (arXiv 2508.08791): the share of sub-questions that an attempt solves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matchtir.credit.solving import contains_answer as contains_answer
from matchtir.credit.solving import solving_calls
from matchtir.types import SubAnswer, Task, ToolCall, ToolResult, Trajectory


@dataclass(frozen=True, slots=True)
class SolveMetrics:
    """With p calls, n sub-questions and q solved ones, all in [0, 1]."""

    precision: float  # q / p; 1 without calls
    rate: float  # q / n (recall); 0 without sub-questions
    f1: float  # 2q / (p + n); 0 without both


def score_calls(
    calls: Sequence[ToolCall], outputs: Sequence[str], sub_answers: Sequence[SubAnswer]
) -> SolveMetrics:
    """The Solve metrics of calls [m], their outputs [m] and the sub-answers [n].

    Which calls solve a sub-answer is `solving_calls`. Every call counts in p, also a failed one,
    as in FTRL's published code.

    Raises:
        ValueError: as many outputs as calls are needed.
    """
    solved = sum(solving_calls(calls, outputs, sub_answers))
    made, asked = len(calls), len(sub_answers)
    return SolveMetrics(
        precision=solved / made if made else 1.0,
        rate=solved / asked if asked else 0.0,
        f1=2 * solved / (made + asked) if made + asked else 0.0,
    )


def solve_metrics(
    attempt: Trajectory | tuple[Sequence[ToolCall], Sequence[ToolResult]], task: Task
) -> SolveMetrics:
    """The Solve metrics of a trajectory, or of (calls, results), at a task."""
    if isinstance(attempt, Trajectory):
        attempt = (attempt.calls, attempt.results)
    calls, results = attempt
    return score_calls(calls, [result.output for result in results], task.sub_answers)
