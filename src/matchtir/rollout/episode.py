"""The episode loop: hear a turn, execute its calls, tell the results, until it stops."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

from matchtir.rollout.engine import SamplingParams, session_name
from matchtir.rollout.renderer import Renderer
from matchtir.tools.formats import HERMES
from matchtir.tools.sandbox import Sandbox, SandboxSession
from matchtir.types import CallStatus, StopReason, Task, ToolCall, ToolResult, Trajectory, Turn
from matchtir.utils.options import UserError


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
        """Name of the engine's session."""
        return session_name(self.seed, self.position, self.sample, self.task.task_id)

    @property
    def context(self) -> tuple[int, ...]:
        """All tokens so far."""
        pieces = [ids for turn in self.turns for ids in (turn.token_ids, turn.observation_ids)]
        return tuple(chain(self.prompt_ids, *pieces))

    @property
    def turn_seed(self) -> int:
        """Seed of its next turn."""
        return derive_seed(self.seed, self.position, self.sample, len(self.turns))

    def to_trajectory(self, reason: StopReason, version: int) -> Trajectory:
        """The trajectory that it is; `version` stands where no turn has one."""
        first = self.turns[0].policy_version if self.turns else version
        return Trajectory(self.task, self.prompt_ids, self.turns, reason, first, self.seconds)


def response_tokens(turns: Sequence[Turn]) -> int:
    """Tokens behind the prompt, observations included."""
    return sum(len(turn.token_ids) + len(turn.observation_ids) for turn in turns)


class NotFiniteError(RuntimeError):
    """An engine gave log-probabilities that are NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Response:
    """What was said in a turn."""

    text: str
    stopped: bool  # False: cut, or there was no room for it
    calls: tuple[ToolCall, ...] | None = None  # None: they stand in the text, not read yet
    token_ids: tuple[int, ...] = ()  # none where the speaker has only text
    logprobs: tuple[float, ...] = ()


class Speaker:
    """Says the turns of many episodes at once: a model, a server; by itself, somebody outside."""

    version = 0  # of the weights that turns are sampled from
    cache_tokens: int | None = None  # of all conversations in its cache; None: it has a queue
    renderer: Renderer | None = None  # None: it has only text, limits of tokens mean nothing to it

    async def speak(self, attempt: Attempt, room: int) -> Response:
        """Say the next turn of an attempt, in at most `room` tokens."""
        raise NotImplementedError("the turns of this speaker come from outside")

    def release(self, session: str) -> None:
        """Forget an episode; a no-op for an unknown one."""


class User:
    """Answers turns without calls; by itself, with what the task has written down."""

    async def reply(self, attempt: Attempt, said: str) -> str | None:
        """What the user says to `said`, which follows the turns of the attempt; None: nothing more.

        Raises:
            UserError: the task needs a user who knows a goal.
        """
        task = attempt.task
        if task.user_goal:
            raise UserError(f"task {task.task_id} has a user_goal: user=endpoint plays one")
        spoken = sum(bool(turn.reply) for turn in attempt.turns)
        return task.user[spoken] if spoken < len(task.user) else None


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


class Episode:
    """An attempt under way: `run` plays it to the end; who speaks from outside calls `step`, `end`.

    Args:
        attempt: where it begins; holds the turns that are complete, each with its observation.
        speaker, sandbox, limits, user: see `EpisodeRunner`. A session is opened at the first call;
            where tools keep state, calls of turns of another session are made again first.
    """

    def __init__(
        self,
        attempt: Attempt,
        speaker: Speaker,
        sandbox: Sandbox,
        limits: EpisodeLimits,
        user: User | None = None,
    ) -> None:
        self.attempt = attempt
        self.speaker = speaker
        self.sandbox = sandbox
        self.limits = limits
        self.user = user or User()
        self.stage: tuple[str, float] | None = None  # that it is in, and since when
        self._last: Turn | None = None  # which no other follows
        self._started = time.perf_counter() - attempt.seconds
        self._session: SandboxSession | None = None
        keeps_state = any(spec.owner or spec.server for spec in attempt.task.tools)
        self._earlier = attempt.turns if keeps_state else ()

    async def run(self) -> Trajectory:
        """Go on to the end; a cancelled episode keeps its complete turns in `attempt`.

        What the speaker or the sandbox raises comes out.
        """
        try:
            return await self.end(await self._within_time())
        except asyncio.CancelledError:
            self.attempt = replace(self.attempt, seconds=time.perf_counter() - self._started)
            raise
        finally:
            self.speaker.release(self.attempt.session)  # at once: others may wait for its place
            await self.close()

    async def _within_time(self) -> StopReason:
        left = self.limits.max_seconds
        clock = asyncio.timeout(None if left is None else left - self.attempt.seconds)
        try:
            async with clock:
                return await self._play()
        except TimeoutError:
            if not clock.expired():  # somebody else's
                raise
            return StopReason.DEADLINE

    async def _play(self) -> StopReason:
        """Hear turns of the speaker until one is the last."""
        limits = self.limits
        while True:
            used = response_tokens(self.attempt.turns)
            room = min(limits.max_turn_tokens, limits.max_response_tokens - used)
            number = len(self.attempt.turns)
            self._enter(f"generating turn {number}")
            said = await self.speaker.speak(self.attempt, room)
            if not all(map(math.isfinite, said.logprobs)):
                text = f"log-probabilities of turn {number} are not finite"
                raise NotFiniteError(f"{self.attempt.session}: {text}")
            if reason := await self.step(said):
                return reason

    async def step(self, said: Response) -> StopReason | None:
        """Execute the calls of a turn; says why it is the last one, if it is.

        A turn that another one follows goes into `attempt`, with its observation.
        """
        number, renderer = len(self.attempt.turns), self.speaker.renderer
        calls = (said.calls or ()) if said.stopped else ()
        if said.stopped and said.calls is None:
            tools = {tool.name: tool.parameters for tool in self.attempt.task.tools}
            calls = (renderer.calls if renderer else HERMES).parse(said.text, tools)
        self._enter(f"tools of turn {number}")
        turn = Turn(
            said.token_ids,
            said.logprobs,
            said.text,
            calls,
            await _execute(await self._tools(), calls) if calls else (),
            policy_version=self.speaker.version,
            spans=renderer.spans(said.text, said.token_ids) if renderer and said.stopped else (),
        )
        self._last = turn
        if not said.stopped:
            return StopReason.TURN_LENGTH
        reply = None
        if not calls:
            self._enter(f"reply to turn {number}")
            reply = await self.user.reply(self.attempt, said.text)
            if reply is None:
                return StopReason.ANSWER
        if number + 1 == self.limits.max_turns:
            return StopReason.MAX_TURNS
        observed: tuple[int, ...] = ()
        if renderer and reply is None:
            observed = renderer.observation_ids(turn.results, turn.token_ids)
        elif renderer and reply is not None:
            observed = renderer.reply_ids(reply, turn.token_ids)
        turns = (*self.attempt.turns, replace(turn, observation_ids=observed, reply=reply or ""))
        if response_tokens(turns) >= self.limits.max_response_tokens:
            return StopReason.RESPONSE_BUDGET  # no room for another token
        self.attempt, self._last = replace(self.attempt, turns=turns), None
        return None

    async def end(self, reason: StopReason) -> Trajectory:
        """The whole episode; nobody reads an observation behind its last turn, so it has none."""
        turns = self.attempt.turns if self._last is None else (*self.attempt.turns, self._last)
        turns = (*turns[:-1], *(replace(turn, observation_ids=()) for turn in turns[-1:]))
        seconds, state = time.perf_counter() - self._started, None
        if self.attempt.task.gold_state is not None:
            self._enter("final state")
            state = await (await self._tools()).state()
        ended = replace(self.attempt, turns=turns, seconds=seconds)
        return replace(ended.to_trajectory(reason, self.speaker.version), final_state=state)

    # -- tools -----------------------------------------------------------------------------------

    async def _tools(self) -> SandboxSession:
        if self._session is None:
            task = self.attempt.task
            self._session = await self.sandbox.open(task.tools, task.initial_state)
            for turn in self._earlier:
                await _execute(self._session, [c for c in turn.calls if c.status is CallStatus.OK])
        return self._session

    async def close(self) -> None:
        """Close the tools' session to the end, also where the episode is cancelled meanwhile."""
        self._enter("closing the tools")
        if self._session is not None:
            closing = asyncio.ensure_future(self._session.close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing
                raise
        self.stage = None

    def _enter(self, stage: str) -> None:
        self.stage = (stage, time.monotonic())


async def _execute(session: SandboxSession, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
    """One result per call, in order; the calls run concurrently."""
    running = [asyncio.ensure_future(session.call(call)) for call in calls]
    try:
        return tuple(await asyncio.gather(*running))
    finally:
        for each in running:
            each.cancel()
