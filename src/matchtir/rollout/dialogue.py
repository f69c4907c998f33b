"""An episode whose turns somebody else writes, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torch import nn

from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.runner import EpisodeRunner
from matchtir.tools.formats import HERMES, CallFormat
from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, ToolResult, Trajectory


class Dialogue:
    """One episode of the episode loop, from outside: say a turn, hear its results.

    Args:
        task: what the episode is about.
        sandbox: executes the calls.
        max_turns: where the episode ends at the latest.
    """

    def __init__(self, task: Task, sandbox: Sandbox, max_turns: int) -> None:
        self._turns = _WrittenTurns()
        limits = EpisodeLimits(max_turns).without_tokens()
        runner = EpisodeRunner(self._turns, self._turns, sandbox, limits)
        self._episode = asyncio.create_task(runner.run_async([task], 1, SamplingParams(), seed=0))

    async def say(self, text: str) -> tuple[ToolResult, ...] | Trajectory:
        """Write the next turn; the results of its calls, or the whole episode where it ends it.

        Raises:
            RuntimeError: the episode has ended.
        """
        if self._episode.done():
            raise RuntimeError("the episode has ended")
        await self._turns.asked.get()  # for this turn
        self._turns.written.put_nowait(text)
        asked = asyncio.ensure_future(self._turns.asked.get())  # for the next one
        try:
            await asyncio.wait({asked, self._episode}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            asked.cancel()  # or it would take what the next turn waits for
            raise
        if self._episode.done():
            asked.cancel()
            [[trajectory]] = self._episode.result()
            return trajectory
        self._turns.asked.put_nowait(None)
        return self._turns.results

    def abandon(self) -> None:
        """Begin to end the episode, wherever it is; its session is closed all the same."""
        self._episode.cancel()


class _WrittenTurns:
    """Engine and conversation format in one: its vocabulary has one id for each turn."""

    own_weights = True
    calls: CallFormat = HERMES

    def __init__(self) -> None:
        self.version = 0
        self.asked: asyncio.Queue[None] = asyncio.Queue()
        self.written: asyncio.Queue[str] = asyncio.Queue()
        self.results: tuple[ToolResult, ...] = ()
        self._texts = [""]  # by id; the first stands for what is no turn

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        return (0,)

    def observation_ids(
        self, results: Sequence[ToolResult], turn_ids: Sequence[int]
    ) -> tuple[int, ...]:
        self.results = tuple(results)
        return (0,)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self._texts[index] for index in token_ids)

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        self.asked.put_nowait(None)
        self._texts.append(await self.written.get())
        return Generation((len(self._texts) - 1,), (0.0,), stopped=True)

    def release(self, session: str) -> None:
        """Nothing is kept for a session."""

    def sync(self, policy: nn.Module, version: int) -> None:
        raise NotImplementedError("turns that are written have no weights")

    def close(self) -> None:
        """There is nothing to give up."""
