"""What executes the calls of one session, by the kind of tool: functions, objects, MCP servers.

A runner gets the arguments as JSON text, checked; its reply is what the policy hears of.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matchtir.tools.mcp import McpConnection, McpHost
from matchtir.tools.pool import Reply, WorkerPool, WorkerProcess
from matchtir.types import McpServer, ResultStatus, ToolSpec

_LOSING = (ResultStatus.TIMEOUT, ResultStatus.CRASHED)  # the process is gone


class ToolRunner(Protocol):
    """Executes calls to tools of one kind."""

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Execute one call; never raises for what the tool does."""
        ...


class FunctionRunner:
    """Python functions, without a state: every call executes the tool's source anew, in any worker.

    Args:
        pool: of the workers.
        options: of every call: how values become text, and where that is cut.
    """

    def __init__(self, pool: WorkerPool, options: Mapping[str, Any]) -> None:
        self._pool = pool
        self._options = options

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Call the function, in the worker that is free first."""
        return await self._pool.ask(self.request(tool, arguments))

    def request(self, tool: ToolSpec, arguments: str) -> dict[str, Any]:
        """A call as a worker is told of it."""
        code = {"name": tool.name, "source": tool.source, "owner": tool.owner, "path": tool.path}
        return {"action": "call", "arguments": arguments, **code, **self._options}


class ObjectRunner:
    """Methods of objects, one of each class that owns tools, in a worker of the session's own.

    The objects are made at the first request; requests are executed one by one, in order. A call
    that times out or crashes takes the objects with it: later calls say so, and there is no state
    to read any more.

    Args:
        functions: makes the requests of calls.
        pool: lends the worker.
        tools: of the session, of any kind.
        state: arguments of the objects, by class; without any where a class is not among them.

    Raises:
        ValueError: a state for a class that owns no tool, or two classes of one name.
    """

    def __init__(
        self,
        functions: FunctionRunner,
        pool: WorkerPool,
        tools: Sequence[ToolSpec],
        state: Mapping[str, Any],
    ) -> None:
        self._functions = functions
        self._pool = pool
        self._objects = _objects_of(tools, state)
        self._worker: WorkerProcess | None = None
        self._opened: Reply | None = None  # how making the objects ended
        self._lost = False
        self._cancelled = False
        self._order = asyncio.Lock()

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Call the method; where the objects could not be made, the reply says why."""
        return await self._ask(self._functions.request(tool, arguments))

    async def state(self) -> Mapping[str, Any] | None:
        """The public attributes of each object, by class; None where they are lost, or no JSON."""
        if not self._objects:
            return {}
        if self._lost:
            return None
        reply = await self._ask({"action": "state"})
        return json.loads(reply.output) if reply.status is ResultStatus.OK else None

    async def close(self) -> None:
        """Give the objects up, and the worker back."""
        if self._worker is None or not self._pool.stop.alive:
            return
        if self._opened is not None and not self._lost:
            await self._ask({"action": "close"})
        # Of a cancelled request, the thread may still be at work on the killed process.
        self._pool.take_back(self._worker, reusable=not self._cancelled)

    async def _ask(self, request: Mapping[str, Any]) -> Reply:
        async with self._order:
            if self._worker is None:
                self._worker = self._pool.lend()
            if self._opened is None:
                self._opened = await self._execute({"action": "open", "objects": self._objects})
            if self._opened.status is not ResultStatus.OK:
                return self._opened
            return await self._execute(request)

    async def _execute(self, request: Mapping[str, Any]) -> Reply:
        try:
            reply = await self._pool.ask(request, self._worker)
        except BaseException:
            self._lost = self._cancelled = True
            raise
        self._lost |= reply.status in _LOSING
        return reply


class McpRunner:
    """Tools of MCP servers, each server started at its first call."""

    def __init__(self, host: McpHost) -> None:
        self._host = host
        self._connections: dict[McpServer, McpConnection] = {}

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Have the tool's server do it."""
        return await self._host.run(self._call(tool, arguments))

    async def close(self) -> None:
        """Stop the servers that are this session's own."""
        if self._connections:
            await self._host.run(self._close())

    async def _call(self, tool: ToolSpec, arguments: str) -> Reply:
        server = tool.server
        assert server is not None
        connection = self._connections.get(server)
        if connection is None or (server.shared and connection.ended):
            connection = self._connections[server] = await self._host.connect(server)
        return await self._host.call(connection, tool.name, arguments)

    async def _close(self) -> None:
        for server, connection in self._connections.items():
            if not server.shared:
                await connection.close()


def _objects_of(tools: Sequence[ToolSpec], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a worker needs to make an object of each class that owns some of the tools."""
    places: dict[str, tuple[str, str]] = {}
    for tool in tools:
        place = tool.source, tool.path
        if tool.owner and places.setdefault(tool.owner, place) != place:
            raise ValueError(f"the tools of one session belong to two classes called {tool.owner}")
    unknown = sorted(state.keys() - places.keys())
    if unknown:
        owners = ", ".join(places) or "none"
        raise ValueError(f"a state of {unknown[0]}, which owns no tool (owners: {owners})")
    return [
        {"owner": owner, "source": source, "path": path, "state": dict(state.get(owner, {}))}
        for owner, (source, path) in places.items()
    ]
