"""What an evaluation runs: a benchmark, the one that plays task sets, and the log of attempts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import get_method

from matchtir.credit.rewards import Reward
from matchtir.evaluation.metrics import Scoring
from matchtir.evaluation.policies import EvaluatedPolicy, random_turn_texts
from matchtir.evaluation.statistics import Statistic
from matchtir.evaluation.traces import AttemptLog, Record, trace_record
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits, derive_seed
from matchtir.rollout.runner import EpisodeRunner
from matchtir.tasks.gold import gold_turn_texts
from matchtir.tasks.rows import TaskSet
from matchtir.tasks.splits import spread
from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, Trajectory
from matchtir.utils.options import UserError, check_option

log = logging.getLogger(__name__)

Group = Callable[[Task], str]  # "": the task is in no group of this kind


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how a benchmark is run."""

    folder: Path  # of the evaluation; attempts go to traces/<benchmark>.jsonl
    sandbox: Sandbox
    reward: Reward
    seed: int = 0
    max_concurrent: int = 64

    def attempts(self, benchmark: str) -> AttemptLog:
        """The attempts made so far."""
        return AttemptLog(self.folder / "traces" / f"{benchmark}.jsonl")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a benchmark."""

    records: Sequence[Record]  # one per task, in the benchmark's order
    seconds: float  # of this process
    notes: Sequence[str] = ()  # what was not run, and why


class Benchmark(Protocol):
    """Tasks, how they are attempted, and what is said about the attempts."""

    name: str
    statistics: Mapping[str, Statistic]
    columns: Mapping[str, str]  # of the table over all benchmarks: heading -> statistic
    details: Sequence[str]  # statistics in the benchmark's own table

    def run(self, policy: EvaluatedPolicy, setting: Setting) -> Outcome:
        """Attempt every task that has no record in the setting's folder yet."""
        ...


class TaskBenchmark:
    """Attempts the tasks of a task set in episodes.

    Functions are given by their dotted names.

    Args:
        name: what the benchmark is called in tables and files.
        tasks: the task set.
        columns: of the table over all benchmarks.
        split: of the task set; None: test, or validation where the benchmark validates.
        limits: where episodes end.
        sampling: how tokens are drawn; greedy by default.
        scores: measures of a trajectory besides the common ones.
        statistics: for measures that are not summed up by their mean, and for others still.
        groups: kinds of groups of tasks besides the scenario, each a function of a task.
        details: statistics in the benchmark's own table; default: all.
        max_tasks: attempt only so many, spread evenly over scenarios and split; None: all.

    Raises:
        ValueError: `max_tasks` below 1, or a column or detail that is no statistic.
    """

    def __init__(
        self,
        name: str,
        tasks: TaskSet,
        columns: Mapping[str, str],
        split: str | None = None,
        limits: EpisodeLimits | None = None,
        sampling: SamplingParams | None = None,
        scores: Mapping[str, str] | None = None,
        statistics: Mapping[str, Statistic] | None = None,
        groups: Mapping[str, str] | None = None,
        details: Sequence[str] | None = None,
        max_tasks: int | None = None,
    ) -> None:
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
        self.name = name
        self.task_set = tasks
        self.split = split
        self.limits = limits or EpisodeLimits()
        self.sampling = sampling or SamplingParams(temperature=0.0)
        self.scoring = Scoring(_functions(scores), dict(statistics or {}))
        self.statistics = self.scoring.all_statistics("reward")
        self.columns = dict(columns)
        self.groups: Mapping[str, Group] = _functions(groups)
        self.details = list(self.statistics if details is None else details)
        self.max_tasks = max_tasks
        for statistic in [*self.columns.values(), *self.details]:
            check_option(f"statistic of benchmark {name}", statistic, list(self.statistics))

    def select(self, split: str = "test") -> list[Task]:
        """The tasks to attempt: of this split, unless the benchmark has its own.

        Raises:
            UserError: there are none.
        """
        split = self.split or split
        tasks = self.task_set.tasks(split)
        if not tasks:
            raise UserError(f"benchmark {self.name}: the split {split!r} has no tasks")
        return spread(tasks, self.max_tasks, attrgetter("scenario"))

    def run(self, policy: EvaluatedPolicy, setting: Setting) -> Outcome:
        """One attempt at each task, as many at once as the setting allows."""
        tasks = self.select()
        attempts = setting.attempts(self.name)
        missing = [index for index, task in enumerate(tasks) if task.task_id not in attempts.done]
        log.info("%s: %d tasks, %d of them to attempt", self.name, len(tasks), len(missing))
        started = time.perf_counter()
        if missing:
            asyncio.run(self._play([(n, tasks[n]) for n in missing], policy, setting, attempts))
        records = attempts.finish([task.task_id for task in tasks])
        return Outcome(records, time.perf_counter() - started)

    def scripts(self, tasks: Sequence[Task], name: str, seed: int) -> Mapping[str, Sequence[str]]:
        """The turns of a scripted policy at each task.

        Raises:
            UserError: gold solutions of tasks that have none.
        """
        if name == "random":
            return {task.task_id: random_turn_texts(task, seed) for task in tasks}
        can_call = [task for task in tasks if task.tools]
        if can_call and all(task.metadata.get("gold_unknown") for task in can_call):
            raise UserError(
                f"policy=gold: the tasks of benchmark {self.name} have no gold calls (where they "
                f"are not published, benchmark.{self.name}.tasks.gold_traces_path names them)"
            )
        return {task.task_id: gold_turn_texts(task) for task in tasks}

    async def _play(
        self,
        numbered: Sequence[tuple[int, Task]],
        policy: EvaluatedPolicy,
        setting: Setting,
        attempts: AttemptLog,
    ) -> None:
        tasks = [task for _, task in numbered]
        speaker = policy.speaker(lambda name, seed: self.scripts(tasks, name, seed))
        runner = EpisodeRunner(speaker, setting.sandbox, policy.limits(self.limits))
        places = asyncio.Semaphore(setting.max_concurrent)

        async def attempt(number: int, task: Task) -> None:
            async with places:
                # A seed of the task's own: what was attempted before must not show.
                seed = derive_seed(setting.seed, task.task_id)
                ((trajectory,),) = await runner.run_async([task], 1, self.sampling, seed)
            attempts.add(self._record(number, trajectory, setting.reward))

        await asyncio.gather(*[attempt(number, task) for number, task in numbered])

    def _record(self, number: int, trajectory: Trajectory, reward: Reward) -> Record:
        task = trajectory.task
        groups = {"scenario": task.scenario, **{k: group(task) for k, group in self.groups.items()}}
        return attempt_record(number, trajectory, reward, groups, self.scoring.measure(trajectory))


def attempt_record(
    number: int,
    trajectory: Trajectory,
    reward: Reward,
    groups: Mapping[str, str],
    values: Mapping[str, Any],
) -> Record:
    """The trace of an attempt, its advantages at zero, with its groups, measures and reward."""
    (credit,) = reward([trajectory])
    return {
        **trace_record(trajectory, credit, [0.0] * len(trajectory.turns), group=number),
        "groups": {kind: group for kind, group in groups.items() if group},
        "values": {**values, "reward": credit.total},
    }


def _functions(names: Mapping[str, str] | None) -> dict[str, Callable[..., Any]]:
    """The functions of dotted names."""
    return {key: get_method(name) for key, name in (names or {}).items()}
