"""An engine behind an OpenAI-compatible server, for programs that speak only that protocol."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web
from jinja2 import TemplateError

from matchtir.rollout.engine import Engine, Generation, SamplingParams, session_name
from matchtir.rollout.episode import EpisodeLimits, derive_seed
from matchtir.rollout.renderer import Renderer
from matchtir.tools.formats import HERMES, CallFormat, without_thinking
from matchtir.types import CallStatus, ToolCall
from matchtir.utils.loop_thread import LoopThread

MODEL = "policy"  # the name under which the engine's model is served
_LARGEST_REQUEST = 1 << 28  # bytes


class ChatServer:
    """A server on the loopback interface: it runs in a thread while this is entered.

    A request is rendered by the chat template, sampled as one turn, and read by the project's
    parser: well-formed calls become `tool_calls`, any other text is `content`. The request's
    `user` becomes the task id in the name of the engine's session, and the number of assistant
    messages before it the number of the sample, so that a script knows its place.

    What the engine raises is seen by the client as status 500, and raised, the first of it, where
    the server is left.

    Args:
        limits: of tokens in a prompt, where a longer one gets status 400, and in a turn.
        sampling: how turns are drawn, whatever a request asks for.
        seed: of the sampling.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        limits: EpisodeLimits,
        sampling: SamplingParams,
        seed: int = 0,
    ) -> None:
        self.url = ""
        self.counts: Counter[str] = Counter()  # requests, and those refused, by reason
        self.error: Exception | None = None  # the first that the engine raised
        self._engine = engine
        self._renderer = renderer
        self._max_prompt_tokens = limits.max_prompt_tokens
        self._sampling = replace(sampling, max_new_tokens=limits.max_turn_tokens)
        self._seed = seed
        self._serial = itertools.count()
        self._thread = LoopThread("chat-server")

    def __enter__(self) -> ChatServer:
        self._runner = self._thread.submit(self._start()).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.stop(self._runner.cleanup)
        if kind is None and self.error is not None:
            raise self.error

    async def _start(self) -> web.AppRunner:
        """Listen on a free port."""
        application = web.Application(client_max_size=_LARGEST_REQUEST)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.Response:
        """One turn."""
        self.counts["requests"] += 1
        try:
            body = await request.json()
            messages, user = body["messages"], str(body.get("user") or "")
            offered = [tool.get("function") or tool for tool in body.get("tools") or ()]
            tools = {each["name"]: each.get("parameters") or {} for each in offered}
            prompt = self._renderer.conversation_ids(messages, body.get("tools") or ())
            said = sum(message["role"] == "assistant" for message in messages)
        except (ValueError, KeyError, TypeError, TemplateError) as error:
            return self._refuse(f"{type(error).__name__}: {error}", "invalid_request_error")
        if len(prompt) > self._max_prompt_tokens:
            text = f"{len(prompt)} tokens, over max_prompt_tokens={self._max_prompt_tokens}"
            return self._refuse(text, "context_length_exceeded")
        session = session_name(self._seed, next(self._serial), said, user)
        try:
            seed = derive_seed(self._seed, user, said)
            generation = await self._engine.generate(session, prompt, self._sampling, seed)
        except Exception as error:
            self.error = self.error or error
            return self._refuse(f"{type(error).__name__}: {error}", "engine_error", status=500)
        finally:
            self._engine.release(session)
        return web.json_response(self._answer(session, len(prompt), generation, tools))

    def _answer(
        self, name: str, read: int, generation: Generation, tools: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What was sampled after `read` tokens, as the protocol has it."""
        text, written = self._renderer.decode(generation.token_ids), self._renderer.calls
        calls = written.parse(text, tools) if generation.stopped else ()
        message = assistant_message(text, calls, written)
        reason = "stop" if generation.stopped else "length"
        reason = "tool_calls" if "tool_calls" in message else reason
        sampled = len(generation.token_ids)
        usage = {"prompt_tokens": read, "completion_tokens": sampled}
        return {
            "id": f"chatcmpl-{name}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {**usage, "total_tokens": read + sampled},
        }

    def _refuse(self, text: str, code: str, status: int = 400) -> web.Response:
        self.counts[code] += 1
        return web.json_response({"error": {"message": text, "code": code}}, status=status)


def assistant_message(
    text: str, calls: Sequence[ToolCall], call_format: CallFormat = HERMES
) -> dict[str, Any]:
    """A turn as a message of the protocol; calls that cannot be read stay in the text."""
    spoken = without_thinking(text)
    reasoning = text.removesuffix(spoken).strip().removeprefix("<think>").removesuffix("</think>")
    read = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)
    found = [call for call in calls if call.status in read]
    content = call_format.before_calls(spoken) if found else spoken
    message: dict[str, Any] = {"role": "assistant", "content": content.strip()}
    if len(spoken) < len(text) and text.endswith(spoken):
        message["reasoning_content"] = reasoning.strip()
    if found:
        message["tool_calls"] = [
            {
                "id": f"call_{uuid.uuid4().hex[:12]}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in found
        ]
    return message
