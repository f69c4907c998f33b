"""The episode loop: sample a turn, execute its calls, append the observation, until it stops."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from matchtir.rollout.engine import Engine, SamplingParams
from matchtir.tools.parser import parse_calls
from matchtir.tools.sandbox import Sandbox, SandboxSession
from matchtir.types import (
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """Where an episode ends at the latest; the defaults are the paper's. All at least 1."""

    max_turns: int = 10
    max_prompt_tokens: int = 7_000
    max_response_tokens: int = 23_000  # everything after the prompt, observations included
    max_turn_tokens: int = 23_000  # sampled in one turn

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) < 1:
                raise ValueError(f"{limit.name} must be at least 1")


def session_name(position: int, sample: int, task_id: str) -> str:
    """The name under which an engine knows an episode: unique within a run."""
    return f"{position}/{sample}/{task_id}"


def task_id_of(session: str) -> str:
    """The task id in a session's name."""
    return session.split("/", 2)[2]


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on its arguments alone, whatever the order of sampling."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def turn_seed(seed: int, position: int, sample: int, turn: int) -> int:
    """The seed of one turn of one attempt at one task."""
    return derive_seed(seed, position, sample, turn)


class ConversationFormat(Protocol):
    """Messages as the ids that an engine reads and writes."""

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """What stands before the first turn."""
        ...

    def observation_ids(self, results: Sequence[ToolResult]) -> tuple[int, ...]:
        """What follows a turn with calls."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn."""
        ...


@dataclass(frozen=True, slots=True)
class _Episode:
    """Which attempt at which task an episode is."""

    task: Task
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    position: int
    sample: int

    @property
    def session(self) -> str:
        return session_name(self.position, self.sample, self.task.task_id)

    def turn_seed(self, turn: int) -> int:
        return turn_seed(self.seed, self.position, self.sample, turn)


class _Tools:
    """The sandbox session of one episode, opened at its first call."""

    def __init__(self, sandbox: Sandbox, task: Task) -> None:
        self.names = frozenset(spec.name for spec in task.tools)
        self._sandbox = sandbox
        self._task = task
        self._session: SandboxSession | None = None

    async def execute(self, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """One result per call, in order; the calls run concurrently."""
        if not calls:
            return ()
        session = await self._opened()
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(session.call(call)) for call in calls]
        return tuple(answer.result() for answer in running)

    async def final_state(self) -> Mapping[str, Any] | None:
        """The state of the tools, where the task says what it should be."""
        return None if self._task.gold_state is None else await (await self._opened()).state()

    async def _opened(self) -> SandboxSession:
        if self._session is None:
            self._session = await self._sandbox.open(self._task.tools, self._task.initial_state)
        return self._session

    async def close(self) -> None:
        """Close the session to the end, also where the episode is cancelled meanwhile."""
        if self._session is None:
            return
        closing = asyncio.ensure_future(self._session.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise


class EpisodeRunner:
    """Samples groups of trajectories, all episodes at once.

    Args:
        engine: samples the turns.
        renderer: turns messages into tokens.
        sandbox: executes the calls.
        limits: where episodes end.
        max_concurrent: episodes under way at the same time; the others wait for a place, in order.

    Raises:
        ValueError: `max_concurrent` below 1.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: ConversationFormat,
        sandbox: Sandbox,
        limits: EpisodeLimits,
        max_concurrent: int = 256,
    ) -> None:
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, got {max_concurrent}")
        self.engine = engine
        self.renderer = renderer
        self.sandbox = sandbox
        self.limits = limits
        self.max_concurrent = max_concurrent

    def run(
        self, tasks: Sequence[Task], group_size: int, sampling: SamplingParams, seed: int
    ) -> list[list[Trajectory]]:
        """One group of `group_size` trajectories per task, in the order of the tasks.

        `sampling.max_new_tokens` is replaced by what the limits leave for each turn. A turn that
        is cut there ends its episode; calls in it are neither executed nor recorded, so that no
        call is scored that was not answered. A task whose prompt is too long gets trajectories
        without turns, and a warning.

        What the engine, or the sandbox itself, raises ends all episodes and is raised here.
        """
        return asyncio.run(self.run_async(tasks, group_size, sampling, seed))

    async def run_async(
        self, tasks: Sequence[Task], group_size: int, sampling: SamplingParams, seed: int
    ) -> list[list[Trajectory]]:
        """`run` inside an event loop."""
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        episodes = [
            [_Episode(task, prompt_ids, sampling, seed, position, n) for n in range(group_size)]
            for position, task in enumerate(tasks)
            for prompt_ids in [self._prompt(task)]
        ]
        slots = asyncio.Semaphore(self.max_concurrent)
        try:
            # Tasks start in the order of their creation, so first turns reach the engine in order.
            async with asyncio.TaskGroup() as group:
                running = [
                    [group.create_task(self._run_one(episode, slots)) for episode in attempts]
                    for attempts in episodes
                ]
        except BaseExceptionGroup as errors:
            # One failure of the engine reaches many episodes: raise it once, as itself.
            raise _first(errors) from None
        return [[attempt.result() for attempt in attempts] for attempts in running]

    def _prompt(self, task: Task) -> tuple[int, ...]:
        prompt_ids = self.renderer.prompt_ids(task)
        if len(prompt_ids) > self.limits.max_prompt_tokens:
            logger.warning(
                "task %s is skipped: its prompt of %d tokens exceeds max_prompt_tokens=%d",
                task.task_id,
                len(prompt_ids),
                self.limits.max_prompt_tokens,
            )
        return prompt_ids

    async def _run_one(self, episode: _Episode, slots: asyncio.Semaphore) -> Trajectory:
        task, prompt_ids = episode.task, episode.prompt_ids
        if len(prompt_ids) > self.limits.max_prompt_tokens:
            reason = StopReason.PROMPT_TOO_LONG
            return Trajectory(task, prompt_ids, (), reason, self.engine.version)
        async with slots:
            started = time.perf_counter()
            version = self.engine.version
            tools = _Tools(self.sandbox, task)
            try:
                turns, reason = await self._sample_turns(episode, tools)
                seconds = time.perf_counter() - started
                state = await tools.final_state()
            finally:
                self.engine.release(episode.session)  # at once: others may wait for its place
                await tools.close()
        return Trajectory(task, prompt_ids, tuple(turns), reason, version, seconds, state)

    async def _sample_turns(
        self, episode: _Episode, tools: _Tools
    ) -> tuple[list[Turn], StopReason]:
        """The loop itself. Only turns that another one follows have an observation."""
        limits = self.limits
        turns: list[Turn] = []
        context = episode.prompt_ids
        end = len(context) + limits.max_response_tokens
        while True:
            room = min(limits.max_turn_tokens, end - len(context))
            generation = await self.engine.generate(
                episode.session,
                context,
                replace(episode.sampling, max_new_tokens=room),
                episode.turn_seed(len(turns)),
            )
            text = self.renderer.decode(generation.token_ids)
            calls = parse_calls(text, tools.names) if generation.stopped else ()
            results = await tools.execute(calls)
            turn = Turn(generation.token_ids, generation.logprobs, text, calls, results)
            turns.append(turn)
            if not generation.stopped:
                return turns, StopReason.TURN_LENGTH
            if not calls:
                return turns, StopReason.ANSWER
            if len(turns) == limits.max_turns:
                return turns, StopReason.MAX_TURNS
            observation_ids = self.renderer.observation_ids(results)
            context += turn.token_ids + observation_ids
            if len(context) >= end:  # no room for another token
                return turns, StopReason.RESPONSE_BUDGET
            turns[-1] = replace(turn, observation_ids=observation_ids)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error in a group of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
