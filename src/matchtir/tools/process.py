"""One worker process as its parent sees it: started, asked, ended."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matchtir.tools import isolation, worker
from matchtir.types import ResultStatus

log = logging.getLogger(__name__)

_SOURCES = str(Path(__file__).parents[2])
_START = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); from matchtir.tools import isolation; "
    "from matchtir.tools import worker; sys.path.remove(sys.argv[1]); "
    "{function}(**json.loads(sys.argv[2]))"
)
_START_S = 60.0  # a worker takes 0.1 s to start; only a machine in trouble takes longer
_GRACE_S = 0.5  # a worker keeps the deadline; this much later it is stuck itself
_PATIENCE_S = 0.25  # a call that takes longer gives its place up to those that wait
_ATTEMPTS = 3  # at a call whose process is killed from outside


class IsolationError(RuntimeError):
    """Isolation that is required, and not to be had here."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request; `output` is a result or, of a failed one, what to tell."""

    status: ResultStatus
    output: str
    seconds: float
    hung: bool = False  # until its deadline, in a call or already in loading the source


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How workers are started: isolation, grants, limits, and modules to import beforehand."""

    isolation: str = "best"
    network: bool = False
    environment: tuple[str, ...] = ()  # names of variables that they get
    memory_mb: int = 1_024
    preload: tuple[str, ...] = ()


class WorkerProcess:
    """A process that executes one request at a time, under a deadline.

    It is started by the first request and again after it died. `execute` blocks, and is called by
    one thread at a time; `abandon` and `stop` may come from any thread. A worker whose parent
    dies ends at once, whatever it does.
    """

    def __init__(self, settings: WorkerSettings, folder: str) -> None:
        self.key: Any = None  # for whom it executed its last request
        self.losses = 0  # how often it was killed from outside
        self.in_force = ""  # its isolation, in words
        self.missing: Mapping[str, str] = {}  # parts of isolation, and why they are missing
        self._settings = settings
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.RLock()  # of everything above and of the process's life
        self._running: threading.Event | None = None
        self._stopped = False

    def execute(
        self,
        abandoned: threading.Event,
        request: Mapping[str, Any],
        hangs: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Run one request; `abandoned` is its own and tells whether anybody still waits for it.

        `hangs` is called where it takes long. A request whose process is killed from outside is
        repeated, a few times.
        """
        self.key = request["key"]
        for _ in range(_ATTEMPTS):
            with self._lock:
                if self._stopped or abandoned.is_set():
                    break
                if not self.lives:
                    self._end()
                    self._start()
                self._running = abandoned
            try:
                reply = self._ask(request, hangs)
            finally:
                with self._lock:
                    self._running = None
            if reply is not None:
                return reply
            self.losses += not (self._stopped or abandoned.is_set())
        else:
            log.warning("a call is given up: its process was killed %d times", _ATTEMPTS)
        return Reply(ResultStatus.CRASHED, "it was stopped", 0.0)

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        process = self._process
        return process is not None and process.poll() is None

    def started(self) -> WorkerProcess:
        """This one, with its process running."""
        with self._lock:
            if self._process is None:
                self._start()
        return self

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

    def _start(self) -> None:
        """Start the process; raises IsolationError where it lacks some that is required."""
        settings = self._settings
        rules = isolation.Rules(
            self._folder, settings.isolation, settings.network, settings.memory_mb
        )
        os.makedirs(rules.scratch, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                isolated_command(
                    "worker.main",
                    descriptor=descriptor,
                    rules=asdict(rules),
                    preload=settings.preload,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                cwd="/",
                env=environment(settings.environment, rules.scratch),
                start_new_session=True,  # a group of its own: killed with what it started
            )
        self._channel = ours
        try:
            report = self._hello()
        except (OSError, EOFError) as error:
            raise RuntimeError(
                f"a tool process does not start: {sys.executable}, {rules}, exit code {self._end()}"
            ) from error
        self.in_force, self.missing = report["in_force"], report["missing"]
        missing = "; ".join(f"{part} ({why})" for part, why in self.missing.items())
        if missing and settings.isolation == "require":
            self._end()
            raise IsolationError(f"isolation=require, but missing are: {missing}")
        if settings.isolation != "none":
            _tell_once(self.in_force, missing)

    def _hello(self) -> dict[str, Any]:
        """What the worker says of its isolation when it is ready."""
        found: dict[str, Any] = json.loads(self._receive(time.monotonic() + _START_S)[1])
        return found

    def _ask(self, request: Mapping[str, Any], hangs: Callable[[], None]) -> Reply | None:
        """The reply; None where the process was killed by somebody else."""
        started = time.monotonic()
        deadline = started + request["timeout_s"] + _GRACE_S
        try:
            body = json.dumps(request).encode()
            self._until(deadline).sendall(worker.REQUEST.pack(len(body)) + body)
            if not self._speaks(_PATIENCE_S):
                hangs()
            status, text = self._receive(deadline)
        except TimeoutError:
            self._end()
            status, text = "timeout", f"{request['timeout_s']:g}"
        except (OSError, EOFError):
            self._end()
            return None
        if status == "lost":
            return None
        if status == "load_timeout":
            text = f"its source did not load within {text} seconds"
        hung = status in ("timeout", "load_timeout")
        return Reply(_STATUSES[status], text, time.monotonic() - started, hung)

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

    def _speaks(self, seconds: float) -> bool:
        """Whether a reply begins within these seconds."""
        poll = select.poll()  # unlike select, it takes any number of open files
        assert self._channel is not None
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(seconds * 1_000))

    def _receive(self, deadline: float) -> tuple[str, str]:
        code, size = worker.REPLY.unpack(self._read(worker.REPLY.size, deadline))
        return worker.STATUSES[code], self._read(size, deadline).decode("utf-8", "replace")

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


_STATUSES = {status: ResultStatus(status) for status in worker.OF_CHILDREN} | {
    "crashed": ResultStatus.CRASHED,
    "timeout": ResultStatus.TIMEOUT,
    "load_timeout": ResultStatus.BROKEN_TOOL,
}


def isolated_command(function: str, **arguments: Any) -> list[str]:
    """The command of a process that does something of `worker` or `isolation`."""
    # The environment is ours alone, so -I adds nothing but randomised string hashes.
    command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c"]
    return [*command, _START.format(function=function), _SOURCES, json.dumps(arguments)]


def environment(names: Sequence[str], folder: str) -> dict[str, str]:
    """A tool process's environment: what it may know of ours, one thread, the same hashes always.

    Raises ValueError for a variable that is not set.
    """
    unset = [name for name in names if name not in os.environ]
    if unset:
        raise ValueError(f"a tool asks for the environment variable {unset[0]}, which is not set")
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH", *names) if key in os.environ}
    fixed = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}
    return {**kept, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


_told: set[tuple[str, str]] = set()


def _tell_once(found: str, missing: str) -> None:
    if (found, missing) not in _told:
        _told.add((found, missing))
        log.info("sandbox: %s", found)
        if missing:
            log.warning("\033[31msandbox: missing are: %s\033[0m", missing)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group; before it is reaped, so that the id is still its own."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
