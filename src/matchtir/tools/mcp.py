"""Tools of MCP servers: programs that speak the Model Context Protocol on their standard streams.

A connection of the official SDK belongs to one task of one event loop, sandbox sessions to any
loop. So all connections live in a loop of this module's own, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, TypeVar

from matchtir.tools.calls import cut
from matchtir.tools.isolation import Rules
from matchtir.tools.process import Reply, environment, isolated_command
from matchtir.types import McpServer, ResultStatus, ToolSpec
from matchtir.utils.loop_thread import LoopThread

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_START_S = 60.0  # for a server to answer for the first time
_STDERR_CHARS = 2_000  # of what it said, in the message that it does not start


class McpError(RuntimeError):
    """A server that does not start, or does not speak the protocol."""


class McpHost:
    """Starts servers and talks to them, in a thread that the first one starts.

    Args:
        timeout_s: seconds that one call may take; then its server is stopped.
        max_output_chars: longer outputs are cut there and marked.
        isolation: of servers that are not trusted, as that of tools.
    """

    def __init__(
        self,
        timeout_s: float = 60.0,
        max_output_chars: int = 8_000,
        isolation: str = "best",
    ) -> None:
        self.isolation = isolation
        self.timeout_s = timeout_s
        self.max_output_chars = max_output_chars
        self._starting = threading.Lock()
        self._thread: LoopThread | None = None
        self._shared: dict[McpServer, McpConnection] = {}
        self._all: set[McpConnection] = set()

    async def connect(self, server: McpServer) -> McpConnection:
        """A connection to a process of this server: a new one, or the shared one if it lives."""
        connection = self._shared.get(server) if server.shared else None
        if connection is None or connection.ended:
            connection = McpConnection(server, self.isolation)
            self._all.add(connection)
            connection.task.add_done_callback(lambda _: self._all.discard(connection))
            if server.shared:
                self._shared[server] = connection
        return connection

    def tools(self, server: McpServer) -> tuple[ToolSpec, ...]:
        """What the server offers; waits for it.

        Raises:
            McpError: it does not start.
        """
        return self._submit(self._tools(server)).result()

    async def _tools(self, server: McpServer) -> tuple[ToolSpec, ...]:
        connection = await self.connect(server)
        try:
            client = await connection.client()
            found, cursor = [], None
            while True:
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if not cursor:
                    break
        finally:
            await connection.close()
        return tuple(
            ToolSpec(tool.name, tool.description or "", tool.input_schema, server=server)
            for tool in found
        )

    async def call(self, connection: McpConnection, name: str, arguments: str) -> Reply:
        """One call, its arguments as JSON text."""
        started = time.monotonic()

        def reply(status: ResultStatus, text: str) -> Reply:
            return Reply(status, text, time.monotonic() - started)

        try:
            client = await connection.client()
        except McpError as error:
            return reply(ResultStatus.BROKEN_TOOL, str(error))
        from mcp.shared.exceptions import MCPError

        try:
            async with connection.order, asyncio.timeout(self.timeout_s):  # from its own start on
                if connection.ended:
                    return reply(ResultStatus.CRASHED, "its server ended with an earlier call")
                result = await client.call_tool(
                    name,
                    json.loads(arguments),
                    read_timeout_seconds=2 * self.timeout_s,  # instead of the client's _START_S
                )
        except TimeoutError:
            connection.end()
            return reply(ResultStatus.TIMEOUT, f"{self.timeout_s:g}")
        except MCPError as error:
            if error.message == "Connection closed":  # its code may be a server's own
                connection.end()
                return reply(ResultStatus.CRASHED, "its server ended")
            return reply(ResultStatus.EXCEPTION, cut(error.message, self.max_output_chars)[0])
        except Exception as error:  # what a server answers may be anything
            return reply(ResultStatus.EXCEPTION, f"{type(error).__name__} in reading its reply")
        text, whole = cut(_text_of(result), self.max_output_chars)
        if result.is_error:
            return reply(ResultStatus.EXCEPTION, text)
        return reply(ResultStatus.OK if whole else ResultStatus.TRUNCATED, text)

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do something of the above in the loop of the connections."""
        return await asyncio.wrap_future(self._submit(work))

    def stop(self) -> None:
        """Stop every server; nothing can be done afterwards."""
        if self._thread is None or self._thread.loop.is_closed():
            return

        async def close_all() -> None:
            await asyncio.gather(*[connection.close() for connection in tuple(self._all)])

        self._submit(close_all()).result()
        self._thread.stop()

    def _submit(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        with self._starting:
            if self._thread is None:
                self._thread = LoopThread("mcp")
            thread = self._thread
        return thread.submit(work)


class McpConnection:
    """One server process and the SDK's client of it; a task of its own opens and closes both."""

    def __init__(self, server: McpServer, isolation: str) -> None:
        self._server = server
        self._isolation = "none" if server.trusted else isolation
        self._closing = asyncio.Event()
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Calls of one episode see each other's effects in the order in which they were made.
        self.order = contextlib.nullcontext() if server.shared else asyncio.Lock()
        self.task = asyncio.create_task(self._serve())

    @property
    def ended(self) -> bool:
        """Whether there is nothing to talk to any more."""
        return self._closing.is_set() or self.task.done()

    async def client(self) -> Any:
        """The SDK's client, once the server has answered; raises McpError where it does not."""
        return await asyncio.shield(self._client)

    def end(self) -> None:
        """Begin to stop the server."""
        self._closing.set()

    async def close(self) -> None:
        """Stop the server; returns when it is gone."""
        self.end()
        await asyncio.wait([self.task])

    async def _serve(self) -> None:
        try:
            from mcp import StdioServerParameters, stdio_client
            from mcp.client import Client
        except ImportError as error:
            self._fail(f"the package mcp is needed for it: pip install -e '.[mcp]' ({error})")
            return
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
            tempfile.TemporaryDirectory(prefix="matchtir-") as folder,
        ):
            try:
                program, *arguments = self._command(folder)
                granted = {name: os.environ[name] for name in self._server.environment}
                parameters = StdioServerParameters(command=program, args=arguments, env=granted)
                transport = stdio_client(parameters, errlog=said)
                async with Client(transport, read_timeout_seconds=_START_S) as client:
                    self._client.set_result(client)
                    await self._closing.wait()
            except Exception as error:  # whatever a foreign program does
                said.seek(0)
                self._fail(f"{error}\n{said.read()[-_STDERR_CHARS:]}".strip())

    def _command(self, folder: str) -> Sequence[str]:
        """The server's command, confined unless it is trusted: it may read the files it names."""
        server = self._server
        if self._isolation == "none":
            return server.command
        program = shutil.which(server.command[0])
        if program is None:
            raise FileNotFoundError(f"no program {server.command[0]}")
        files = [os.path.abspath(part) for part in server.command[1:] if os.path.isfile(part)]
        rules = Rules(folder, self._isolation, server.network, 0, processes=128, cpu_s=0)
        os.makedirs(rules.scratch)
        return isolated_command(
            "isolation.run",
            rules=asdict(rules),
            command=[program, *server.command[1:]],
            reads=[os.path.realpath(program), *map(os.path.dirname, files)],
            environment=environment(server.environment, rules.scratch),
        )

    def _fail(self, reason: str) -> None:
        command = shlex.join(self._server.command)
        if self._client.done():
            log.warning("the MCP server %s: %s", command, reason)
            return
        self._client.set_exception(McpError(f"the MCP server {command} does not start: {reason}"))
        self._client.exception()  # seen: no warning where nobody waits for it


def _text_of(result: Any) -> str:
    """The text of a call's result; other kinds of content are named in its place."""
    if not result.content and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(
        item.text if item.type == "text" else f"[{item.type}]" for item in result.content
    )
