"""Executes tools in a pool of separate processes, each call under a hard deadline."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from matchtir.tools.mcp import McpHost, McpSession
from matchtir.tools.parser import error_text
from matchtir.tools.stateful import StatefulObjects, objects_of
from matchtir.tools.worker_process import Reply, WorkerProcess, call_request
from matchtir.types import CallStatus, ResultStatus, ToolCall, ToolResult, ToolSpec

_OUTPUT_FORMS = ("json", "python")
_ERROR_TEXTS = {
    ResultStatus.BAD_ARGUMENTS: "Error: {detail}.",
    ResultStatus.EXCEPTION: "Error: {name} raised {detail}",
    ResultStatus.TIMEOUT: "Error: {name} did not return within {detail} seconds and was stopped.",
    ResultStatus.CRASHED: "Error: {name} crashed: {detail}.",
    ResultStatus.BROKEN_TOOL: "Error: the tool {name} is broken: {detail}.",
}


class ProcessPoolSandbox:
    """Long-lived worker processes, started when first needed, that all sessions share.

    Each worker process has a thread here that blocks on its pipe. So a deadline is kept, and the
    next call started, also while the event loop is busy with the model; and nothing is bound to an
    event loop, so successive `asyncio.run`, and loops of several threads, may use one sandbox.

    A call waits for a free worker, first come first served; its deadline starts when its execution
    does. Functions are stateless: every call executes its source anew. The objects of a stateful
    tool set live in a process that their session has to itself (`matchtir.tools.stateful`): there
    are as many of these as such sessions open at once. Tools of MCP servers run in those.
    This guards against tools that fail, hang or flood, not against hostile ones: they see the
    file system, the network, and other processes of the user.

    Args:
        workers: calls that run at once; processes at most, apart from those that hold objects.
        timeout_s: seconds that one call may run; then its process is killed, C code or not.
        max_output_chars: longer outputs are cut there and marked (status `truncated`).
        max_argument_chars: calls with longer arguments, as JSON, are rejected.
        memory_mb: address space of a worker in MiB, 0 for no limit. A tool that imports PyTorch
            needs 1,024.
        output: how a return value that is no string becomes text: "json", or "python" for `str`.
            FTRL's recorded scores come out equal with both.

    `counts` holds how many calls ended in each status.
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
        self.timeout_s = timeout_s
        self.max_argument_chars = max_argument_chars
        self._options: dict[str, Any] = {"output": output, "max_output_chars": max_output_chars}
        self.counts: Counter[ResultStatus] = Counter()
        self._counting = threading.Lock()
        folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
        self._memory_mb, self._folder = memory_mb, folder.name
        self._workers = [WorkerProcess(memory_mb, folder.name) for _ in range(workers)]
        # The last one used is the first to be used again, so that few stay warm when few suffice.
        self._free = deque(self._workers)
        self._lendable: deque[WorkerProcess] = deque()
        self._mcp: McpHost | None = None
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="matchtir-tools")
        # Runs at exit too, and at most once.
        self._stop = weakref.finalize(self, _stop, self._workers, self._threads, folder)

    async def open(
        self, tools: Sequence[ToolSpec], state: Mapping[str, Any] | None = None
    ) -> ProcessPoolSession:
        """A session that offers these tools.

        Raises:
            ValueError: two tools share a name, or the state is of a class that owns no tool.
        """
        by_name = {tool.name: tool for tool in tools}
        if len(by_name) < len(tools):
            names = Counter(tool.name for tool in tools)
            raise ValueError(f"two tools of one session are called {names.most_common(1)[0][0]!r}")
        return ProcessPoolSession(self, by_name, objects_of(tools, state or {}))

    def shutdown(self) -> None:
        """Kill every process: running calls crash, waiting ones are cancelled, later ones raise."""
        self._stop()
        if self._mcp is not None:
            self._mcp.stop()

    @property
    def running(self) -> bool:
        """Whether `shutdown` has not been called."""
        return self._stop.alive

    def count(self, status: ResultStatus) -> None:
        """Add one call to `counts`."""
        with self._counting:
            self.counts[status] += 1

    async def ask(self, request: Mapping[str, Any], worker: WorkerProcess | None = None) -> Reply:
        """Execute one request, in a lent worker or in any free one."""
        abandoned = threading.Event()
        if request["action"] == "call":
            request = {**request, **self._options}
        free = self._free if worker is None else deque([worker])
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, _execute, free, abandoned, request, self.timeout_s
            )
        except asyncio.CancelledError:
            abandoned.set()
            for each in tuple(self._workers):
                each.abandon(abandoned)
            raise

    def lend_worker(self) -> WorkerProcess:
        """A worker that nobody else uses, until it is given back."""
        try:
            return self._lendable.pop()
        except IndexError:
            worker = WorkerProcess(self._memory_mb, self._folder)
            self._workers.append(worker)
            return worker

    def take_back(self, worker: WorkerProcess, reusable: bool) -> None:
        """Take a lent worker back, to lend it again or to end it."""
        if reusable:
            self._lendable.append(worker)
        else:
            worker.stop()
            self._workers.remove(worker)

    @property
    def mcp(self) -> McpHost:
        """What talks to MCP servers; made when first needed."""
        with self._counting:
            if self._mcp is None:
                self._mcp = McpHost(self.timeout_s, self._options["max_output_chars"])
                weakref.finalize(self, self._mcp.stop)
            return self._mcp


class ProcessPoolSession:
    """The tools of one episode: functions in any worker, objects in one of its own."""

    def __init__(
        self,
        sandbox: ProcessPoolSandbox,
        tools: Mapping[str, ToolSpec],
        objects: Sequence[Mapping[str, Any]],
    ) -> None:
        self._sandbox = sandbox
        self._tools = tools
        self._objects = (
            StatefulObjects(sandbox.ask, sandbox.lend_worker(), objects) if objects else None
        )
        self._servers = McpSession(sandbox.mcp) if any(t.server for t in tools.values()) else None
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
        return await self._objects.state() if self._objects else {}

    async def close(self) -> None:
        """Refuse further calls; give up objects and servers."""
        if self._closed:
            return
        self._closed = True
        if self._objects and self._sandbox.running:
            await self._objects.close()
            self._sandbox.take_back(self._objects.worker, self._objects.reusable)
        if self._servers:
            await self._servers.close()

    async def _result(self, call: ToolCall) -> ToolResult:
        tool = self._tools.get(call.name)
        if call.status is not CallStatus.OK:
            return ToolResult(error_text(call), ResultStatus.REJECTED)
        if tool is None:
            unknown = replace(call, status=CallStatus.UNKNOWN_TOOL)
            return ToolResult(error_text(unknown), ResultStatus.REJECTED)
        try:
            arguments = _as_json(call.arguments)
        except (TypeError, ValueError, RecursionError) as error:
            detail = f"the arguments of {call.name} are not a JSON object ({error})"
            return _to_result(call.name, Reply(ResultStatus.BAD_ARGUMENTS, detail, 0.0))
        limit = self._sandbox.max_argument_chars
        if len(arguments) > limit:
            text = f"Error: the arguments are too long: {len(arguments)} characters, over {limit}."
            return ToolResult(text, ResultStatus.REJECTED)
        return _to_result(call.name, await self._run(tool, arguments))

    async def _run(self, tool: ToolSpec, arguments: str) -> Reply:
        if tool.server is not None and self._servers:
            return await self._servers.call(tool, arguments)
        request = call_request(tool, arguments)
        if tool.owner and self._objects:
            return await self._objects.ask(request)
        return await self._sandbox.ask(request)


def _execute(
    free: deque[WorkerProcess],
    abandoned: threading.Event,
    request: Mapping[str, Any],
    timeout_s: float,
) -> Reply:
    """What a thread of the pool does; it holds no reference to the sandbox."""
    worker = free.pop()  # there are as many workers as threads
    try:
        return worker.execute(abandoned, request, timeout_s)
    finally:
        free.append(worker)


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


def _stop(
    workers: Sequence[WorkerProcess],
    threads: ThreadPoolExecutor,
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.stop()
    threads.shutdown(wait=True)
    folder.cleanup()
