"""Given calls executed for their results, without a policy and its turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, ToolCall, ToolResult


def execute_calls(
    attempts: Sequence[tuple[Task, Sequence[ToolCall]]], sandbox: Sandbox
) -> list[list[ToolResult]]:
    """The results of each task's calls, in order; all of them run as far as workers are free."""

    async def execute(task: Task, calls: Sequence[ToolCall]) -> list[ToolResult]:
        session = await sandbox.open(task.tools)
        try:
            return await asyncio.gather(*[session.call(call) for call in calls])
        finally:
            await session.close()

    async def execute_all() -> list[list[ToolResult]]:
        return await asyncio.gather(*[execute(task, calls) for task, calls in attempts])

    return asyncio.run(execute_all())
