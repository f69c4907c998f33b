"""Tools of servers that speak the Model Context Protocol: programs on their standard streams, or
others over streamable HTTP. A connection belongs to one event loop, that of a `LoopThread`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from matchtir.tools.child import cut
from matchtir.tools.isolation import Rules
from matchtir.tools.worker_process import Reply, environment, isolated_command, variables
from matchtir.types import McpServer, ResultStatus, ToolSpec
from matchtir.utils.loop_thread import LoopThread

log = logging.getLogger(__name__)

_START_S = 60.0  # for a server to answer for the first time
_STOP_S = 0.5  # for one to end of itself; then it is killed
_LOST = -32000  # the SDK's code of errors
_STDERR_CHARS = 2_000  # of what it said, in the message that it does not start
# Becomes the server, which is the first of a process group, and says which.
_SHELL = ("/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"')


class McpError(RuntimeError):
    """A server that does not start, or does not speak the protocol."""


def server_tools(server: McpServer) -> tuple[ToolSpec, ...]:
    """What a server offers; waits for it, and raises McpError where it does not start."""
    thread, host = LoopThread("mcp"), McpHost(_START_S, 0, isolation="best")
    try:
        return thread.submit(host.tools(server)).result()
    finally:
        thread.stop(host.stop)


class McpHost:
    """Connects to servers, and calls their tools.

    Args:
        timeout_s: seconds that one call may take, unless its tool has its own; then its server is
            stopped.
        max_output_chars: longer outputs are cut there and marked.
        isolation: of programs that are not trusted, as that of tools.
    """

    def __init__(self, timeout_s: float, max_output_chars: int, isolation: str) -> None:
        self._timeout_s = timeout_s
        self._max_output_chars = max_output_chars
        self._isolation = isolation
        self._by_episode: dict[tuple[McpServer, int], McpConnection] = {}  # 0: shared by all
        self._all: set[McpConnection] = set()

    def _connection(self, server: McpServer, episode: int) -> McpConnection:
        """That of the episode, from its first call on; a shared one is replaced where it ended."""
        key = server, 0 if server.shared else episode
        found = self._by_episode.get(key)
        if found is not None and not (server.shared and found.ended):
            return found
        made = self._by_episode[key] = McpConnection(server, self._isolation)
        self._all.add(made)
        made.task.add_done_callback(lambda _: self._all.discard(made))
        return made

    async def tools(self, server: McpServer) -> tuple[ToolSpec, ...]:
        """What the server offers; raises McpError where it does not start."""
        client = await self._connection(server, 0).client()
        page = await client.list_tools()
        found = [*page.tools]
        while page.next_cursor:
            page = await client.list_tools(cursor=page.next_cursor)
            found += page.tools
        return tuple(
            ToolSpec(tool.name, tool.description or "", tool.input_schema, server=server)
            for tool in found
        )

    async def call(self, episode: int, tool: ToolSpec, arguments: str) -> Reply:
        """One call, its arguments as JSON text."""
        assert tool.server is not None
        connection = self._connection(tool.server, episode)
        started = time.monotonic()
        limit = tool.timeout_s or self._timeout_s

        def reply(status: ResultStatus, text: str) -> Reply:
            hung = status is ResultStatus.TIMEOUT
            return Reply(status, text, time.monotonic() - started, hung)

        try:
            client = await connection.client()
        except McpError as error:
            return reply(ResultStatus.BROKEN_TOOL, str(error))
        from mcp.shared.exceptions import MCPError

        seconds = {"read_timeout_seconds": 2 * limit}  # instead of the client's _START_S
        try:
            async with connection.order, asyncio.timeout(limit):  # from its own start on
                if connection.ended:
                    return reply(ResultStatus.CRASHED, "its server ended with an earlier call")
                result = await client.call_tool(tool.name, json.loads(arguments), **seconds)
        except TimeoutError:
            connection.end()
            return reply(ResultStatus.TIMEOUT, f"{limit:g}")
        except MCPError as error:
            if connection.is_loss(error):
                connection.end()
                return reply(ResultStatus.CRASHED, "its server ended")
            return reply(ResultStatus.EXCEPTION, cut(error.message, self._max_output_chars)[0])
        except Exception as error:  # what a server answers may be anything
            return reply(ResultStatus.EXCEPTION, f"{type(error).__name__} in reading its reply")
        text, whole = cut(_text_of(result), self._max_output_chars)
        status = ResultStatus.OK if whole else ResultStatus.TRUNCATED
        return reply(ResultStatus.EXCEPTION if result.is_error else status, text)

    async def end_episode(self, episode: int) -> None:
        """Stop the servers that only this episode had."""
        own = [key for key in self._by_episode if key[1] == episode]
        await asyncio.gather(*[self._by_episode.pop(key).close() for key in own])

    async def stop(self) -> None:
        """End every connection."""
        await asyncio.gather(*[connection.close() for connection in tuple(self._all)])


class McpConnection:
    """The SDK's client of one server, and its process; a task of its own opens and closes both."""

    def __init__(self, server: McpServer, isolation: str) -> None:
        self._server = server
        self._isolation = "none" if server.trusted else isolation
        self._closing = asyncio.Event()
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._folder = tempfile.TemporaryDirectory(prefix="matchtir-", ignore_cleanup_errors=True)
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

    def is_loss(self, error: Any) -> bool:
        """Whether an error of the SDK is the loss of the server, whose own may have its code."""
        lost = error.code == _LOST and bool(self._server.url)
        return lost or error.message == "Connection closed"

    def end(self) -> None:
        """Begin to stop the server: it is asked to, and killed if it does not hear."""
        if not self._closing.is_set():
            self._closing.set()
            asyncio.get_running_loop().call_later(_STOP_S, self._force)

    async def close(self) -> None:
        """Stop the server; returns when it is gone."""
        self.end()
        await asyncio.wait([self.task])

    def _force(self) -> None:
        if self.task.done():
            return
        try:
            os.killpg(int(Path(self._folder.name, "pid").read_text()), signal.SIGKILL)
        except (OSError, ValueError):  # no process of ours
            self.task.cancel()

    async def _serve(self) -> None:
        try:
            from mcp.client import Client
        except ImportError as error:
            self._fail(f"the package mcp is needed for it: pip install -e '.[mcp]' ({error})")
            return
        with self._folder, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            try:
                transport = self._http() if self._server.url else self._stdio(said)
                async with Client(transport, read_timeout_seconds=_START_S) as client:
                    self._client.set_result(client)
                    await self._closing.wait()
            except Exception as error:  # whatever a foreign program does
                said.seek(0)
                self._fail(f"{_first(error)}\n{said.read()[-_STDERR_CHARS:]}".strip())
            finally:
                if not self._client.done():
                    self._fail("it was stopped")

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[Any]:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        url, token = self._server.url, self._server.token
        headers = {"Authorization": f"Bearer {variables([token])[token]}"} if token else {}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=None) as client,  # calls have their own
            streamable_http_client(url, http_client=client) as streams,
        ):
            yield streams

    def _stdio(self, said: TextIO) -> Any:
        from mcp import StdioServerParameters, stdio_client

        granted = variables(self._server.environment)
        shell, *arguments = [*_SHELL, f"{self._folder.name}/pid", *self._command()]
        parameters = StdioServerParameters(command=shell, args=arguments, env=granted)
        return stdio_client(parameters, errlog=said)

    def _command(self) -> Sequence[str]:
        """The server's command, confined unless it is trusted: it may read the files it names."""
        server = self._server
        program = shutil.which(server.command[0])
        if program is None:
            raise FileNotFoundError(f"no program {server.command[0]}")
        if self._isolation == "none":
            return server.command
        files = [os.path.abspath(part) for part in server.command[1:] if os.path.isfile(part)]
        place = f"{self._folder.name}/own"
        rules = Rules(place, self._isolation, server.network, 0, processes=128, cpu_s=0)
        os.makedirs(rules.scratch)
        return isolated_command(
            "isolation.run",
            rules=asdict(rules),
            command=[program, *server.command[1:]],
            reads=[os.path.realpath(program), *map(os.path.dirname, files)],
            environment=environment((), rules.scratch),
            granted=server.environment,
        )

    def _fail(self, reason: str) -> None:
        name = self._server.url or shlex.join(self._server.command)
        if self._client.done():
            log.warning("the MCP server %s: %s", name, reason)
            return
        self._client.set_exception(McpError(f"the MCP server {name} does not start: {reason}"))
        self._client.exception()  # seen: no warning where nobody waits for it


def _first(error: BaseException) -> BaseException:
    """What happened first, out of the groups that the SDK's tasks make of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _text_of(result: Any) -> str:
    """The text of a call's result; other kinds of content are named in its place."""
    if not result.content and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(
        item.text if item.type == "text" else f"[{item.type}]" for item in result.content
    )
