"""The tools of one episode: a sandbox session that is opened at the first call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from matchtir.tools.sandbox import Sandbox, SandboxSession
from matchtir.types import CallStatus, Task, ToolCall, ToolResult, Turn


class EpisodeTools:
    """Executes the calls of an episode.

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
