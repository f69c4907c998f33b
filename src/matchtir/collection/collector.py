"""A teacher's attempts at many tasks: run, kept on file as they finish, made into gold traces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from matchtir.collection.cleaning import Trace, TracedCall, clean_trace, trace_key, traced_calls
from matchtir.credit.outcome import answer_f1, final_answer, outcome_score
from matchtir.evaluation.traces import AttemptLog
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import derive_seed
from matchtir.rollout.http import EndpointError
from matchtir.rollout.runner import EpisodeRunner
from matchtir.types import SubAnswer, Task, ToolCall, Trajectory

log = logging.getLogger(__name__)

MOST_FAILURES = 5  # attempts in a row that the teacher's server refuses


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt at one task came to."""

    task: str  # the task's id, "#", and the number of the attempt
    outcome: float  # F1 of the answer; 0 unless the gold state is reached
    right: bool
    stop_reason: str
    calls: int
    failed_calls: int
    trace: Trace | None  # cleaned; None for an attempt that is wrong or does not replay


def attempt_id(task: Task, number: int) -> str:
    """What an attempt is called in the log."""
    return f"{task.task_id}#{number}"


class Collector:
    """Makes attempts that are not on file yet, so many at once.

    Args:
        runner: plays the episodes, with the teacher as its speaker and real tools.
        sampling: how the teacher's turns are drawn.
        log: of finished attempts.
        attempts: at each task.
        enough: right attempts at a task after which no further one is started; None: all are made.
        least_outcome: from which an attempt is right.
        max_concurrent: attempts under way at the same time.
        seed: of the sampling; each attempt has a seed of its own.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        sampling: SamplingParams,
        log: AttemptLog,
        attempts: int,
        enough: int | None = None,
        least_outcome: float = 1.0,
        max_concurrent: int = 8,
        seed: int = 0,
    ) -> None:
        if attempts < 1 or max_concurrent < 1 or (enough is not None and enough < 1):
            raise ValueError("attempts, enough and max_concurrent must be at least 1")
        self.runner = runner
        self.sampling = sampling
        self.log = log
        self.attempts = attempts
        self.enough = enough or attempts
        self.least_outcome = least_outcome
        self.seed = seed
        self.refused = 0
        self._in_a_row = 0
        self._slots = asyncio.Semaphore(max_concurrent)

    def run(self, tasks: Sequence[Task], progress: Callable[[Attempt], None]) -> None:
        """Make the missing attempts; each is on file before `progress` hears of it.

        Raises:
            EndpointError: the teacher's server refuses several attempts in a row.
        """

        async def run_all() -> None:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(self._run_task(task, progress))

        try:
            asyncio.run(run_all())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def of(self, task: Task) -> list[Attempt]:
        """The attempts at a task that are on file."""
        ids = [attempt_id(task, number) for number in range(self.attempts)]
        return [from_record(self.log.done[name]) for name in ids if name in self.log.done]

    async def _run_task(self, task: Task, progress: Callable[[Attempt], None]) -> None:
        """The attempts at one task, one after the other, until enough are right."""
        for number in range(self.attempts):
            if sum(attempt.trace is not None for attempt in self.of(task)) >= self.enough:
                return
            if attempt_id(task, number) in self.log.done:
                continue
            async with self._slots:
                attempt = await self._attempt(task, number)
            if attempt is not None:
                self.log.add(asdict(attempt))
                progress(attempt)

    async def _attempt(self, task: Task, number: int) -> Attempt | None:
        name = attempt_id(task, number)
        seed = derive_seed(self.seed, name)
        try:
            [[trajectory]] = await self.runner.run_async(
                [replace(task, task_id=name)], 1, self.sampling, seed
            )
        except EndpointError as error:
            self.refused += 1
            self._in_a_row += 1
            log.warning("attempt %s: %s", name, error)
            if self._in_a_row >= MOST_FAILURES:
                raise
            return None  # not on file: the next run of the program makes it again
        self._in_a_row = 0
        return await self._judged(task, name, trajectory)

    async def _judged(self, task: Task, name: str, trajectory: Trajectory) -> Attempt:
        outcome = outcome_score(trajectory, final_answer(trajectory), answer_f1)
        told = traced_calls(trajectory)
        trace = None
        right = outcome >= self.least_outcome
        if right:
            trace = await clean_trace(task, told, self.runner.sandbox)
        made = len(trajectory.calls)
        reason = str(trajectory.stop_reason)
        return Attempt(name, outcome, right, reason, made, made - len(told), trace)


def from_record(record: Mapping[str, Any]) -> Attempt:
    """An attempt as it was read from the log."""
    trace = record["trace"]
    if trace is not None:
        steps = [
            TracedCall(s["turn"], ToolCall(s["call"]["name"], s["call"]["arguments"]), s["output"])
            for s in trace
        ]
        trace = tuple(steps)
    return Attempt(**{**record, "trace": trace})


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
