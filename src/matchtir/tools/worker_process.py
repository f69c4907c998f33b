"""One worker process as its parent sees it: started, asked, ended. It lives in one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from matchtir.tools import isolation, worker
from matchtir.types import ResultStatus, ToolSpec

log = logging.getLogger(__name__)

_SOURCES = str(Path(__file__).parents[2])
_START = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); from matchtir.tools import isolation; "
    "from matchtir.tools import worker; sys.path.remove(sys.argv[1]); "
    "{function}(**json.loads(sys.argv[2]))"
)
_START_S = 60.0  # a worker takes 0.1 s to start; only a machine in trouble takes longer
_GRACE_S = 0.5  # a worker keeps the deadline; this much later it is stuck itself
_SLOW_S = 0.25  # a call that takes longer gives its place up to those that wait
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


STOPPED = Reply(ResultStatus.CRASHED, "it was stopped", 0.0)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How workers are started: isolation, grants, limits, and modules to import beforehand."""

    isolation: str = "best"
    network: bool = False
    environment: tuple[str, ...] = ()  # names of variables that they get
    memory_mb: int = 1_024
    preload: tuple[str, ...] = ()

    def granting(self, tools: Sequence[ToolSpec]) -> WorkerSettings:
        """With what these tools ask for, and no more."""
        names = sorted({name for tool in tools for name in tool.environment})
        network = any(tool.network for tool in tools)
        return replace(self, network=network, environment=tuple(names))


class WorkerProcess:
    """A process that executes one request at a time, under a deadline.

    Others wait for it. It is started by the first request and again after it died. A worker whose
    parent dies ends at once, whatever it does.
    """

    def __init__(self, settings: WorkerSettings, folder: str) -> None:
        self.settings = settings
        self.key: Any = None  # for whom it executed its last request
        self.kills = 0  # how often it was killed from outside
        self.in_force = ""  # its isolation, in words
        self.missing: Mapping[str, str] = {}  # parts of isolation, and why they are missing
        self.idle_since = 0.0
        self._order = asyncio.Lock()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None

    async def execute(
        self, request: Mapping[str, Any], release_turn: Callable[[], None] = lambda: None
    ) -> Reply:
        """Run one request; the process does not survive a cancellation.

        `release_turn` is called where it takes long. A request whose process is killed from outside
        is repeated, a few times.
        """
        async with self._order:
            if request["action"] != "end":  # which may come when others have the worker already
                self.key = request["key"]
            try:
                for _ in range(_ATTEMPTS):
                    if not self.lives:
                        if request["action"] == "end":
                            return STOPPED  # with all that it ran
                        await self.start()
                    reply = await self._ask(request, release_turn)
                    if reply is not None:
                        return reply
                    self.kills += 1
            except BaseException:
                self.end()
                raise
        log.warning("a call is given up: its process was killed %d times", _ATTEMPTS)
        return STOPPED

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process.

        Raises:
            IsolationError: it lacks some that is required.
            OSError: there is no room for another process or its descriptors.
            RuntimeError: it does not start.
        """
        self.end()
        settings = self.settings
        limits = settings.isolation, settings.network, settings.memory_mb
        rules = isolation.Rules(self._folder, *limits)
        os.makedirs(rules.scratch, exist_ok=True)
        ours, theirs = socket.socketpair()
        arguments = {"descriptor": theirs.fileno(), "rules": asdict(rules)}
        try:
            self._process = subprocess.Popen(
                isolated_command("worker.main", **arguments, preload=settings.preload),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=environment(settings.environment, rules.scratch),
                start_new_session=True,  # a group of its own: killed with what it started
            )
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            async with asyncio.timeout(_START_S):
                report = await self._hello()
        except (TimeoutError, ConnectionError, EOFError) as error:
            raise RuntimeError(
                f"a tool process does not start: {sys.executable}, {rules}, exit code {self.end()}"
            ) from error
        self.in_force, self.missing = report["in_force"], report["missing"]
        missing = "; ".join(f"{part} ({why})" for part, why in self.missing.items())
        if missing and settings.isolation == "require":
            self.end()
            raise IsolationError(f"isolation=require, but missing are: {missing}")
        if settings.isolation != "none":
            _tell_once(self.in_force, missing)

    def end(self) -> int:
        """Kill and reap the process, if there is one; its exit code, negative for a signal."""
        code = 0
        if self._process is not None:
            self._kill()
            code = self._process.wait()
            self._process = None
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        return code

    def _kill(self) -> None:
        """Kill the process and its group; before it is reaped, so that the id is still its own."""
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()

    async def _hello(self) -> dict[str, Any]:
        """What the worker says of its isolation when it is ready."""
        found: dict[str, Any] = json.loads((await self._receive())[1])
        return found

    async def _ask(
        self, request: Mapping[str, Any], release_turn: Callable[[], None]
    ) -> Reply | None:
        """The reply; None where the process was killed by somebody else."""
        started, loop = time.monotonic(), asyncio.get_running_loop()
        limit = request["timeout_s"] + _GRACE_S
        assert self._writer is not None
        body = json.dumps(request).encode()
        self._writer.write(worker.REQUEST.pack(len(body)) + body)
        # Timers that act, rather than one that cancels: a reply that has come is read, however
        # late this loop gets to it.
        timers = loop.call_later(_SLOW_S, release_turn), loop.call_later(limit, self._kill)
        try:
            status, text = await self._receive()
        except (OSError, EOFError):
            self.end()
            if time.monotonic() - started < limit:
                return None
            status, text = "timeout", f"{request['timeout_s']:g}"
        finally:
            for timer in timers:
                timer.cancel()
        if status == "lost":
            return None
        hung = status in ("timeout", "load_timeout")
        if status == "load_timeout":
            status, text = "broken_tool", f"its source did not load within {text} seconds"
        return Reply(ResultStatus(status), text, time.monotonic() - started, hung)

    async def _receive(self) -> tuple[str, str]:
        """Status and text of one frame."""
        code, size = worker.REPLY.unpack(await self._reader.readexactly(worker.REPLY.size))
        text = await self._reader.readexactly(size)
        return worker.STATUSES[code], text.decode("utf-8", "replace")


def isolated_command(function: str, **arguments: Any) -> list[str]:
    """The command of a process that does something of `worker` or `isolation`."""
    # The environment is ours alone, so -I adds nothing but randomised string hashes.
    command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c"]
    return [*command, _START.format(function=function), _SOURCES, json.dumps(arguments)]


def variables(names: Sequence[str]) -> dict[str, str]:
    """The values of variables that a tool is granted; ValueError for one that is not set."""
    for name in names:
        if name not in os.environ:
            raise ValueError(f"a tool asks for the environment variable {name}, which is not set")
    return {name: os.environ[name] for name in names}


def environment(names: Sequence[str], folder: str) -> dict[str, str]:
    """A tool process's environment: what it may know of ours, one thread, the same hashes always.

    Raises ValueError as `variables`.
    """
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    kept |= variables(names)
    fixed = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}
    return {**kept, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@cache
def _tell_once(found: str, missing: str) -> None:
    log.info("sandbox: %s", found)
    if missing:
        log.warning("\033[31msandbox: missing are: %s\033[0m", missing)
