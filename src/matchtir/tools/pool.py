"""Many workers: shared by the calls of all episodes, and lent to sessions that have objects."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from matchtir.tools.worker_process import Reply, WorkerProcess, WorkerSettings

log = logging.getLogger(__name__)

_IDLE_S = 30.0  # a worker that nobody needs for so long is ended, but for the first few
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class WorkerPool:
    """Processes, each started when first needed, that execute requests of one event loop.

    That loop is a thread's own (`LoopThread`): so a request is started, and a deadline kept, also
    while the loop of the episodes is busy with the model. A request waits for its turn, first come
    first served; its deadline starts when its execution does.

    Args:
        workers: requests executed at once, not counting those that take long; as many idle
            processes are kept.
        max_workers: requests executed at once, counting all.
        max_sessions: workers lent at once; further sessions wait.

    `kills` counts how often a process was killed from outside, and its request repeated.
    """

    def __init__(self, workers: int, max_workers: int, max_sessions: int) -> None:
        self.kills = 0
        self._workers = workers
        self._turns = asyncio.Semaphore(workers)
        self._running = asyncio.Semaphore(max_workers)
        self._sessions = asyncio.Semaphore(max_sessions)
        self._folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
        self._numbers = itertools.count()
        self._all: set[WorkerProcess] = set()
        self._lent: set[WorkerProcess] = set()
        self._free: list[WorkerProcess] = []  # the last one used is the first to be used again
        self._returned = asyncio.Event()
        self._sweep: asyncio.TimerHandle | None = None

    async def execute(self, settings: WorkerSettings, request: Mapping[str, Any]) -> Reply:
        """Execute one request, in any worker that has these settings."""
        async with self._turn() as release_turn:
            process = await self._take(settings, request["key"])
            try:
                return await process.execute(request, release_turn)
            finally:
                self._give_back(process)

    async def execute_in(self, lent: WorkerProcess, request: Mapping[str, Any]) -> Reply:
        """Execute one request in a lent worker."""
        async with self._turn() as release_turn:
            return await lent.execute(request, release_turn)

    async def lend(self, settings: WorkerSettings) -> WorkerProcess:
        """A worker that nobody else uses, until it is taken back."""
        if self._sessions.locked():
            log.info("a session waits: %d have a process of their own", len(self._lent))
        await self._sessions.acquire()
        try:
            lent = await self._take(settings, None)
        except BaseException:
            self._sessions.release()
            raise
        self._lent.add(lent)
        return lent

    async def take_back(self, lent: WorkerProcess) -> None:
        """Share a lent worker again; what it runs is ended before anything else."""
        self._lent.remove(lent)
        self._give_back(lent)
        try:
            await self._clear([lent])
        finally:
            self._sessions.release()

    async def end_episode(self, episode: int) -> None:
        """End what the calls of an episode left running."""
        await self._clear([each for each in self._free if each.key and each.key[0] == episode])

    async def _clear(self, processes: Sequence[WorkerProcess]) -> None:
        """End the tool code of these, unless others have them by now."""
        end = {"action": "end", "timeout_s": 5.0}
        await asyncio.gather(*[each.execute({**end, "key": each.key}) for each in processes])

    async def report(self, settings: WorkerSettings) -> tuple[str, Mapping[str, str]]:
        """The isolation of a worker, in words, and why each missing part is missing."""
        process = await self._take(settings, None)
        self._give_back(process)
        return process.in_force, process.missing

    async def stop(self) -> None:
        """End every process, and all else that runs in this loop: it is cancelled."""
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for process in self._all:
            process.end()
        await asyncio.sleep(0)  # their channels close in the next round of the loop
        self._folder.cleanup()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a turn; yields what passes it on early, for requests that take long."""
        waited_for = True

        def release_turn() -> None:
            nonlocal waited_for
            if waited_for:
                waited_for = False
                self._turns.release()

        await self._turns.acquire()
        try:
            async with self._running:
                yield release_turn
        finally:
            release_turn()

    async def _take(self, settings: WorkerSettings, key: Any) -> WorkerProcess:
        """A worker that nobody uses: of the same episode, or any free one, or a new one.

        Where descriptors or processes run out, an idle one goes for it, or it waits for one.
        """
        while True:
            fitting = [each for each in self._free if each.settings == settings]
            if fitting:
                found = next((each for each in fitting if each.key == key), fitting[-1])
                self._free.remove(found)
                return found
            made = WorkerProcess(settings, f"{self._folder.name}/{next(self._numbers)}")
            others = (self._all if key is None else self._all - self._lent).copy()
            self._all.add(made)
            try:
                await made.start()
                return made
            except BaseException as error:
                self._end(made)
                scarce = isinstance(error, OSError) and error.errno in _SCARCE
                # What only sessions have will not come back to those that they wait for.
                if not (scarce and others):
                    raise
            if self._free:
                self._end(self._free.pop(0))
                await asyncio.sleep(0)
            else:
                self._returned.clear()
                await self._returned.wait()

    def _give_back(self, process: WorkerProcess) -> None:
        self.kills += process.kills
        process.kills, process.idle_since = 0, time.monotonic()
        if process.lives:
            self._free.append(process)
        else:
            self._end(process)
        self._returned.set()
        self._watch()

    def _watch(self) -> None:
        if self._sweep is None and len(self._free) > self._workers:
            self._sweep = asyncio.get_running_loop().call_later(_IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        """End workers that were idle for long, but for those that were used last."""
        self._sweep, now = None, time.monotonic()
        for process in self._free[: -self._workers]:
            if now - process.idle_since >= _IDLE_S:
                self._free.remove(process)
                self._end(process)
        self._watch()

    def _end(self, process: WorkerProcess) -> None:
        process.end()
        self._all.discard(process)
