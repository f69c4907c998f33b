"""Where calls are executed, in a session per episode (open, call, close), and how they ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import weakref
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from matchtir.tools.formats import refusal
from matchtir.tools.mcp import McpHost
from matchtir.tools.pool import WorkerPool
from matchtir.tools.runners import CallExecutor, ObjectRunner
from matchtir.tools.worker_process import STOPPED, Reply, WorkerSettings
from matchtir.types import ResultStatus, Task, ToolCall, ToolResult, ToolSpec
from matchtir.utils.loop_thread import LoopThread
from matchtir.utils.options import check_option

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_REST_S = 60.0  # between two calls of a tool that hangs
_ERROR_TEXTS = {
    ResultStatus.BAD_ARGUMENTS: "Error: {detail}.",
    ResultStatus.EXCEPTION: "Error: {name} raised {detail}",
    ResultStatus.TIMEOUT: "Error: {name} did not return within {detail} seconds and was stopped.",
    ResultStatus.CRASHED: "Error: {name} crashed: {detail}.",
    ResultStatus.BROKEN_TOOL: "Error: the tool {name} is broken: {detail}.",
}


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


class ProcessPoolSandbox:
    """Executes tools in worker processes that all sessions share (`WorkerPool`).

    Functions are stateless: every call executes its source anew. The objects of a stateful tool
    set live in a process that their session has to itself, from its first call until it is closed.
    MCP servers are processes of their own. What all of them can reach is bounded by the kernel
    (`isolation`). Calls are executed by a thread of the sandbox, for sessions of any event loop.

    Args:
        workers: calls that run at once, not counting those that take long.
        max_workers: calls that run at once, counting all; None: four times `workers`.
        max_sessions: sessions with a process of their own at once; others wait for one to close.
        timeout_s: seconds that one call may run; then its process is killed, C code or not.
        max_timeouts: a tool that hangs so often in a row is named, and then, but for one call in a
            minute, answered at once.
        max_output_chars: longer outputs are cut there and marked (status `truncated`).
        max_argument_chars: calls with longer arguments, as JSON, are rejected.
        memory_mb: address space of a process in MiB, 0 for no limit. A tool that imports PyTorch
            needs 1,024.
        output: how a return value that is no string becomes text: "json", or "python" for `str`.
            FTRL's recorded scores come out equal with both.
        isolation: "best": what the kernel offers, and what is missing is said; "require": all of
            it, or RuntimeError; "none": tools can do what this process can.
        fork: a process of its own for each "call" or each "episode", or, for tools that may meet
            each other's traces, "none". Objects always have one for the episode.
        preload: modules that a worker imports before it forks, so that no call has to.

    `counts` holds how many calls ended in each status.
    """

    def __init__(
        self,
        workers: int = 4,
        timeout_s: float = 5.0,
        max_output_chars: int = 8_000,
        max_argument_chars: int = 100_000,
        memory_mb: int = 1_024,
        output: Literal["json", "python"] = "json",
        isolation: Literal["require", "best", "none"] = "best",
        fork: Literal["call", "episode", "none"] = "episode",
        max_workers: int | None = None,
        max_sessions: int = 64,
        max_timeouts: int = 8,
        preload: Sequence[str] = (),
    ) -> None:
        for option, value in {
            "workers": workers,
            "timeout_s": timeout_s,
            "max_output_chars": max_output_chars,
            "max_argument_chars": max_argument_chars,
            "max_sessions": max_sessions,
            "max_timeouts": max_timeouts,
        }.items():
            if not value > 0:
                raise ValueError(f"{option} must be positive, not {value!r}")
        if memory_mb < 0:
            raise ValueError(f"memory_mb must be 0 (no limit) or positive, not {memory_mb!r}")
        check_option("output", output, ("json", "python"))
        check_option("isolation", isolation, ("require", "best", "none"))
        check_option("fork", fork, ("call", "episode", "none"))
        self.max_argument_chars = max_argument_chars
        self.counts: Counter[ResultStatus] = Counter()
        self.breaker = CircuitBreaker(max_timeouts)
        self._episodes = itertools.count(1)
        self._thread = thread = LoopThread("tools")
        pool = WorkerPool(workers, max(workers, max_workers or 4 * workers), max_sessions)
        options = {"output": output, "max_output_chars": max_output_chars, "timeout_s": timeout_s}
        settings = WorkerSettings(isolation, memory_mb=memory_mb, preload=tuple(preload))
        self.calling = CallExecutor(pool, settings, options, fork)
        self.servers = servers = McpHost(timeout_s, max_output_chars, isolation)

        async def end() -> None:
            await servers.stop()
            await pool.stop()

        # Kills everything, once; runs at exit too, and when the sandbox is forgotten.
        self._end = weakref.finalize(self, thread.stop, end)
        if isolation == "require":
            self.check()

    async def open(
        self, tools: Sequence[ToolSpec], state: Mapping[str, Any] | None = None
    ) -> ProcessPoolSession:
        """A session that offers these tools.

        Raises:
            ValueError: two tools share a name, or the state is of a class that owns no tool.
        """
        names = Counter(tool.name for tool in tools)
        if len(names) < len(tools):
            raise ValueError(f"two tools of one session are called {names.most_common(1)[0][0]!r}")
        return ProcessPoolSession(self, next(self._episodes), tools, state or {})

    def check(self) -> tuple[str, Mapping[str, str]]:
        """What isolation is in force, in words, and why each missing part is missing.

        Starts a worker; RuntimeError where that fails, or where required isolation is missing.
        """
        report = self.calling.pool.report(self.calling.settings)
        return self._thread.submit(report).result()

    @property
    def kills(self) -> int:
        """How often a tool's process was killed from outside, and its call repeated."""
        return self.calling.pool.kills

    @property
    def closed(self) -> bool:
        """Whether it was shut down."""
        return not self._end.alive

    def shutdown(self) -> None:
        """Kill every process: running and waiting calls crash, later ones raise."""
        self._end()

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do something in the sandbox's own loop; raises RuntimeError after `shutdown`."""
        if self.closed:
            work.close()
            raise RuntimeError("no tool can be called after shutdown")
        return await self._thread.run(work)


class ProcessPoolSession:
    """The tools of an episode, of which `open` gives the number; MCP servers may be shared."""

    def __init__(
        self,
        sandbox: ProcessPoolSandbox,
        episode: int,
        tools: Sequence[ToolSpec],
        state: Mapping[str, Any],
    ) -> None:
        self._sandbox = sandbox
        self._episode = episode
        self._tools = {tool.name: tool for tool in tools}
        self._objects = ObjectRunner(sandbox.calling, episode, tools, state)
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """Execute one call; RuntimeError after `close` or the sandbox's `shutdown`, else none."""
        if self._closed:
            raise RuntimeError("the session is closed")
        return await self._sandbox.run(self._call(call))

    async def state(self) -> Mapping[str, Any] | None:
        """Public attributes of each stateful object; None where they are lost."""
        return await self._sandbox.run(self._objects.state())

    async def close(self) -> None:
        """Refuse further calls; give up objects and servers."""
        if not (self._closed or self._sandbox.closed):
            self._closed = True
            await self._sandbox.run(self._close())

    async def _close(self) -> None:
        await self._sandbox.calling.pool.end_episode(self._episode)
        await self._objects.close()
        await self._sandbox.servers.end_episode(self._episode)

    async def _call(self, call: ToolCall) -> ToolResult:
        try:
            result = await self._result(call)
        except asyncio.CancelledError:
            if not self._sandbox.closed:
                raise
            result = _to_result(call.name, STOPPED)
        self._sandbox.counts[result.status] += 1
        return result

    async def _run(self, tool: ToolSpec, arguments: str) -> Reply:
        if tool.server is not None:
            return await self._sandbox.servers.call(self._episode, tool, arguments)
        if tool.owner:
            return await self._objects.run(tool, arguments)
        return await self._sandbox.calling.call_function(self._episode, tool, arguments)

    async def _result(self, call: ToolCall) -> ToolResult:
        if refused := refusal(call, self._tools.keys()):
            return refused
        try:
            arguments = _as_json(call.arguments)
        except (TypeError, ValueError, RecursionError) as error:
            detail = f"the arguments of {call.name} are not a JSON object ({error})"
            return _to_result(call.name, Reply(ResultStatus.BAD_ARGUMENTS, detail, 0.0))
        limit = self._sandbox.max_argument_chars
        if len(arguments) > limit:
            text = f"Error: the arguments are too long: {len(arguments)} characters, over {limit}."
            return ToolResult(text, ResultStatus.REJECTED)
        tool = self._tools[call.name]
        reply = self._sandbox.breaker.answer(tool)
        if reply is None:
            reply = await self._run(tool, arguments)
            self._sandbox.breaker.see(tool, reply)
        return _to_result(call.name, reply)


class CircuitBreaker:
    """Tools that hung too often in a row are answered at once, but for one trial in a minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row: Counter[Any] = Counter()
        self._next_trial: dict[Any, float] = {}  # of those that did so too often

    def answer(self, tool: ToolSpec) -> Reply | None:
        """The reply of a tool that is not to be called now; None for one that is."""
        key, now = _identity(tool), time.monotonic()
        times = self._in_a_row[key]
        if times < self._limit:
            return None
        if now >= self._next_trial[key]:
            self._next_trial[key] = now + _REST_S
            return None
        detail = f"it did not return in the last {times} calls"
        return Reply(ResultStatus.BROKEN_TOOL, detail, 0.0)

    def see(self, tool: ToolSpec, reply: Reply) -> None:
        """Take note of how a call ended; a source that does not load need not try again.

        One that crashed tells nothing: perhaps the tool was not called, its objects being lost.
        """
        if reply.status is ResultStatus.CRASHED:
            return
        key = _identity(tool)
        before = self._in_a_row.pop(key, 0)
        if not reply.hung:
            self._next_trial.pop(key, None)
            return
        unloaded = reply.status is ResultStatus.BROKEN_TOOL
        self._in_a_row[key] = max(before + 1, self._limit * unloaded)
        if before < self._limit <= self._in_a_row[key]:
            self._next_trial[key] = time.monotonic() + _REST_S
            log.warning("the tool %s hangs: it is now called once in a minute", tool.name)


def _identity(tool: ToolSpec) -> Any:
    return tool.name, tool.owner, tool.source, tool.path, tool.server


def _as_json(arguments: Any) -> str:
    if not isinstance(arguments, Mapping):
        raise TypeError(type(arguments).__name__)
    return json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)


def _to_result(name: str, reply: Reply) -> ToolResult:
    """The result of a reply: an error text unless the tool returned."""
    template = _ERROR_TEXTS.get(reply.status, "{detail}")
    return ToolResult(
        template.format(name=name, detail=reply.output), reply.status, round(reply.seconds, 6)
    )


@dataclass(frozen=True, slots=True)
class Replay:
    """What given calls did in a session of their own, without a policy and its turns."""

    results: tuple[ToolResult, ...]  # one per call, in order
    state: Mapping[str, Any] | None  # of the objects afterwards, by class; None: lost


async def replay_calls(task: Task, calls: Sequence[ToolCall], sandbox: Sandbox) -> Replay:
    """Execute the calls with the task's tools, from its initial state."""
    session = await sandbox.open(task.tools, task.initial_state)
    try:
        results = await asyncio.gather(*[session.call(call) for call in calls])
        return Replay(tuple(results), await session.state())
    finally:
        await session.close()


def replay_all(
    attempts: Sequence[tuple[Task, Sequence[ToolCall]]], sandbox: Sandbox, max_concurrent: int = 64
) -> list[Replay]:
    """Each task's calls, in sessions of their own, so many at once."""

    async def run() -> list[Replay]:
        slots = asyncio.Semaphore(max_concurrent)

        async def one(task: Task, calls: Sequence[ToolCall]) -> Replay:
            async with slots:
                return await replay_calls(task, calls, sandbox)

        return await asyncio.gather(*[one(task, calls) for task, calls in attempts])

    return asyncio.run(run())


def executed(result: ToolResult) -> bool:
    """Whether a call ran to its end."""
    return result.status in (ResultStatus.OK, ResultStatus.TRUNCATED)


def succeeded(result: ToolResult) -> bool:
    """Whether a call ran to its end and its output does not say that it failed."""
    return executed(result) and not reports_error(result.output)


def reports_error(output: str) -> bool:
    """Whether a tool's own words say that it failed: {"error": ...}, or text that begins so."""
    if output.lstrip().lower().startswith("error"):
        return True
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error"))
