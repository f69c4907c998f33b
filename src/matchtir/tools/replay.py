"""Given calls executed for their results, without a policy and its turns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, ToolCall, ToolResult


@dataclass(frozen=True, slots=True)
class Replay:
    """What calls did in a session of their own."""

    results: tuple[ToolResult, ...]  # one per call, in order
    state: Mapping[str, Any] | None  # of the objects afterwards, by class; None: lost


async def replay_calls(task: Task, calls: Sequence[ToolCall], sandbox: Sandbox) -> Replay:
    """Execute the calls with the task's tools, from its initial state."""
    session = await sandbox.open(task.tools, task.initial_state)
    try:
        results = await asyncio.gather(*[session.call(call) for call in calls])
        return Replay(tuple(results), await session.state())
    finally:
        await session.close()


def replay_all(
    attempts: Sequence[tuple[Task, Sequence[ToolCall]]], sandbox: Sandbox, max_concurrent: int = 64
) -> list[Replay]:
    """Each task's calls, in sessions of their own, so many at once."""

    async def run() -> list[Replay]:
        slots = asyncio.Semaphore(max_concurrent)

        async def one(task: Task, calls: Sequence[ToolCall]) -> Replay:
            async with slots:
                return await replay_calls(task, calls, sandbox)

        return await asyncio.gather(*[one(task, calls) for task, calls in attempts])

    return asyncio.run(run())
