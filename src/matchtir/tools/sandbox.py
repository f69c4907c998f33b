"""Where calls are executed: a session per episode (open, call, close)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matchtir.types import ToolCall, ToolResult, ToolSpec


class SandboxSession(Protocol):
    """The tools of one episode; calls may run concurrently, those of a stateful set in order."""

    async def call(self, call: ToolCall) -> ToolResult:
        """Execute one call. Never raises for what the call or the tool did: the result says it."""
        ...

    async def state(self) -> Mapping[str, Any] | None:
        """Public attributes of each stateful object, by its class, as JSON values.

        None where they cannot be read: the process of the objects is gone, or never came up.
        """
        ...

    async def close(self) -> None:
        """Give up the session's state and processes."""
        ...


class Sandbox(Protocol):
    """Opens sessions; owns the processes that run tool code."""

    async def open(
        self, tools: Sequence[ToolSpec], state: Mapping[str, Any] | None = None
    ) -> SandboxSession:
        """A session that offers these tools.

        Args:
            state: for each class among the tools' owners, the arguments of its object.
        """
        ...

    def shutdown(self) -> None:
        """Stop every process; the sandbox cannot be used afterwards."""
        ...
