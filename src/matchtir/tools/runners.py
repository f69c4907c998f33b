"""What executes the calls of one session, by the kind of tool: functions, objects, MCP servers.

A runner gets the arguments as JSON text, checked; its reply is what the policy hears of.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tools.mcp import McpConnection, McpHost
from matchtir.tools.pool import WorkerPool
from matchtir.tools.process import Reply, WorkerProcess, WorkerSettings
from matchtir.types import McpServer, ResultStatus, ToolSpec


@dataclass(frozen=True)
class Calling:
    """How calls are executed.

    `options` are those of every call (its seconds, how values become text, and where that is cut),
    `fork` is "call", "episode" or "none": for what a process that runs tool code is made.
    """

    pool: WorkerPool
    settings: WorkerSettings
    options: Mapping[str, Any]
    fork: str


class FunctionRunner:
    """Python functions, without a state: every call executes the tool's source anew, in any worker.

    `episode` is the number of this one.
    """

    def __init__(self, calling: Calling, episode: int) -> None:
        self._calling = calling
        self._episode = 0 if calling.fork == "none" else episode

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Call the function, in the worker that is free first."""
        calling = self._calling
        place = {**_place(self._episode, [tool.path]), "once": calling.fork == "call"}
        request = {**call_request(tool, arguments, calling.options), **place}
        return await calling.pool.execute(calling.settings.granting([tool]), request)

    async def close(self) -> None:
        """End what the calls left running."""
        if self._episode:
            await self._calling.pool.end_episode(self._episode)


def call_request(tool: ToolSpec, arguments: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A call as a worker is told of it."""
    code = {"name": tool.name, "source": tool.source, "owner": tool.owner, "path": tool.path}
    own: dict[str, Any] = {"timeout_s": tool.timeout_s} if tool.timeout_s else {}
    own |= {"strict": True, "parameters": dict(tool.parameters)} if tool.strict else {}
    own |= {"stdout": True} if tool.stdout else {}
    return {"action": "call", "arguments": arguments, **code, **options, **own}


class ObjectRunner:
    """Methods of objects, one of each class that owns tools, in a worker of the session's own.

    The objects are made at the first request; requests are executed one by one, in order. A call
    that times out or crashes takes the objects with it: later calls say so, and there is no state
    to read any more. Where the process is killed from outside, the objects are made again, and the
    calls before are repeated.

    Args:
        episode: number of this one.
        tools: of the session, of any kind.
        state: arguments of the objects, by class; without any where a class is not among them.

    Raises:
        ValueError: a state for a class that owns no tool, or two classes of one name.
    """

    def __init__(
        self, calling: Calling, episode: int, tools: Sequence[ToolSpec], state: Mapping[str, Any]
    ) -> None:
        self._pool, self._options = calling.pool, calling.options
        self._objects = _objects_of(tools, state)
        owned = [tool for tool in tools if tool.owner]
        self._settings = calling.settings.granting(owned)
        self._place = {**_place(episode, [tool.path for tool in owned]), "objects": self._objects}
        self._earlier: list[dict[str, Any]] = []
        self._worker: WorkerProcess | None = None
        self._lost = False
        self._order = asyncio.Lock()

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Call the method; where the objects could not be made, the reply says why."""
        request = {**call_request(tool, arguments, self._options), "source": ""}
        reply = await self._ask(request)
        kept = ("name", "owner", "arguments", "parameters")
        again = {"strict": tool.strict, **{key: request[key] for key in kept if key in request}}
        self._earlier.append(again)
        return reply

    async def state(self) -> Mapping[str, Any] | None:
        """The public attributes of each object, by class; None where they are lost, or no JSON."""
        if not self._objects:
            return {}
        reply = await self._ask({"action": "state", "timeout_s": self._options["timeout_s"]})
        return json.loads(reply.output) if reply.status is ResultStatus.OK else None

    async def close(self) -> None:
        """Give the objects up, and the worker back."""
        async with self._order:
            if self._worker is not None:
                worker, self._worker = self._worker, None
                await self._pool.take_back(worker)

    async def _ask(self, request: Mapping[str, Any]) -> Reply:
        async with self._order:
            if self._lost:
                owners = ", ".join(item["owner"] for item in self._objects)
                lost = f"{owners} and its state were lost with an earlier call"
                return Reply(ResultStatus.CRASHED, lost, 0.0)
            if self._worker is None:
                self._worker = await self._pool.lend(self._settings)
            request = {**request, **self._place, "earlier": self._earlier, "once": False}
            try:
                reply = await self._pool.execute_in(self._worker, request)
            except BaseException:
                self._lost = True
                raise
            self._lost = reply.hung or reply.status is ResultStatus.CRASHED
            return reply


class McpRunner:
    """Tools of MCP servers, each server started at its first call."""

    def __init__(self, host: McpHost) -> None:
        self._host = host
        self._own: dict[McpServer, McpConnection] = {}

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Have the tool's server do it."""
        server = tool.server
        assert server is not None
        connection = self._own.get(server)
        if connection is None:
            connection = self._host.connect(server)
            if not server.shared:
                self._own[server] = connection
        return await self._host.call(connection, tool, arguments)

    async def close(self) -> None:
        """Stop the servers that are this session's own."""
        await asyncio.gather(*[connection.close() for connection in self._own.values()])


ToolRunner = FunctionRunner | ObjectRunner | McpRunner


def _place(episode: int, paths: Sequence[str]) -> dict[str, Any]:
    """In which process a request is executed, and which folders that one may read."""
    folders = sorted({os.path.dirname(path) for path in paths} - {""})
    return {"key": [episode, folders], "folders": folders}


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
