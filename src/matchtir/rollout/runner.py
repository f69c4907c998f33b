"""Groups of episodes: all of them at once, until all or enough of them are complete."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from asyncio import FIRST_COMPLETED
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import (
    Attempt,
    Episode,
    EpisodeLimits,
    NotFiniteError,
    Speaker,
    User,
    response_tokens,
)
from matchtir.tools.sandbox import Sandbox
from matchtir.types import StopReason, Task, Trajectory

logger = logging.getLogger(__name__)

NAMED = 5  # episodes that a warning of the watchdog names; the others are counted
MOST_DROPPED = 0.01  # of the attempts of one rollout; more of them end the run

# A group in which some attempts may not be at their end yet.
AttemptGroup = Sequence[Attempt | Trajectory]
_GroupState = list[Attempt | Trajectory | None]  # of a group; None: the attempt was dropped


def conversations_at_once(cache_tokens: int, mean_tokens: float) -> int:
    """How many conversations of a mean length find their keys and values in the cache again.

    More of them at once would push each other's out, and every turn would read its whole context.
    """
    return max(1, int(cache_tokens / max(mean_tokens, 1.0)))


class EpisodeRunner:
    """Samples groups of trajectories.

    Args:
        speaker: says the turns.
        sandbox: executes the calls.
        limits: where episodes end.
        max_concurrent: episodes under way at the same time; the others wait for a place, in order,
            so that the oldest are done first. None: as many as the engine's cache holds, by the
            mean length of the last rollout, at first half of what the limits allow; without bound
            for an engine that has a queue of its own.
        watchdog_s: an episode that is longer in one stage is named in a warning.
        user: answers turns without calls; None: says what tasks have written down, if they have.

    `dropped` names the attempts of the last rollout whose log-probabilities were not finite.

    Raises:
        ValueError: `max_concurrent` below 1, or `watchdog_s` not above 0.
    """

    def __init__(
        self,
        speaker: Speaker,
        sandbox: Sandbox,
        limits: EpisodeLimits,
        max_concurrent: int | None = None,
        watchdog_s: float = 300.0,
        user: User | None = None,
    ) -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, got {max_concurrent}")
        if watchdog_s <= 0:
            raise ValueError(f"watchdog_s must be above 0, got {watchdog_s}")
        self.speaker = speaker
        self.sandbox = sandbox
        self.limits = limits
        self.max_concurrent = max_concurrent
        self.watchdog_s = watchdog_s
        self.user = user
        self.dropped: list[str] = []
        self._mean_tokens = (limits.max_prompt_tokens + limits.max_response_tokens) / 2

    def run(
        self, tasks: Sequence[Task], group_size: int, sampling: SamplingParams, seed: int
    ) -> list[list[Trajectory]]:
        """One group of `group_size` trajectories per task, in the order of the tasks.

        `sampling.max_new_tokens` is replaced by what the limits leave for each turn. A turn that
        is cut there ends its episode; calls in it are neither executed nor recorded, so that no
        call is scored that was not answered. A task whose prompt is too long gets trajectories
        without turns, and a warning.

        What the speaker, or the sandbox itself, raises ends all episodes and is raised here.
        """
        return asyncio.run(self.run_async(tasks, group_size, sampling, seed))

    async def run_async(
        self, tasks: Sequence[Task], group_size: int, sampling: SamplingParams, seed: int
    ) -> list[list[Trajectory]]:
        """`run` inside an event loop."""
        groups = self.attempts(tasks, group_size, sampling, seed)
        ended = await self.resume(groups, enough=len(groups))
        return [[each for each in group if isinstance(each, Trajectory)] for group in ended]

    def attempts(
        self,
        tasks: Sequence[Task],
        group_size: int,
        sampling: SamplingParams,
        seed: int,
        positions: Sequence[int] | None = None,
    ) -> list[list[Attempt]]:
        """The attempts that `run` makes, none of them begun.

        What is sampled depends on the seed and on the `positions` of the tasks: their own order,
        or, where several processes share the tasks, that among all of them.
        """
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        groups, renderer = [], self.speaker.renderer
        for position, task in zip(positions or range(len(tasks)), tasks, strict=True):
            prompt = renderer.prompt_ids(task) if renderer else ()
            if len(prompt) > self.limits.max_prompt_tokens:
                text = "task %s is skipped: its prompt of %d tokens exceeds max_prompt_tokens=%d"
                logger.warning(text, task.task_id, len(prompt), self.limits.max_prompt_tokens)
            groups.append(
                [Attempt(task, prompt, sampling, seed, position, n) for n in range(group_size)]
            )
        return groups

    async def resume(
        self, groups: Sequence[AttemptGroup], enough: int, must_finish: int = 0
    ) -> list[AttemptGroup]:
        """Go on until `enough` groups are complete, the first `must_finish` ones among them.

        Returns:
            The groups in their order, as far as they have come: a turn under way is given up, the
            turns before it stay. Attempts whose log-probabilities are not finite are left out.

        Raises:
            NotFiniteError: there are too many of them.
        """
        state = [[self._unless_too_long(each) for each in group] for group in groups]
        self.dropped = await self._play(state, enough, must_finish)
        if len(self.dropped) > MOST_DROPPED * sum(map(len, groups)):
            raise NotFiniteError(f"log-probabilities that are not finite: {self.dropped[:10]}")
        lengths = [
            len(each.prompt_ids) + response_tokens(each.turns)
            for each in chain(*state)
            if isinstance(each, Trajectory)
        ]
        if lengths:
            self._mean_tokens = sum(lengths) / len(lengths)
        return [[each for each in group if each is not None] for group in state]

    async def _play(self, groups: list[_GroupState], enough: int, must_finish: int) -> list[str]:
        """Replace each attempt by its trajectory, in place, until enough groups are complete.

        Returns the names of those that were dropped.
        """
        slots = asyncio.Semaphore(self._concurrency())
        episodes, dropped = list[Episode](), list[str]()

        async def play(group: _GroupState, place: int, it: Attempt) -> None:
            async with slots:
                episode = Episode(it, self.speaker, self.sandbox, self.limits, self.user)
                episodes.append(episode)
                try:
                    group[place] = await episode.run()
                except NotFiniteError as error:
                    group[place] = None
                    dropped.append(it.session)
                    logger.warning("attempt dropped: %s", error)
                finally:
                    if group[place] is it:
                        group[place] = episode.attempt

        # Tasks start in the order of their creation, so first turns are asked for in order.
        running = [
            asyncio.create_task(play(group, place, each))
            for group in groups
            for place, each in enumerate(group)
            if isinstance(each, Attempt)
        ]
        pending = set(running)
        try:
            with self._watched(episodes):
                while pending and not _are_enough(groups, enough, must_finish):
                    done, pending = await asyncio.wait(pending, return_when=FIRST_COMPLETED)
                    for task in done:
                        task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)  # hears all that failed at once
        return dropped

    @contextmanager
    def _watched(self, episodes: Sequence[Episode]) -> Iterator[None]:
        """Warn of episodes that stay too long in a stage, again after as long.

        It is looked from a thread: what hangs may be the event loop itself. It ends nothing;
        `EpisodeLimits.max_seconds` does.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(self.watchdog_s):
                late = defaultdict(list)
                for episode in tuple(episodes):
                    stage, since = episode.stage or ("", math.inf)
                    if time.monotonic() - since >= self.watchdog_s:
                        late[stage].append(episode.attempt.session)
                for stage, names in late.items():
                    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                    named = ", ".join(names[:NAMED]) + others
                    logger.warning(
                        "in stage %r for more than %g s: %s", stage, self.watchdog_s, named
                    )

        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _concurrency(self) -> int:
        if self.max_concurrent is not None:
            return self.max_concurrent
        tokens = self.speaker.cache_tokens
        return conversations_at_once(tokens, self._mean_tokens) if tokens else 1 << 30

    def _unless_too_long(self, each: Attempt | Trajectory) -> Attempt | Trajectory | None:
        if isinstance(each, Attempt) and len(each.prompt_ids) > self.limits.max_prompt_tokens:
            return each.to_trajectory(StopReason.PROMPT_TOO_LONG, self.speaker.version)
        return each


def is_complete(group: AttemptGroup) -> bool:
    """Whether all attempts of a group have ended."""
    return all(isinstance(each, Trajectory) for each in group)


def _are_enough(groups: Sequence[_GroupState], enough: int, must_finish: int) -> bool:
    """Whether so many groups are at their end, and the first `must_finish` are."""
    over = [not any(isinstance(each, Attempt) for each in group) for group in groups]
    return sum(over) >= enough and all(over[:must_finish])
