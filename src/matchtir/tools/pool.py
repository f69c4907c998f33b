"""Many workers, shared by the episodes of any event loop, and lent to those that have objects."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from matchtir.tools.process import Reply, WorkerProcess, WorkerSettings

END = {"action": "end", "key": None, "timeout_s": 5.0}  # a request: end what runs tool code


@dataclass(eq=False, slots=True)
class _Job:
    """A request that waits for its turn; `lent` is the worker that has to execute it, if any."""

    request: Mapping[str, Any]
    lent: WorkerProcess | None = None
    reply: Future[Reply] = field(default_factory=Future)
    abandoned: threading.Event = field(default_factory=threading.Event)


class _Queue:
    """Jobs in order, and threads that block on the workers' channels meanwhile."""

    def __init__(self, settings: WorkerSettings, workers: int, max_workers: int) -> None:
        self.settings, self.workers, self.max_workers = settings, workers, max_workers
        self.folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
        self.all: list[WorkerProcess] = []
        self.losses = 0
        self._free: list[WorkerProcess] = []  # the last one used is the first to be used again
        self._waiting: deque[_Job] = deque()
        self._running = self._hanging = self._made = 0
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="matchtir-tools")
        self._stopped = False

    def add(self, job: _Job) -> None:
        """Execute it when it is its turn; raises RuntimeError after `stop`."""
        with self._lock:
            if self._stopped:
                raise RuntimeError("no tool can be called after shutdown")
            self._waiting.append(job)
            self._start_next()

    def make(self) -> WorkerProcess:
        """A new worker."""
        with self._lock:
            self._made += 1
            made = WorkerProcess(self.settings, f"{self.folder.name}/{self._made}")
            self.all.append(made)
            return made

    def end_episode(self, episode: int) -> list[_Job]:
        """Have free workers end what an episode left running."""
        jobs = []
        with self._lock:
            mine = [each for each in self._free if each.key and each.key[0] == episode]
            for process in () if self._stopped else mine:
                self._free.remove(process)
                jobs.append(_Job(END))
                self._running += 1
                self._threads.submit(self._run, jobs[-1], process)
        return jobs

    def stop(self) -> None:
        """Kill everything: running calls crash, waiting ones are cancelled, later ones raise."""
        with self._lock:
            self._stopped = True
            for job in self._waiting:
                job.reply.cancel()
            self._waiting.clear()
        for process in tuple(self.all):
            process.stop()
        self._threads.shutdown(wait=True)
        self.folder.cleanup()

    def _start_next(self) -> None:
        while (
            self._waiting
            and self._running - self._hanging < self.workers
            and self._running < self.max_workers
        ):
            job = self._waiting.popleft()
            if job.reply.set_running_or_notify_cancel():
                self._running += 1
                self._threads.submit(self._run, job, job.lent or self._take(job.request["key"]))

    def _take(self, key: Any) -> WorkerProcess:
        """A free worker, of the same episode if there is one."""
        for index, process in enumerate(self._free):
            if process.key == key:
                return self._free.pop(index)
        return self._free.pop() if self._free else self.make()

    def _run(self, job: _Job, process: WorkerProcess) -> None:
        hanging = 0

        def hangs() -> None:
            nonlocal hanging
            with self._lock:
                hanging = 1
                self._hanging += 1
                self._start_next()

        try:
            reply = process.execute(job.abandoned, job.request, hangs)
        except BaseException as error:
            self._done(process, job, hanging)
            job.reply.set_exception(error)
        else:
            self._done(process, job, hanging)
            job.reply.set_result(reply)

    def _done(self, process: WorkerProcess, job: _Job, hanging: int) -> None:
        with self._lock:
            self.losses += process.losses
            process.losses = 0
            self._running -= 1
            self._hanging -= hanging
            shared = process is not job.lent
            surplus = shared and (len(self._free) >= self.workers or not process.lives)
            if surplus:
                self.all.remove(process)
            elif shared:
                self._free.append(process)
            self._start_next()
        if surplus:
            process.stop()


class WorkerPool:
    """Processes, each started when first needed, that execute requests of any event loop.

    Each request has a thread here that blocks on its worker's channel. So a deadline is kept, and
    the next request started, also while the event loop is busy with the model; and nothing is bound
    to an event loop, so successive `asyncio.run`, and loops of several threads, may use one pool.
    A request waits for a free worker, first come first served; its deadline starts when its
    execution does.

    Args:
        settings: of the workers.
        workers: requests executed at once, not counting those that take long.
        max_workers: requests executed at once, counting all.
    """

    def __init__(self, settings: WorkerSettings, workers: int, max_workers: int) -> None:
        self._queue = _Queue(settings, workers, max_workers)
        self._lendable: deque[WorkerProcess] = deque()
        # Kills everything, once; runs at exit too, and when the pool is forgotten.
        self.stop = weakref.finalize(self, self._queue.stop)

    @property
    def losses(self) -> int:
        """How often a process was killed from outside, and its request repeated."""
        return self._queue.losses

    async def ask(self, request: Mapping[str, Any], lent: WorkerProcess | None = None) -> Reply:
        """Execute one request, in a lent worker or in any free one."""
        job = _Job(request, lent)
        self._queue.add(job)
        try:
            return await asyncio.wrap_future(job.reply)
        except asyncio.CancelledError:
            job.abandoned.set()
            for each in tuple(self._queue.all):
                each.abandon(job.abandoned)
            raise

    async def end_episode(self, episode: int) -> None:
        """End what the functions of an episode left running."""
        for job in self._queue.end_episode(episode):
            await asyncio.wrap_future(job.reply)

    def lend(self) -> WorkerProcess:
        """A worker that nobody else uses, until it is given back."""
        try:
            return self._lendable.pop()
        except IndexError:
            return self._queue.make()

    def take_back(self, lent: WorkerProcess, reusable: bool) -> None:
        """Take a lent worker back, to lend it again or to end it."""
        if reusable:
            self._lendable.append(lent)
        else:
            lent.stop()
            self._queue.all.remove(lent)
