"""Stateful tool sets: the objects of one session, in a worker process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from matchtir.tools.worker_process import Reply, WorkerProcess
from matchtir.types import ResultStatus, ToolSpec

Ask = Callable[[Mapping[str, Any], WorkerProcess], Awaitable[Reply]]

_LOSING = (ResultStatus.TIMEOUT, ResultStatus.CRASHED)  # the process is gone


def objects_of(tools: Sequence[ToolSpec], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a worker needs to make an object of each class that owns some of the tools.

    Args:
        state: arguments of the objects, by class; without any where a class is not among them.

    Raises:
        ValueError: a state for a class that owns none, or two classes of one name.
    """
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


class StatefulObjects:
    """An object of each class, made at the first request; requests are done one by one, in order.

    A call that times out or crashes takes the objects with it: later calls say so, and there is no
    state to read any more.

    Args:
        ask: executes a request in a worker.
        worker: one that nobody else uses until `close` has returned.
        objects: from `objects_of`.
    """

    def __init__(
        self, ask: Ask, worker: WorkerProcess, objects: Sequence[Mapping[str, Any]]
    ) -> None:
        self.worker = worker
        self._ask = ask
        self._objects = objects
        self._opened: Reply | None = None  # how making them ended
        self._lost = False
        self.reusable = True  # whether another session may have the worker
        self._order = asyncio.Lock()

    async def ask(self, request: Mapping[str, Any]) -> Reply:
        """Execute a request; where the objects could not be made, the reply says why."""
        async with self._order:
            if self._opened is None:
                self._opened = await self._guarded({"action": "open", "objects": self._objects})
            if self._opened.status is not ResultStatus.OK:
                return self._opened
            return await self._guarded(request)

    async def state(self) -> Mapping[str, Any] | None:
        """The public attributes of each object; None where they are lost, or no JSON."""
        if self._lost:
            return None
        reply = await self.ask({"action": "state"})
        return json.loads(reply.output) if reply.status is ResultStatus.OK else None

    async def close(self) -> None:
        """Give the objects up."""
        if self._opened is not None and not self._lost:
            await self.ask({"action": "close"})

    async def _guarded(self, request: Mapping[str, Any]) -> Reply:
        try:
            reply = await self._ask(request, self.worker)
        except BaseException:  # cancelled: its thread may still be at work on the killed process
            self._lost, self.reusable = True, False
            raise
        self._lost |= reply.status in _LOSING
        return reply
