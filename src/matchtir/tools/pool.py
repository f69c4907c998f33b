"""The parent's side of the worker processes: start one, ask it, kill it; many of them, shared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from matchtir.tools import worker
from matchtir.types import ResultStatus

_START_S = 60.0  # a worker takes 0.03 s to start; only a machine in trouble takes longer
_MAX_REPLY_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request; `output` is a result or, of a failed one, what to tell."""

    status: ResultStatus
    output: str
    seconds: float


class WorkerProcess:
    """A process that executes one request at a time, under a deadline.

    It is started by the first request and again after it died. `execute` blocks, and is called by
    one thread at a time; `abandon` and `stop` may come from any thread. A worker whose parent
    dies ends at once when idle, else one second after the deadline of its call. (The kernel's
    parent-death signal is no way to get this: it fires when the *thread* ends that started it.)
    """

    def __init__(self, memory_mb: int, folder: str) -> None:
        self._memory_mb = memory_mb
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.RLock()  # of everything below and of the process's life
        self._serial = 0
        self._running: threading.Event | None = None
        self._stopped = False

    def execute(
        self, abandoned: threading.Event, request: Mapping[str, Any], timeout_s: float
    ) -> Reply:
        """Run one request; `abandoned` is its own and tells whether anybody still waits for it."""
        with self._lock:
            if self._stopped or abandoned.is_set():
                return Reply(ResultStatus.CRASHED, "it was stopped", 0.0)
            if not self._usable():
                self._end()
                self._start()
            self._running = abandoned
            self._serial += 1
        try:
            return self._ask({**request, "id": self._serial, "timeout_s": timeout_s}, timeout_s)
        finally:
            with self._lock:
                self._running = None

    def abandon(self, abandoned: threading.Event) -> None:
        """Kill the process if it is busy with that request."""
        with self._lock:
            if self._running is abandoned and self._process is not None:
                _kill(self._process)
                self._process.wait()  # so that the next request sees that it is gone

    def stop(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._stopped = True
            if self._running is not None and self._process is not None:
                _kill(self._process)  # the thread that waits for it ends it
            else:
                self._end()

    def _usable(self) -> bool:
        """Whether the process lives and is silent, as an idle one must be."""
        if self._process is None or self._channel is None or self._process.poll() is not None:
            return False
        poll = select.poll()  # unlike select, it takes any number of open files
        poll.register(self._channel, select.POLLIN)
        return not poll.poll(0)

    def _start(self) -> None:
        """Start the process; what it gives up before it runs tools is `worker.confine`."""
        os.makedirs(self._folder, exist_ok=True)  # a tool may have removed it
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            # The environment is ours alone, so -I adds nothing but randomised string hashes.
            command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", worker.__file__]
            self._process = subprocess.Popen(
                [*command, str(descriptor), str(self._memory_mb)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                cwd=self._folder,
                env=_environment(),
                start_new_session=True,  # a group of its own: killed with what it started
            )
        self._channel = ours
        try:
            self._receive(time.monotonic() + _START_S)
        except (OSError, EOFError) as error:
            raise RuntimeError(
                f"a tool process does not start: {' '.join(command)}, memory_mb {self._memory_mb}, "
                f"exit code {self._end()}"
            ) from error

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> Reply:
        started = time.monotonic()
        try:
            self._send(request, started + timeout_s)
            reply = self._receive(started + timeout_s)
            seconds = time.monotonic() - started
            if reply["id"] != request["id"]:
                raise ValueError("not the reply to this request")
            if reply["last"]:
                self._end()
            return Reply(ResultStatus(reply["status"]), str(reply["output"]), seconds)
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
            return self._died(error, time.monotonic() - started, timeout_s)

    def _died(self, error: Exception, seconds: float, timeout_s: float) -> Reply:
        code = self._end()
        # By our deadline or, behind it, by the worker's own.
        if isinstance(error, TimeoutError) or seconds >= timeout_s:
            return Reply(ResultStatus.TIMEOUT, f"{timeout_s:g}", seconds)
        if not isinstance(error, (OSError, EOFError)):
            cause = "it disturbed the protocol"
        elif code < 0:
            cause = signal.strsignal(-code) or f"signal {-code}"
        else:
            cause = f"exit code {code}"
        return Reply(ResultStatus.CRASHED, cause, seconds)

    def _end(self) -> int:
        """Kill and reap the process, if there is one; its exit code, negative for a signal."""
        with self._lock:
            code = 0
            if self._process is not None:
                _kill(self._process)
                code = self._process.wait()
                self._process = None
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            return code

    def _send(self, request: Mapping[str, Any], deadline: float) -> None:
        body = json.dumps(request).encode()
        self._until(deadline).sendall(worker.HEADER.pack(len(body)) + body)

    def _receive(self, deadline: float) -> Any:
        (size,) = worker.HEADER.unpack(self._read(worker.HEADER.size, deadline))
        if size > _MAX_REPLY_BYTES:
            raise ValueError("a reply of impossible length")
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._until(deadline).recv(size - len(data))
            if not part:
                raise EOFError("the process closed its end")
            data += part
        return bytes(data)

    def _until(self, deadline: float) -> socket.socket:
        """The channel, on which waiting ends at the deadline."""
        assert self._channel is not None
        self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
        return self._channel


class WorkerPool:
    """Processes, each started when first needed, that execute requests of any event loop.

    Each has a thread here that blocks on its pipe. So a deadline is kept, and the next request
    started, also while the event loop is busy with the model; and nothing is bound to an event
    loop, so successive `asyncio.run`, and loops of several threads, may use one pool. A request
    waits for a free worker, first come first served; its deadline starts when its execution does.

    Args:
        workers: requests executed at once; processes at most, apart from those that are lent.
        timeout_s: seconds that one request may take; then its process is killed.
        memory_mb: address space of a process in MiB, 0 for no limit.
    """

    def __init__(self, workers: int, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
        self._folder = folder.name
        self._workers = [WorkerProcess(memory_mb, folder.name) for _ in range(workers)]
        # The last one used is the first to be used again, so that few stay warm when few suffice.
        self._free = deque(self._workers)
        self._lendable: deque[WorkerProcess] = deque()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="matchtir-tools")
        # Kills everything, once; runs at exit too, and when the pool is forgotten.
        self.stop = weakref.finalize(self, _stop, self._workers, self._threads, folder)

    async def ask(self, request: Mapping[str, Any], lent: WorkerProcess | None = None) -> Reply:
        """Execute one request, in a lent worker or in any free one."""
        abandoned = threading.Event()
        free = self._free if lent is None else deque([lent])
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, _execute, free, abandoned, request, self._timeout_s
            )
        except asyncio.CancelledError:
            abandoned.set()
            for each in tuple(self._workers):
                each.abandon(abandoned)
            raise

    def lend(self) -> WorkerProcess:
        """A worker that nobody else uses, until it is given back."""
        try:
            return self._lendable.pop()
        except IndexError:
            worker = WorkerProcess(self._memory_mb, self._folder)
            self._workers.append(worker)
            return worker

    def take_back(self, lent: WorkerProcess, reusable: bool) -> None:
        """Take a lent worker back, to lend it again or to end it."""
        if reusable:
            self._lendable.append(lent)
        else:
            lent.stop()
            self._workers.remove(lent)


def _execute(
    free: deque[WorkerProcess],
    abandoned: threading.Event,
    request: Mapping[str, Any],
    timeout_s: float,
) -> Reply:
    """What a thread of the pool does; it holds no reference to the pool."""
    process = free.pop()  # there are as many workers as threads
    try:
        return process.execute(abandoned, request, timeout_s)
    finally:
        free.append(process)


def _stop(
    workers: Sequence[WorkerProcess],
    threads: ThreadPoolExecutor,
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for process in workers:
        process.stop()
    threads.shutdown(wait=True)
    folder.cleanup()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group; before it is reaped, so that the id is still its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """The worker's environment: no secrets of ours, one thread, and the same hashes every time."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    fixed = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    return {**kept, **fixed, "OPENBLAS_NUM_THREADS": "1"}
