"""Where calls are executed: a session per episode (open, call, close)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matchtir.types import ToolCall, ToolResult, ToolSpec


class SandboxSession(Protocol):
    """The tools of one episode; calls may run concurrently."""

    async def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. Never raises for what the call or the tool did: the result says it."""
        ...

    async def close(self) -> None:
        """Give up the session's state and processes."""
        ...


class Sandbox(Protocol):
    """Opens sessions; owns the processes that run tool code."""

    async def open(self, tools: Sequence[ToolSpec]) -> SandboxSession: ...

    def shutdown(self) -> None:
        """Stop every process; the sandbox cannot be used afterwards."""
        ...
