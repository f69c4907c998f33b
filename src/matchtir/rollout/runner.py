"""Groups of episodes: all of them at once, until all or enough of them are complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import Attempt, Episode, EpisodeLimits, Speaker, Watchdog
from matchtir.tools.sandbox import Sandbox
from matchtir.types import StopReason, Task, Trajectory

logger = logging.getLogger(__name__)

# A group in which some attempts may not be at their end yet.
PartialGroup = Sequence[Attempt | Trajectory]


class EpisodeRunner:
    """Samples groups of trajectories.

    Args:
        speaker: says the turns.
        sandbox: executes the calls.
        limits: where episodes end.
        max_concurrent: episodes under way at the same time; the others wait for a place, in order.
        watchdog_s: an episode that is longer in one stage is named in a warning.

    Raises:
        ValueError: `max_concurrent` below 1.
    """

    def __init__(
        self,
        speaker: Speaker,
        sandbox: Sandbox,
        limits: EpisodeLimits,
        max_concurrent: int = 256,
        watchdog_s: float = 300.0,
    ) -> None:
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, got {max_concurrent}")
        self.speaker = speaker
        self.sandbox = sandbox
        self.limits = limits
        self.max_concurrent = max_concurrent
        self.watchdog = Watchdog(watchdog_s)

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
        ended = await self.go_on(groups, enough=len(groups))
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
        return [
            [Attempt(task, prompt_ids, sampling, seed, position, n) for n in range(group_size)]
            for position, task in zip(positions or range(len(tasks)), tasks, strict=True)
            for prompt_ids in [self._prompt(task)]
        ]

    async def go_on(
        self, groups: Sequence[PartialGroup], enough: int, urgent: int = 0
    ) -> list[PartialGroup]:
        """Go on until `enough` groups are complete, the first `urgent` ones among them.

        Returns:
            The groups in their order, as far as they have come: a turn under way is given up, the
            turns before it stay.
        """
        under_way = [[self._begin(each) for each in group] for group in groups]
        slots = asyncio.Semaphore(self.max_concurrent)
        # Tasks start in the order of their creation, so first turns are asked for in order.
        running = [asyncio.create_task(_finish(group, slots)) for group in under_way]
        try:
            with self.watchdog.watching():
                await _wait_for(running, enough, urgent)
        except BaseExceptionGroup as errors:
            # One failure of an engine reaches many episodes: raise it once, as itself.
            raise _first(errors) from None
        return [[_so_far(each) for each in group] for group in under_way]

    def _begin(self, attempt: Attempt | Trajectory) -> Episode | Trajectory:
        """Nothing is to be done for what is at its end, or too long to begin."""
        if isinstance(attempt, Trajectory):
            return attempt
        if len(attempt.prompt_ids) > self.limits.max_prompt_tokens:
            return attempt.ended(StopReason.PROMPT_TOO_LONG, self.speaker.version)
        return Episode(attempt, self.speaker, self.sandbox, self.limits, self.watchdog)

    def _prompt(self, task: Task) -> tuple[int, ...]:
        prompt_ids = self.speaker.prompt_ids(task)
        if len(prompt_ids) > self.limits.max_prompt_tokens:
            logger.warning(
                "task %s is skipped: its prompt of %d tokens exceeds max_prompt_tokens=%d",
                task.task_id,
                len(prompt_ids),
                self.limits.max_prompt_tokens,
            )
        return prompt_ids


def is_complete(group: PartialGroup) -> bool:
    """Whether all attempts of a group have ended."""
    return all(isinstance(each, Trajectory) for each in group)


def _so_far(each: Episode | Trajectory) -> Attempt | Trajectory:
    return each if isinstance(each, Trajectory) else each.trajectory or each.attempt


async def _finish(group: Sequence[Episode | Trajectory], slots: asyncio.Semaphore) -> None:
    """All episodes of a group, each with a place of its own."""

    async def run(episode: Episode) -> None:
        async with slots:
            await episode.run()

    async with asyncio.TaskGroup() as tasks:
        for each in group:
            if isinstance(each, Episode):
                tasks.create_task(run(each))


async def _wait_for(running: Sequence[asyncio.Task[None]], enough: int, urgent: int) -> None:
    """Until `enough` tasks are done, the first `urgent` among them; the others are cancelled.

    Raises what a task raised.
    """
    pending = set(running)
    try:
        while len(running) - len(pending) < enough or not pending.isdisjoint(running[:urgent]):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error in a group of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
