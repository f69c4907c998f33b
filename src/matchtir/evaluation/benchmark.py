"""What an evaluation runs: a benchmark, the one that plays task sets, and the log of attempts."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.utils import get_method

from matchtir.credit.rewards import Reward
from matchtir.evaluation.metrics import Scoring
from matchtir.evaluation.policies import EvaluatedPolicy, LocalPolicy, random_turn_texts
from matchtir.evaluation.statistics import Statistic, pass_names, shown
from matchtir.evaluation.traces import AttemptLog, Record, attempt_name, trace_record
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits, User, derive_seed
from matchtir.rollout.runner import EpisodeRunner
from matchtir.tasks.gold import gold_turn_texts
from matchtir.tasks.rows import TaskSet
from matchtir.tasks.splits import evenly_spaced
from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, Trajectory
from matchtir.utils.options import UserError, check_at_least, check_option

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how a benchmark is run."""

    folder: Path  # of the evaluation; attempts go to traces/<benchmark>.jsonl
    sandbox: Sandbox
    reward: Reward
    seed: int = 0
    max_concurrent: int = 64
    user: User | None = None  # who answers turns without calls, where tasks have a user

    def __post_init__(self) -> None:
        check_at_least(1, max_concurrent=self.max_concurrent)

    def attempts(self, benchmark: str) -> AttemptLog:
        """The attempts made so far."""
        return AttemptLog(self.folder / "traces" / f"{benchmark}.jsonl")


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What came out of a benchmark."""

    records: Sequence[Record]  # of each attempt, in the benchmark's order of tasks
    seconds: float  # of this process
    notes: Sequence[str] = ()  # what was not run, and why


def check_attempts(
    name: str, attempts: int, temperature: float, max_tasks: int | None = None
) -> None:
    """Refuse attempts that would all be the same one.

    Raises:
        ValueError: of this benchmark: fewer than 1 attempt or task, or several greedy ones.
    """
    check_at_least(1, attempts=attempts, max_tasks=1 if max_tasks is None else max_tasks)
    if attempts > 1 and temperature == 0:
        raise UserError(
            f"{name}: attempts={attempts} at temperature=0 are the same attempt {attempts} times; "
            "say temperature=1.0, or attempts=1"
        )


class Benchmark(ABC):
    """Tasks, how they are attempted, and what is said about the attempts.

    Args:
        name: what the benchmark is called in tables and files.
        columns: of the table over all benchmarks: heading -> statistic.
        statistics: what is said, by name.
        details: statistics in the benchmark's own table.
        passed: the measure, 0 or 1 in an attempt, that pass@k is about.
        sampling: how tokens are drawn; None: greedy.
        attempts: at each task; several also give pass@k.
        max_tasks: attempt only so many, spread evenly; None: all.

    Raises:
        ValueError: `max_tasks` or `attempts` below 1, several greedy attempts, or a column or
            detail that is no statistic.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, str],
        statistics: Mapping[str, Statistic],
        details: Sequence[str],
        passed: str,
        sampling: SamplingParams | None,
        attempts: int,
        max_tasks: int | None,
    ) -> None:
        self.name = name
        self.sampling = sampling or SamplingParams(temperature=0.0)
        check_attempts(f"benchmark {name}", attempts, self.sampling.temperature, max_tasks)
        self.statistics = statistics
        self.columns = {**columns, **{name: name for name in pass_names(attempts)[-1:]}}
        self.details = shown(details, attempts)
        self.passed = passed
        self.attempts = attempts
        self.max_tasks = max_tasks
        for statistic in [*self.columns.values(), *self.details, passed]:
            check_option(f"statistic of benchmark {name}", statistic, list(statistics))

    def check_sampled(self, policy: EvaluatedPolicy) -> None:
        """Raise UserError for several attempts of a deterministic policy."""
        if self.attempts > 1 and isinstance(policy, LocalPolicy) and policy.scripted:
            raise UserError(
                f"benchmark {self.name}: attempts={self.attempts} of policy={policy.name} would be "
                "the same"
            )

    @abstractmethod
    def run(self, policy: EvaluatedPolicy, setting: Setting) -> BenchmarkResult:
        """Attempt every task that has no record in the setting's folder yet."""


class TaskBenchmark(Benchmark):
    """Attempts the tasks of a task set in episodes.

    Functions are given by their dotted names.

    Args:
        name, columns, sampling, attempts, passed: as `Benchmark`.
        tasks: the task set.
        split: of the task set; None: test, or validation where the benchmark validates.
        limits: where episodes end.
        scores: measures of a trajectory besides the common ones.
        statistics: for measures that are not summed up by their mean, and for others still.
        groups: kinds of groups of tasks besides the scenario, each a function of a task
            ("": it is in none of this kind).
        details: statistics in the benchmark's own table; default: all.
        max_tasks: attempt only so many, spread evenly over scenarios and split; None: all.
    """

    def __init__(
        self,
        name: str,
        tasks: TaskSet,
        columns: Mapping[str, str],
        split: str | None = None,
        limits: EpisodeLimits | None = None,
        sampling: SamplingParams | None = None,
        attempts: int = 1,
        passed: str = "success",
        scores: Mapping[str, str] | None = None,
        statistics: Mapping[str, Statistic] | None = None,
        groups: Mapping[str, str] | None = None,
        details: Sequence[str] | None = None,
        max_tasks: int | None = None,
    ) -> None:
        self.scoring = Scoring(_functions(scores), dict(statistics or {}), passed, attempts)
        known = self.scoring.all_statistics("reward")
        details = [*known] if details is None else details
        super().__init__(name, columns, known, details, passed, sampling, attempts, max_tasks)
        self.task_set = tasks
        self.split = split
        self.limits = limits or EpisodeLimits()
        self.groups: Mapping[str, Callable[[Task], str]] = _functions(groups)

    def select(self, split: str = "test") -> list[Task]:
        """The tasks to attempt: of this split, unless the benchmark has its own.

        Raises:
            UserError: there are none.
        """
        split = self.split or split
        tasks = self.task_set.tasks(split)
        if not tasks:
            hint = "; validation.split=test takes others" if split == "validation" else ""
            raise UserError(f"benchmark {self.name}: the split {split!r} has no tasks{hint}")
        return evenly_spaced(tasks, self.max_tasks, attrgetter("scenario"))

    def run(self, policy: EvaluatedPolicy, setting: Setting) -> BenchmarkResult:
        """The attempts at each task, as many at once as the setting allows."""
        self.check_sampled(policy)
        tasks = self.select()
        done = setting.attempts(self.name)
        wanted = {
            attempt_name(task.task_id, attempt): (number, attempt, task)
            for number, task in enumerate(tasks)
            for attempt in range(self.attempts)
        }
        missing = [each for name, each in wanted.items() if name not in done.done]
        text = "%s: %d tasks, %d of %d attempts to make"
        log.info(text, self.name, len(tasks), len(missing), len(wanted))
        started = time.perf_counter()
        if missing:
            speaker = policy.speaker(lambda name, seed: self.scripts(tasks, name, seed))
            limits = policy.limits(self.limits)
            runner = EpisodeRunner(speaker, setting.sandbox, limits, user=setting.user)
            asyncio.run(self._play(missing, runner, setting, done))
        records = done.finish(list(wanted))
        return BenchmarkResult(records, time.perf_counter() - started)

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
        missing: Sequence[tuple[int, int, Task]],
        runner: EpisodeRunner,
        setting: Setting,
        done: AttemptLog,
    ) -> None:
        places = asyncio.Semaphore(setting.max_concurrent)

        async def play(number: int, attempt: int, task: Task) -> None:
            async with places:
                # A seed of the attempt's own: what was attempted before must not show.
                seed = derive_seed(setting.seed, attempt_name(task.task_id, attempt))
                ((trajectory,),) = await runner.run_async([task], 1, self.sampling, seed)
            done.add(self._record((number, attempt), trajectory, setting.reward))

        await asyncio.gather(*[play(*each) for each in missing])

    def _record(self, place: tuple[int, int], trajectory: Trajectory, reward: Reward) -> Record:
        task = trajectory.task
        groups = {"scenario": task.scenario, **{k: group(task) for k, group in self.groups.items()}}
        return attempt_record(place, trajectory, reward, groups, self.scoring.measure(trajectory))


def attempt_record(
    place: tuple[int, int],
    trajectory: Trajectory,
    reward: Reward,
    groups: Mapping[str, str],
    values: Mapping[str, Any],
) -> Record:
    """The trace of an attempt, its advantages at zero, with its groups, measures and reward.

    Args:
        place: number of the task, and of the attempt at it.
    """
    (credit,) = reward([trajectory])
    (group, attempt), zeros = place, [0.0] * len(trajectory.turns)
    return {
        **trace_record(trajectory, credit, zeros, group=group, attempt=attempt),
        "groups": {kind: group for kind, group in groups.items() if group},
        "values": {**values, "reward": credit.total},
    }


def _functions(names: Mapping[str, str] | None) -> dict[str, Callable[..., Any]]:
    """The functions of dotted names."""
    return {key: get_method(name) for key, name in (names or {}).items()}
