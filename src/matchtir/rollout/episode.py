"""The episode loop: sample a turn, execute its calls, append the observation, until it stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from matchtir.rollout.attempt import Attempt
from matchtir.rollout.engine import Engine
from matchtir.rollout.episode_tools import EpisodeTools
from matchtir.rollout.watchdog import Watchdog
from matchtir.tools.formats import CallFormat
from matchtir.types import StopReason, Task, ToolResult, Trajectory, Turn


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
        """The same for turns that are not sampled here, so that nobody counts their tokens."""
        none = 1 << 30
        return replace(self, max_prompt_tokens=none, max_response_tokens=none, max_turn_tokens=none)


class ConversationFormat(Protocol):
    """Messages as the ids that an engine reads and writes."""

    calls: CallFormat  # of the text of a turn

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """What stands before the first turn."""
        ...

    def observation_ids(
        self, results: Sequence[ToolResult], turn_ids: Sequence[int]
    ) -> tuple[int, ...]:
        """What follows the turn `turn_ids` whose calls had these results."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn."""
        ...


class Episode:
    """An attempt under way.

    Args:
        attempt: where it begins; holds the turns that are complete.
        engine, renderer, tools, limits: see `EpisodeRunner`.
        watchdog: hears of every stage.
    """

    def __init__(
        self,
        attempt: Attempt,
        engine: Engine,
        renderer: ConversationFormat,
        tools: EpisodeTools,
        limits: EpisodeLimits,
        watchdog: Watchdog,
    ) -> None:
        self.attempt = attempt
        self.engine = engine
        self.renderer = renderer
        self.tools = tools
        self.limits = limits
        self.watchdog = watchdog
        self.trajectory: Trajectory | None = None  # at the end

    async def run(self) -> None:
        """Go on to the end; a cancelled episode keeps its complete turns in `attempt`.

        What the engine or the sandbox raises comes out.
        """
        session, version = self.attempt.session, self.engine.version
        started = time.perf_counter() - self.attempt.seconds
        try:
            reason = await self._within_time()
            seconds = time.perf_counter() - started
            with self.watchdog.stage(session, "final state"):
                state = await self.tools.final_state()
            trajectory = replace(self.attempt, seconds=seconds).ended(reason, version)
            self.trajectory = replace(trajectory, final_state=state)
        except asyncio.CancelledError:
            # A last turn that nothing follows yet would be gone on with as if it were none.
            turns = tuple(turn for turn in self.attempt.turns if turn.observation_ids)
            seconds = time.perf_counter() - started
            self.attempt = replace(self.attempt, turns=turns, seconds=seconds)
            raise
        finally:
            self.engine.release(session)  # at once: others may wait for its place
            with self.watchdog.stage(session, "closing the tools"):
                await self.tools.close()

    async def _within_time(self) -> StopReason:
        left = self.limits.max_seconds
        clock = asyncio.timeout(None if left is None else left - self.attempt.seconds)
        try:
            async with clock:
                return await self._sample_turns()
        except TimeoutError:
            if not clock.expired():  # somebody else's
                raise
        turns = self.attempt.turns
        if turns:
            last = replace(turns[-1], observation_ids=())
            self.attempt = replace(self.attempt, turns=(*turns[:-1], last))
        return StopReason.DEADLINE

    async def _sample_turns(self) -> StopReason:
        """The loop itself. Only turns that another one follows have an observation."""
        limits, attempt = self.limits, self.attempt
        context = attempt.context
        end = len(attempt.prompt_ids) + limits.max_response_tokens
        while True:
            number = len(self.attempt.turns)
            room = min(limits.max_turn_tokens, end - len(context))
            version = self.engine.version
            with self.watchdog.stage(attempt.session, f"generating turn {number}"):
                generation = await self.engine.generate(
                    attempt.session,
                    context,
                    replace(attempt.sampling, max_new_tokens=room),
                    attempt.turn_seed(number),
                )
            text = self.renderer.decode(generation.token_ids)
            calls = self.renderer.calls.parse(text, self.tools.names) if generation.stopped else ()
            with self.watchdog.stage(attempt.session, f"tools of turn {number}"):
                results = await self.tools.execute(calls)
            turn = Turn(
                generation.token_ids,
                generation.logprobs,
                text,
                calls,
                results,
                policy_version=version,
            )
            if not generation.stopped:
                return self._end(turn, StopReason.TURN_LENGTH)
            if not calls:
                return self._end(turn, StopReason.ANSWER)
            if number + 1 == limits.max_turns:
                return self._end(turn, StopReason.MAX_TURNS)
            observation_ids = self.renderer.observation_ids(results, turn.token_ids)
            context += turn.token_ids + observation_ids
            if len(context) >= end:  # no room for another token
                return self._end(turn, StopReason.RESPONSE_BUDGET)
            self._add(replace(turn, observation_ids=observation_ids))

    def _add(self, turn: Turn) -> None:
        self.attempt = replace(self.attempt, turns=(*self.attempt.turns, turn))

    def _end(self, last: Turn, reason: StopReason) -> StopReason:
        self._add(last)
        return reason
