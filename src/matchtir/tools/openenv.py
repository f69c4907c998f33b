"""External environments, behind servers of the OpenEnv protocol: a session is an episode there.

A session is a WebSocket at /ws: a "reset" begins an episode, each "step" is an action. The answer
is an observation, its reward, and whether the episode is done. Environments name their tools (MCP),
or take actions of one schema. The package openenv is not needed on this side.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp

from matchtir.tools.formats import refusal
from matchtir.types import ENVIRONMENT, ResultStatus, ToolCall, ToolResult, ToolSpec
from matchtir.utils.options import UserError

# The tool of an environment without named ones; OpenEnv keeps the name free.
STEP = "step"
_STATUSES = {"invalid_args": ResultStatus.BAD_ARGUMENTS, "timeout": ResultStatus.TIMEOUT}


class RefusedError(RuntimeError):
    """What a server says of a message that it does not take."""


class Connection:
    """A session of a server; one question at a time. Made inside the event loop that uses it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._http = aiohttp.ClientSession()
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; afterwards the server has room for another one."""
        with suppress(TimeoutError, ConnectionError, aiohttp.ClientError):
            async with self._http, asyncio.timeout(self._timeout_s):
                if self._socket is not None:
                    await self._socket.send_json({"type": "close"})
                    while (await self._socket.receive()).type is aiohttp.WSMsgType.TEXT:
                        pass  # an answer that came too late

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a "reset" or a "step": `observation`, `reward`, `done`.

        Raises:
            RefusedError: the server does not take it.
            TimeoutError: it took too long; what it says later would answer another question.
            UserError: there is no such server, or it has ended the session.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._socket is None:
                    self._socket = await self._http.ws_connect(f"{self.url}/ws", max_msg_size=0)
                await self._socket.send_json({"type": kind, "data": dict(data)})
                message = await self._socket.receive()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UserError(f"{self.url}: no OpenEnv server answers: {error}") from error
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise UserError(f"{self.url}: the server has ended the session")
        answer = json.loads(message.data)
        if answer["type"] == "error":
            said = [answer["data"].get("message", "it is refused")]
            for problem in answer["data"].get("errors", ()):
                said.append(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}")
            raise RefusedError("; ".join(said))
        return answer["data"]

    async def tools(self) -> tuple[ToolSpec, ...]:
        """The tools by their names, or `STEP` with the schema of the environment's actions."""
        try:
            answer = await self.ask("step", {"type": "list_tools"})
        except RefusedError:
            async with self._http.get(f"{self.url}/schema") as response:
                schema = (await response.json())["action"]
            own = {k: v for k, v in schema["properties"].items() if k != "metadata"}
            text = schema.get("description", "Act.")
            return (ToolSpec(STEP, text, {**schema, "properties": own}, owner=ENVIRONMENT),)
        return tuple(
            ToolSpec(tool["name"], tool["description"], tool["input_schema"], owner=ENVIRONMENT)
            for tool in answer["observation"]["tools"]
        )


class OpenEnvSandbox:
    """Opens an episode of an environment for each session; calls are its steps.

    Args:
        url: of the server, as http://localhost:8000.
        solved: the sum of rewards from which an episode is a success.
        timeout_s: of one step.

    There are as many sessions as episodes under way: who plays them limits these, to what the
    server takes. Were they to wait here, an engine that waits for their calls would wait for ever.
    """

    def __init__(self, url: str, solved: float = 1.0, timeout_s: float = 60.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s={timeout_s} must be positive")
        self.url = url.rstrip("/")
        self.solved = solved
        self.timeout_s = timeout_s

    def connected(self) -> Connection:
        """A session, to be entered, and closed at the end."""
        return Connection(self.url, self.timeout_s)

    async def open(
        self, tools: Sequence[ToolSpec], state: Mapping[str, Any] | None = None
    ) -> OpenEnvSession:
        """Begin an episode, with what `state` has for `ENVIRONMENT` as arguments of its reset.

        Raises:
            UserError: there is no such server, or it does not take this reset, or not in time.
        """
        session = OpenEnvSession(self, [tool.name for tool in tools])
        try:
            await session.connection.ask("reset", (state or {}).get(ENVIRONMENT, {}))
        except BaseException as error:
            await session.close()
            if isinstance(error, RefusedError):
                limits = "rollout.episodes.max_concurrent or, evaluating, max_concurrent"
                raise UserError(f"{self.url}: {error} ({limits} limits episodes)") from error
            if isinstance(error, TimeoutError):
                text = f"no answer to a reset within {self.timeout_s:g} seconds"
                raise UserError(f"{self.url}: {text}") from error
            raise
        return session

    def shutdown(self) -> None:
        """There are no processes here."""


class OpenEnvSession:
    """An episode of an environment; the calls of a turn are steps one after the other."""

    def __init__(self, sandbox: OpenEnvSandbox, names: Sequence[str]) -> None:
        self._sandbox = sandbox
        self._names = names
        self.connection = sandbox.connected()
        self._one_at_a_time = asyncio.Lock()
        self.reward = 0.0
        self.over = False

    async def call(self, call: ToolCall) -> ToolResult:
        """Make a step. What the environment refuses is the policy's to read."""
        if refused := refusal(call, self._names):
            return refused
        async with self._one_at_a_time:
            if self.over:
                return ToolResult("Error: the episode is over.", ResultStatus.REJECTED)
            started = time.perf_counter()
            text, status = await self._step(call)
            return ToolResult(text, status, round(time.perf_counter() - started, 6))

    async def _step(self, call: ToolCall) -> tuple[str, ResultStatus]:
        named = {"type": "call_tool", "tool_name": call.name, "arguments": call.arguments}
        try:
            answer = await self.connection.ask(
                "step", call.arguments if call.name == STEP else named
            )
        except RefusedError as error:
            return f"Error: {error}", ResultStatus.BAD_ARGUMENTS
        except UserError as error:  # a lost session is lost to its episode alone
            self.over = True
            return f"Error: {error}.", ResultStatus.CRASHED
        except TimeoutError:
            self.over = True
            seconds = self._sandbox.timeout_s
            return f"Error: no answer within {seconds:g} seconds.", ResultStatus.TIMEOUT
        self.reward += float(answer.get("reward") or 0.0)
        self.over = bool(answer.get("done"))
        failed = answer["observation"].get("error")
        if isinstance(failed, Mapping):  # of the call, not a word of the tool
            kind = _STATUSES.get(failed["error_type"], ResultStatus.EXCEPTION)
            return f"Error: {failed['message']}", kind
        return observation_text(answer["observation"]), ResultStatus.OK

    async def state(self) -> Mapping[str, Any]:
        """The sum of the rewards, and whether that solves it."""
        solved = self.reward >= self._sandbox.solved
        return {ENVIRONMENT: {"reward": self.reward, "solved": solved}}

    async def close(self) -> None:
        """End the session."""
        await self.connection.close()


def observation_text(observation: Mapping[str, Any]) -> str:
    """What a policy reads: the result of a tool, or the fields of an observation as JSON.

    Metadata are left out where there is anything else: they are for those who look on.
    """
    result = observation.get("result")
    if isinstance(result, Mapping) and "data" in result:
        result = result["data"]
    fields = {k: v for k, v in observation.items() if k != "metadata" and v not in (None, [], {})}
    shown = result if result is not None else fields or observation.get("metadata") or {}
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
