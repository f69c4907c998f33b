"""Where calls are executed, in a session per episode (open, call, close), and how they ended."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from matchtir.tools.formats import error_text
from matchtir.tools.mcp import McpHost
from matchtir.tools.pool import Reply, WorkerPool
from matchtir.tools.runners import FunctionRunner, McpRunner, ObjectRunner, ToolRunner
from matchtir.types import CallStatus, ResultStatus, Task, ToolCall, ToolResult, ToolSpec

_OUTPUT_FORMS = ("json", "python")
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
    """Executes tools in long-lived worker processes that all sessions share (`WorkerPool`).

    Functions are stateless: every call executes its source anew. The objects of a stateful tool
    set live in a process that their session has to itself: there are as many of these as such
    sessions open at once. MCP servers are processes of their own. This guards against tools that
    fail, hang or flood, not against hostile ones: they see the file system, the network, and other
    processes of the user.

    Args:
        workers: calls that run at once; processes at most, apart from those that hold objects.
        timeout_s: seconds that one call may run; then its process is killed, C code or not.
        max_output_chars: longer outputs are cut there and marked (status `truncated`).
        max_argument_chars: calls with longer arguments, as JSON, are rejected.
        memory_mb: address space of a worker in MiB, 0 for no limit. A tool that imports PyTorch
            needs 1,024.
        output: how a return value that is no string becomes text: "json", or "python" for `str`.
            FTRL's recorded scores come out equal with both.

    `counts` holds how many calls ended in each status; `mcp` talks to MCP servers.
    """

    def __init__(
        self,
        workers: int = 4,
        timeout_s: float = 5.0,
        max_output_chars: int = 8_000,
        max_argument_chars: int = 100_000,
        memory_mb: int = 1_024,
        output: str = "json",
    ) -> None:
        for option, value in {
            "workers": workers,
            "timeout_s": timeout_s,
            "max_output_chars": max_output_chars,
            "max_argument_chars": max_argument_chars,
        }.items():
            if not value > 0:
                raise ValueError(f"{option} must be positive, not {value!r}")
        if memory_mb < 0:
            raise ValueError(f"memory_mb must be 0 (no limit) or positive, not {memory_mb!r}")
        if output not in _OUTPUT_FORMS:
            raise ValueError(f"output must be one of {', '.join(_OUTPUT_FORMS)}, not {output!r}")
        self.max_argument_chars = max_argument_chars
        self.counts: Counter[ResultStatus] = Counter()
        self._counting = threading.Lock()
        self.pool = WorkerPool(workers, timeout_s, memory_mb)
        options = {"output": output, "max_output_chars": max_output_chars}
        self.functions = FunctionRunner(self.pool, options)
        self.mcp = McpHost(timeout_s, max_output_chars)
        weakref.finalize(self, self.mcp.stop)

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
        return ProcessPoolSession(self, tools, state or {})

    def shutdown(self) -> None:
        """Kill every process: running calls crash, waiting ones are cancelled, later ones raise."""
        self.pool.stop()
        self.mcp.stop()

    def count(self, status: ResultStatus) -> None:
        """Add one call to `counts`."""
        with self._counting:
            self.counts[status] += 1


class ProcessPoolSession:
    """The tools of one episode, each with the runner of its kind; made by `open`."""

    def __init__(
        self, sandbox: ProcessPoolSandbox, tools: Sequence[ToolSpec], state: Mapping[str, Any]
    ) -> None:
        self._sandbox = sandbox
        self._objects = ObjectRunner(sandbox.functions, sandbox.pool, tools, state)
        self._servers = McpRunner(sandbox.mcp)
        self._tools = {tool.name: (tool, self._runner_of(tool)) for tool in tools}
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """Execute one call; RuntimeError after `close` or the sandbox's `shutdown`, else none."""
        if self._closed:
            raise RuntimeError("the session is closed")
        result = await self._result(call)
        self._sandbox.count(result.status)
        return result

    async def state(self) -> Mapping[str, Any] | None:
        """Public attributes of each stateful object; None where they are lost."""
        return await self._objects.state()

    async def close(self) -> None:
        """Refuse further calls; give up objects and servers."""
        if not self._closed:
            self._closed = True
            await self._objects.close()
            await self._servers.close()

    def _runner_of(self, tool: ToolSpec) -> ToolRunner:
        if tool.server is not None:
            return self._servers
        return self._objects if tool.owner else self._sandbox.functions

    async def _result(self, call: ToolCall) -> ToolResult:
        if call.status is CallStatus.OK and call.name not in self._tools:
            call = replace(call, status=CallStatus.UNKNOWN_TOOL)
        if call.status is not CallStatus.OK:
            return ToolResult(error_text(call), ResultStatus.REJECTED)
        try:
            arguments = _as_json(call.arguments)
        except (TypeError, ValueError, RecursionError) as error:
            detail = f"the arguments of {call.name} are not a JSON object ({error})"
            return _to_result(call.name, Reply(ResultStatus.BAD_ARGUMENTS, detail, 0.0))
        limit = self._sandbox.max_argument_chars
        if len(arguments) > limit:
            text = f"Error: the arguments are too long: {len(arguments)} characters, over {limit}."
            return ToolResult(text, ResultStatus.REJECTED)
        tool, runner = self._tools[call.name]
        return _to_result(call.name, await runner.run(tool, arguments))


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
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value.get("error"))
