"""Gold traces from a teacher: its attempts are run, kept on file, and cleaned where they are right.

A cleaned trace is a successful attempt without the calls that it did not need.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from matchtir.credit.outcome import answer_f1, final_answer, missed, outcome_score
from matchtir.evaluation.traces import AttemptLog
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import derive_seed
from matchtir.rollout.http import EndpointError
from matchtir.rollout.runner import EpisodeRunner
from matchtir.tools.sandbox import Sandbox, replay_calls, succeeded
from matchtir.types import SubAnswer, Task, ToolCall, Trajectory

log = logging.getLogger(__name__)

MOST_FAILURES = 5  # attempts in a row that the teacher's server refuses
_WORD = re.compile(r"\w+")

# -- cleaning -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One call of a trace, the turn that it was made in, and what it returned."""

    turn: int
    call: ToolCall
    output: str


Trace = tuple[TracedCall, ...]


def traced_calls(trajectory: Trajectory) -> Trace:
    """The calls of an attempt that ran to their end and whose output is no error."""
    return tuple(
        TracedCall(index, call, result.output)
        for index, turn in enumerate(trajectory.turns)
        for call, result in zip(turn.calls, turn.results, strict=True)
        if succeeded(result)
    )


async def clean_trace(
    task: Task, trace: Trace, sandbox: Sandbox, talk: Collection[int] = ()
) -> Trace | None:
    """The trace without failed, repeated and redundant calls, each removal tried by execution.

    A call is redundant if the others, executed without it, return what they returned before, reach
    the gold state, and still say everything that an argument or the answer takes from an output.
    Where the answer is not found in the outputs, or stands in the question already ("which of the
    two ..."), nobody can tell what it was drawn from: then only repetitions are removed.

    Args:
        talk: the turns that a user answered.

    Returns:
        the trace, its turns and those of the talk numbered anew; None where even the whole one does
        not replay.
    """
    if not await _replays(task, trace, sandbox):
        return None
    explained = _explains(task, trace)
    kept = dict(enumerate(trace))
    for position in reversed(range(len(trace))):
        rest = tuple(step for index, step in kept.items() if index != position)
        repeated = _key(trace[position]) in map(_key, rest)
        needless = repeated or (explained and _supports(task, rest, trace))
        if needless and await _replays(task, rest, sandbox):
            del kept[position]
    turns = sorted({*talk, *(step.turn for step in kept.values())})
    return tuple(TracedCall(turns.index(s.turn), s.call, s.output) for s in kept.values())


def _key(step: TracedCall) -> str:
    return json.dumps([step.call.name, step.call.arguments, step.output], sort_keys=True)


async def _replays(task: Task, trace: Trace, sandbox: Sandbox) -> bool:
    """Whether the calls return what they returned, and reach the gold state."""
    replay = await replay_calls(task, [step.call for step in trace], sandbox)
    outputs = [result.output for result in replay.results]
    if outputs != [step.output for step in trace]:
        return False
    return task.gold_state is None or not missed(task.gold_state, replay.state)


def _explains(task: Task, trace: Trace) -> bool:
    """Whether it can be told which outputs the answer was drawn from."""
    if not task.answer:
        return task.gold_state is not None
    question, outputs = _words(task.question), [_words(step.output) for step in trace]
    return all(
        part.strip() and part not in question and any(part in output for output in outputs)
        for part in _parts(task.answer)
    )


def _supports(task: Task, rest: Trace, whole: Trace) -> bool:
    """Whether `rest` still says what its arguments and the answer take from outputs of `whole`."""
    asked = _words(" ".join([task.question, *(message.content for message in task.history)]))
    for step in rest:
        for value in _leaves(step.call.arguments):
            words = _words(str(value))
            before, still = (_says(trace, words, step.turn) for trace in (whole, rest))
            if words not in asked and before and not still:
                return False
    return all(_says(rest, part) or not _says(whole, part) for part in _parts(task.answer))


def _says(trace: Trace, words: str, before_turn: float = math.inf) -> bool:
    return any(words in _words(step.output) for step in trace if step.turn < before_turn)


def _words(text: str) -> str:
    """The words of a text between single blanks, so that one in another are words in a row."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _parts(answer: str) -> list[str]:
    return [_words(part) for part in answer.split(", ")] if answer else []


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield value


# -- attempts -------------------------------------------------------------------------------------


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


@dataclass
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

    runner: EpisodeRunner
    sampling: SamplingParams
    log: AttemptLog
    attempts: int
    enough: int | None = None
    least_outcome: float = 1.0
    max_concurrent: int = 8
    seed: int = 0
    refused: int = field(default=0, init=False)
    _in_a_row: int = field(default=0, init=False)  # of the refused ones

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_concurrent < 1 or (self.enough or 1) < 1:
            raise ValueError("attempts, enough and max_concurrent must be at least 1")
        self._slots = asyncio.Semaphore(self.max_concurrent)

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
            right = sum(attempt.trace is not None for attempt in self.of(task))
            if right >= (self.enough or self.attempts):
                return
            name = attempt_id(task, number)
            if name in self.log.done:
                continue
            async with self._slots:
                attempt = await self._attempt(task, name)
            if attempt is not None:
                self.log.add(asdict(attempt))
                progress(attempt)

    async def _attempt(self, task: Task, name: str) -> Attempt | None:
        """An attempt, judged; None where the server refuses: the next run makes it again."""
        named, seed = [replace(task, task_id=name)], derive_seed(self.seed, name)
        try:
            [[said]] = await self.runner.run_async(named, 1, self.sampling, seed)
        except EndpointError as error:
            self.refused += 1
            self._in_a_row += 1
            log.warning("attempt %s: %s", name, error)
            if self._in_a_row >= MOST_FAILURES:
                raise
            return None
        self._in_a_row = 0
        outcome = outcome_score(said, final_answer(said), answer_f1)
        right, told, made = outcome >= self.least_outcome, traced_calls(said), len(said.calls)
        talk = [number for number, turn in enumerate(said.turns) if turn.reply]
        trace = await clean_trace(task, told, self.runner.sandbox, talk) if right else None
        return Attempt(name, outcome, right, str(said.stop_reason), made, made - len(told), trace)


def from_record(record: Mapping[str, Any]) -> Attempt:
    """An attempt as it was read from the log."""
    steps = record["trace"]
    if steps is None:
        return Attempt(**record)
    calls = [ToolCall(step["call"]["name"], step["call"]["arguments"]) for step in steps]
    trace = [TracedCall(s["turn"], c, s["output"]) for s, c in zip(steps, calls, strict=True)]
    return Attempt(**{**record, "trace": tuple(trace)})


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
    distinct: dict[tuple[str, ...], Trace] = {}
    for trace in traces:
        distinct.setdefault(tuple(sorted(map(_key, trace))), trace)
    best, *others = sorted(distinct.values(), key=len)
    counts = {"right": len(traces), "distinct": len(distinct)}
    return replace(
        task,
        gold_calls=tuple(step.call for step in best),
        gold_turns=tuple(step.turn for step in best),
        sub_answers=tuple(SubAnswer(step.call.name, step.output) for step in best),
        alternative_gold_calls=tuple(
            tuple(step.call for step in trace) for trace in others[:alternatives]
        ),
        metadata={**task.metadata, "provenance": {**provenance, **counts}},
    )
