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

from matchtir.tools.pool import WorkerPool
from matchtir.tools.worker_process import Reply, WorkerProcess, WorkerSettings
from matchtir.types import ResultStatus, ToolSpec


@dataclass(frozen=True)
class CallExecutor:
    """How calls are executed.

    `options` are those of every call (its seconds, how values become text, and where that is cut),
    `fork` is "call", "episode" or "none": for what a process that runs tool code is made.
    """

    pool: WorkerPool
    settings: WorkerSettings
    options: Mapping[str, Any]
    fork: str

    async def call_function(self, episode: int, tool: ToolSpec, arguments: str) -> Reply:
        """Call a function, which has no state: its source is executed anew, in any worker."""
        key = _key(0 if self.fork == "none" else episode, [tool])
        request = {**self.request(tool, arguments), "key": key, "once": self.fork == "call"}
        return await self.pool.execute(self.settings.granting([tool]), request)

    def request(self, tool: ToolSpec, arguments: str) -> dict[str, Any]:
        """A call as a worker is told of it."""
        code = {"name": tool.name, "source": tool.source, "owner": tool.owner, "path": tool.path}
        own: dict[str, Any] = {"timeout_s": tool.timeout_s} if tool.timeout_s else {}
        own |= {"strict": True, "parameters": dict(tool.parameters)} if tool.strict else {}
        own |= {"stdout": True} if tool.stdout else {}
        return {"action": "call", "arguments": arguments, **code, **self.options, **own}


class ObjectRunner:
    """Methods of objects, one of each class that owns tools, in a worker of the session's own.

    The objects are made at the first request; requests are executed one by one, in order. A call
    that times out or crashes takes the objects with it: later calls say so, and there is no state
    to read any more. Where the process is killed from outside, the objects are made again, and the
    calls before are repeated.

    Args:
        tools: of the session, of any kind.
        state: arguments of the objects, by class; without any where a class is not among them.

    Raises:
        ValueError: a state for a class that owns no tool, or two classes of one name.
    """

    def __init__(
        self,
        calling: CallExecutor,
        episode: int,
        tools: Sequence[ToolSpec],
        state: Mapping[str, Any],
    ) -> None:
        self._calling = calling
        self._objects = _objects_of(tools, state)
        owned = [tool for tool in tools if tool.owner]
        self._settings = calling.settings.granting(owned)
        self._place = {"key": _key(episode, owned), "objects": self._objects, "once": False}
        self._earlier: list[dict[str, Any]] = []  # the calls so far
        self._worker: WorkerProcess | None = None
        self._lost = False
        self._order = asyncio.Lock()

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Call the method; where the objects could not be made, the reply says why."""
        request = {**self._calling.request(tool, arguments), "source": ""}
        reply = await self._ask(request)
        kept = ("name", "owner", "arguments", "parameters")
        again = {"strict": tool.strict, **{key: request[key] for key in kept if key in request}}
        self._earlier.append(again)
        return reply

    async def state(self) -> Mapping[str, Any] | None:
        """The public attributes of each object, by class; None where they are lost, or no JSON."""
        if not self._objects:
            return {}
        timeout_s = self._calling.options["timeout_s"]
        reply = await self._ask({"action": "state", "timeout_s": timeout_s})
        return json.loads(reply.output) if reply.status is ResultStatus.OK else None

    async def close(self) -> None:
        """Give the objects up, and the worker back."""
        async with self._order:
            if self._worker is not None:
                worker, self._worker = self._worker, None
                await self._calling.pool.take_back(worker)

    async def _ask(self, request: Mapping[str, Any]) -> Reply:
        async with self._order:
            if self._lost:
                owners = ", ".join(item["owner"] for item in self._objects)
                lost = f"{owners} and its state were lost with an earlier call"
                return Reply(ResultStatus.CRASHED, lost, 0.0)
            if self._worker is None:
                self._worker = await self._calling.pool.lend(self._settings)
            request = {**request, **self._place, "earlier": self._earlier}
            self._lost = True  # unless there is an answer
            reply = await self._calling.pool.execute_in(self._worker, request)
            self._lost = reply.hung or reply.status is ResultStatus.CRASHED
            return reply


def _key(episode: int, tools: Sequence[ToolSpec]) -> list[Any]:
    """Who shares a process that runs tool code, and which folders that one may read."""
    return [episode, sorted({os.path.dirname(tool.path) for tool in tools} - {""})]


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
