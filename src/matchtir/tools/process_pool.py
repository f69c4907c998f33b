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

from matchtir.tools.parser import error_text
from matchtir.tools.worker_process import Reply, WorkerProcess
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
    does. Tools are stateless: every call executes its source anew, see `matchtir.tools.worker`.
    This guards against tools that fail, hang or flood, not against hostile ones: they see the
    file system, the network, and other processes of the user.

    Args:
        workers: processes at most, hence calls that run at once.
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
        self._options = {"output": output, "max_output_chars": max_output_chars}
        self.counts: Counter[ResultStatus] = Counter()
        self._counting = threading.Lock()
        folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
        self._workers = [WorkerProcess(memory_mb, folder.name) for _ in range(workers)]
        # The last one used is the first to be used again, so that few stay warm when few suffice.
        self._free = deque(self._workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="matchtir-tools")
        # Runs at exit too, and at most once.
        self._stop = weakref.finalize(self, _stop, self._workers, self._threads, folder)

    async def open(self, tools: Sequence[ToolSpec]) -> ProcessPoolSession:
        """A session that offers these tools; raises ValueError where two share a name."""
        by_name = {tool.name: tool for tool in tools}
        if len(by_name) < len(tools):
            names = Counter(tool.name for tool in tools)
            raise ValueError(f"two tools of one session are called {names.most_common(1)[0][0]!r}")
        return ProcessPoolSession(self, by_name)

    def shutdown(self) -> None:
        """Kill every process: running calls crash, waiting ones are cancelled, later ones raise."""
        self._stop()

    def count(self, status: ResultStatus) -> None:
        """Add one call to `counts`."""
        with self._counting:
            self.counts[status] += 1

    async def run(self, tool: ToolSpec, arguments: str) -> Reply:
        """Execute one call with its arguments as JSON text."""
        abandoned = threading.Event()
        request = {
            "name": tool.name,
            "source": tool.source,
            "arguments": arguments,
            **self._options,
        }
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, _execute, self._free, abandoned, request, self.timeout_s
            )
        except asyncio.CancelledError:
            abandoned.set()
            for worker in self._workers:
                worker.abandon(abandoned)
            raise


class ProcessPoolSession:
    """The tools of one episode.

    Stateless tools leave it nothing to hold. A stateful set would take one worker for the
    session's whole life here, and give it back in `close`.
    """

    def __init__(self, sandbox: ProcessPoolSandbox, tools: Mapping[str, ToolSpec]) -> None:
        self._sandbox = sandbox
        self._tools = tools
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """Execute one call; RuntimeError after `close` or the sandbox's `shutdown`, else none."""
        if self._closed:
            raise RuntimeError("the session is closed")
        result = await self._result(call)
        self._sandbox.count(result.status)
        return result

    async def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

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
        return _to_result(call.name, await self._sandbox.run(tool, arguments))


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
