"""The episode loop: hear a turn, execute its calls, tell the results, until it stops."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Protocol

from matchtir.rollout.engine import SamplingParams, session_name
from matchtir.tools.formats import CallFormat
from matchtir.tools.sandbox import Sandbox, SandboxSession
from matchtir.types import CallStatus, StopReason, Task, ToolCall, ToolResult, Trajectory, Turn

logger = logging.getLogger(__name__)

NAMED = 5  # episodes that a warning of the watchdog names; the others are counted


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on its arguments alone, whatever the order of sampling."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """Sample number `sample` of the task at `position` of a rollout, as far as it has come.

    It can be gone on with at any time, also by another process: all that matters is in its turns.
    """

    task: Task
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    position: int
    sample: int
    turns: tuple[Turn, ...] = ()  # each with its observation
    seconds: float = 0.0  # wall time so far

    @property
    def session(self) -> str:
        """Its name."""
        return session_name(self.seed, self.position, self.sample, self.task.task_id)

    @property
    def context(self) -> tuple[int, ...]:
        """All tokens so far."""
        pieces = [ids for turn in self.turns for ids in (turn.token_ids, turn.observation_ids)]
        return tuple(chain(self.prompt_ids, *pieces))

    @property
    def turn_seed(self) -> int:
        """Of the sampling of its next turn."""
        return derive_seed(self.seed, self.position, self.sample, len(self.turns))

    def ended(self, reason: StopReason, version: int) -> Trajectory:
        """The trajectory that it is; `version` stands where no turn has one."""
        first = self.turns[0].policy_version if self.turns else version
        return Trajectory(self.task, self.prompt_ids, self.turns, reason, first, self.seconds)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What was said in a turn; its calls are not read yet."""

    text: str
    stopped: bool  # False: cut, or there was no room for it
    token_ids: tuple[int, ...] = ()  # none where the speaker has only text
    logprobs: tuple[float, ...] = ()


class Speaker(Protocol):
    """Says the turns of many episodes at once: a model, a server, somebody outside.

    One that has only text gives no ids at all; limits of tokens mean nothing to it then.
    """

    @property
    def version(self) -> int:
        """Of the weights that turns are sampled from."""
        ...

    @property
    def calls(self) -> CallFormat:
        """How calls are written in the text of a turn."""
        ...

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """What stands before the first turn."""
        ...

    async def speak(self, attempt: Attempt, room: int) -> Utterance:
        """Say the next turn of an attempt, in at most `room` tokens."""
        ...

    def observation_ids(
        self, results: Sequence[ToolResult], turn_ids: Sequence[int]
    ) -> tuple[int, ...]:
        """What follows the turn `turn_ids` whose calls had these results."""
        ...

    def release(self, session: str) -> None:
        """Forget an episode; a no-op for an unknown one."""
        ...


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """Where an episode ends at the latest; the defaults are the paper's. All at least 1."""

    max_turns: int = 10
    max_prompt_tokens: int = 7_000
    max_response_tokens: int = 23_000  # everything after the prompt, observations included
    max_turn_tokens: int = 23_000  # sampled in one turn
    max_seconds: float | None = None  # from the first request on, tools included; None: for ever

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value < 1:
                raise ValueError(f"{limit.name} must be at least 1")

    def without_tokens(self) -> EpisodeLimits:
        """The same for turns whose number of tokens says nothing about any policy."""
        none = 1 << 30
        return replace(self, max_prompt_tokens=none, max_response_tokens=none, max_turn_tokens=none)


class EpisodeTools:
    """Executes the calls of an episode in a sandbox session, opened at the first one.

    Args:
        sandbox: opens the session.
        task: whose tools they are.
        earlier: turns of the episode that another session executed: where tools keep state, their
            calls are made again first, so that the state is what it was.
    """

    def __init__(self, sandbox: Sandbox, task: Task, earlier: Sequence[Turn] = ()) -> None:
        self.names = frozenset(spec.name for spec in task.tools)
        self._sandbox = sandbox
        self._task = task
        keeps_state = any(spec.owner or spec.server for spec in task.tools)
        self._earlier = tuple(earlier) if keeps_state else ()
        self._session: SandboxSession | None = None

    async def execute(self, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """One result per call, in order; the calls run concurrently."""
        if not calls:
            return ()
        return await _execute(await self._opened(), calls)

    async def final_state(self) -> Mapping[str, Any] | None:
        """The state of the tools, where the task says what it should be."""
        return None if self._task.gold_state is None else await (await self._opened()).state()

    async def _opened(self) -> SandboxSession:
        if self._session is None:
            self._session = await self._sandbox.open(self._task.tools, self._task.initial_state)
            for turn in self._earlier:
                await _execute(self._session, [c for c in turn.calls if c.status is CallStatus.OK])
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


async def _execute(session: SandboxSession, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(session.call(call)) for call in calls]
    return tuple(answer.result() for answer in running)


class Watchdog:
    """Warns of stages of episodes that take longer than `patience_s`, again after as long.

    It looks from a thread of its own: what hangs may be the event loop itself. It ends nothing;
    `EpisodeLimits.max_seconds` does.
    """

    def __init__(self, patience_s: float) -> None:
        if patience_s <= 0:
            raise ValueError(f"patience_s must be above 0, got {patience_s}")
        self.patience_s = patience_s
        self._entered: dict[str, tuple[str, float]] = {}  # session -> stage, since when

    @contextmanager
    def stage(self, session: str, name: str) -> Iterator[None]:
        """The episode `session` is in the stage `name`."""
        self._entered[session] = (name, time.monotonic())
        try:
            yield
        finally:
            del self._entered[session]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look for as long."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(self.patience_s):
            late = defaultdict(list)
            for session, (stage, since) in self._entered.copy().items():
                if time.monotonic() - since >= self.patience_s:
                    late[stage].append(session)
            for stage, sessions in late.items():
                others = f" and {len(sessions) - NAMED} more" if len(sessions) > NAMED else ""
                names = ", ".join(sessions[:NAMED]) + others
                logger.warning("in stage %r for more than %g s: %s", stage, self.patience_s, names)


class Episode:
    """An attempt under way.

    Args:
        attempt: where it begins; holds the turns that are complete, each with its observation.
        speaker, limits: see `EpisodeRunner`.
        tools: execute its calls.
        watchdog: hears of every stage.
    """

    def __init__(
        self,
        attempt: Attempt,
        speaker: Speaker,
        tools: EpisodeTools,
        limits: EpisodeLimits,
        watchdog: Watchdog,
    ) -> None:
        self.attempt = attempt
        self.speaker = speaker
        self.tools = tools
        self.limits = limits
        self.watchdog = watchdog
        self.trajectory: Trajectory | None = None  # at the end

    async def run(self) -> None:
        """Go on to the end; a cancelled episode keeps its complete turns in `attempt`.

        What the speaker or the sandbox raises comes out.
        """
        session, version = self.attempt.session, self.speaker.version
        started = time.perf_counter() - self.attempt.seconds
        try:
            reason, turns = await self._within_time()
            whole = replace(self.attempt, turns=turns, seconds=time.perf_counter() - started)
            with self.watchdog.stage(session, "final state"):
                state = await self.tools.final_state()
            self.trajectory = replace(whole.ended(reason, version), final_state=state)
        except asyncio.CancelledError:
            self.attempt = replace(self.attempt, seconds=time.perf_counter() - started)
            raise
        finally:
            self.speaker.release(session)  # at once: others may wait for its place
            with self.watchdog.stage(session, "closing the tools"):
                await self.tools.close()

    async def _within_time(self) -> tuple[StopReason, tuple[Turn, ...]]:
        """Why it ended and all of its turns, no observation after the last one."""
        left = self.limits.max_seconds
        clock = asyncio.timeout(None if left is None else left - self.attempt.seconds)
        try:
            async with clock:
                reason, last = await self._hear_turns()
            return reason, (*self.attempt.turns, last)
        except TimeoutError:
            if not clock.expired():  # somebody else's
                raise
        turns = self.attempt.turns
        last_one = tuple(replace(turn, observation_ids=()) for turn in turns[-1:])
        return StopReason.DEADLINE, turns[:-1] + last_one

    async def _hear_turns(self) -> tuple[StopReason, Turn]:
        """The loop itself: turns that another one follows go into the attempt, the last comes out.

        Nobody would read an observation behind the last one, so it has none.
        """
        limits, session = self.limits, self.attempt.session
        used = len(self.attempt.context) - len(self.attempt.prompt_ids)
        while True:
            number = len(self.attempt.turns)
            room = min(limits.max_turn_tokens, limits.max_response_tokens - used)
            version = self.speaker.version
            with self.watchdog.stage(session, f"generating turn {number}"):
                said = await self.speaker.speak(self.attempt, room)
            calls = self.speaker.calls.parse(said.text, self.tools.names) if said.stopped else ()
            with self.watchdog.stage(session, f"tools of turn {number}"):
                results = await self.tools.execute(calls)
            turn = Turn(
                said.token_ids, said.logprobs, said.text, calls, results, policy_version=version
            )
            if not said.stopped:
                return StopReason.TURN_LENGTH, turn
            if not calls:
                return StopReason.ANSWER, turn
            if number + 1 == limits.max_turns:
                return StopReason.MAX_TURNS, turn
            observation_ids = self.speaker.observation_ids(results, turn.token_ids)
            used += len(turn.token_ids) + len(observation_ids)
            if used >= limits.max_response_tokens:  # no room for another token
                return StopReason.RESPONSE_BUDGET, turn
            complete = replace(turn, observation_ids=observation_ids)
            self.attempt = replace(self.attempt, turns=(*self.attempt.turns, complete))
