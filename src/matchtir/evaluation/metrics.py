"""What is measured of trajectories, and how it is summed up over any number of processes.

Among it are FTRL's Solve metrics (arXiv 2508.08791): the share of sub-questions that are solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from matchtir.credit.outcome import answer_f1, final_answer, solving_calls, succeeds
from matchtir.evaluation.statistics import Mean, Statistic, Values, by_task, pass_names, value
from matchtir.tools.sandbox import executed, succeeded
from matchtir.types import SubAnswer, ToolCall, Trajectory

MEASURES = (
    *("success", "solve_p", "solve_r", "solve_f1", "answer_f1", "answered"),
    *("turns", "calls"),
)

# A number, None where the measure does not apply, or what a statistic of the same name asks for.
Score = Callable[[Trajectory], Any]


@dataclass(frozen=True, slots=True)
class SolveMetrics:
    """With p calls, n sub-questions and q solved ones, all in [0, 1]."""

    precision: float  # q / p; 1 without calls
    rate: float  # q / n (recall); 0 without sub-questions
    f1: float  # 2q / (p + n); 0 without both


def solve_metrics(
    calls: Sequence[ToolCall],
    outputs: Sequence[str],
    sub_answers: Sequence[SubAnswer],
    ended_well: Sequence[bool] | None = None,
) -> SolveMetrics:
    """The Solve metrics of calls [p], their outputs [p] and the sub-answers [n].

    Which calls solve a sub-answer is `solving_calls`, which also says what `ended_well` is. Every
    call counts in p, also a failed one, as in FTRL's published code.

    Raises:
        ValueError: as many outputs as calls are needed.
    """
    solved = sum(solving_calls(calls, outputs, sub_answers, ended_well))
    made, asked = len(calls), len(sub_answers)
    return SolveMetrics(
        precision=solved / made if made else 1.0,
        rate=solved / asked if asked else 0.0,
        f1=2 * solved / (made + asked) if made + asked else 0.0,
    )


def measure(trajectory: Trajectory) -> dict[str, float]:
    """The value of each of `MEASURES` for one trajectory."""
    task = trajectory.task
    outputs = [result.output for result in trajectory.results]
    ended_well = [succeeded(result) for result in trajectory.results]
    solve = solve_metrics(trajectory.calls, outputs, task.sub_answers, ended_well)
    answer = final_answer(trajectory)
    return {
        "success": float(succeeds(trajectory)),
        "solve_p": solve.precision,
        "solve_r": solve.rate,
        "solve_f1": solve.f1,
        "answer_f1": answer_f1(answer, task.answer),
        "answered": float(answer is not None),
        "turns": float(len(trajectory.turns)),
        "calls": float(len(trajectory.calls)),
    }


def call_errors(trajectory: Trajectory) -> float:
    """Calls that did not run to their end: refused by the parser, bad arguments, exceptions."""
    return float(sum(not executed(result) for result in trajectory.results))


@dataclass(frozen=True)
class Scoring:
    """What a benchmark measures besides `MEASURES`, and how it is summed up over tasks.

    Args:
        scores: further measures of a trajectory, by name.
        statistics: by name, in place of the mean over tasks, which every other measure gets.
        passed: the measure, 0 or 1 in an attempt, that pass@k is about.
        attempts: at each task; several have pass@1, pass@2, ... beside the means.
    """

    scores: Mapping[str, Score] = field(default_factory=dict)
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    passed: str = "success"
    attempts: int = 1

    def measure(self, trajectory: Trajectory) -> dict[str, Any]:
        """`MEASURES` and the scores of one trajectory."""
        return {**measure(trajectory), **{name: s(trajectory) for name, s in self.scores.items()}}

    def all_statistics(self, *further: str) -> dict[str, Statistic]:
        """One for each measure, also those that others take, then those that sum up several."""
        names = [*MEASURES, *self.scores, *further, *pass_names(self.attempts)]
        return {**{name: Mean(name) for name in names}, **self.statistics}


class TrajectoryMetrics:
    """Statistics of tasks by their trajectories, over all processes.

    The values of single trajectories are kept and gathered as they are, since some statistics are
    no means and a paired bootstrap needs them; so processes may have unequal numbers of them.

    Args:
        scoring: measures and statistics besides the means of `MEASURES`.
    """

    def __init__(self, scoring: Scoring | None = None) -> None:
        self.scoring = scoring or Scoring()
        self._values: list[tuple[str, Values]] = []

    def update(self, trajectories: Sequence[Trajectory]) -> None:
        """Add trajectories."""
        self._values += [(each.task.task_id, self.scoring.measure(each)) for each in trajectories]

    def compute(self) -> dict[str, float]:
        """Each statistic; NaN before the first trajectory. Every process must call this."""
        values = list(self._by_task().values())
        statistics = self.scoring.all_statistics()
        return {name: value(statistic, values) for name, statistic in statistics.items()}

    def per_task(self) -> Mapping[str, Mapping[str, float]]:
        """Mean of each measure (no other score) over each task's trajectories, ids sorted.

        Every process must call this where there are several.
        """
        return {
            task_id: {name: values[name] for name in MEASURES}
            for task_id, values in sorted(self._by_task().items())
        }

    def _by_task(self) -> dict[str, Values]:
        """The values of each task, by the trajectories of all processes."""
        from matchtir.utils.processes import all_gather  # slow; checks of a config do without it

        return by_task(chain.from_iterable(all_gather(self._values)), self.scoring.passed)
