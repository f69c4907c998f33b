"""An engine behind an OpenAI-compatible server, for programs that speak only that protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from jinja2 import TemplateError

from matchtir.rollout.engine import Engine, Generation, SamplingParams, session_name
from matchtir.rollout.episode import EpisodeLimits, derive_seed
from matchtir.rollout.renderer import Renderer
from matchtir.tools.formats import HERMES, CallFormat
from matchtir.types import CallStatus, ToolCall

MODEL = "policy"  # the name under which the engine's model is served
_LARGEST_REQUEST = 1 << 28  # bytes


@dataclass(slots=True)
class ChatServer:
    """A running server, and what went wrong in it."""

    url: str
    counts: Counter[str] = field(default_factory=Counter)  # requests, and those refused, by reason
    error: Exception | None = None  # the first that the engine raised


@contextmanager
def serve(
    engine: Engine,
    renderer: Renderer,
    limits: EpisodeLimits,
    sampling: SamplingParams,
    seed: int = 0,
) -> Iterator[ChatServer]:
    """A server on the loopback interface, which runs in a thread for as long.

    A request is rendered by the chat template, sampled as one turn, and read by the project's
    parser: well-formed calls become `tool_calls`, any other text is `content`. The request's
    `user` becomes the task id in the name of the engine's session, and the number of assistant
    messages before it the number of the sample, so that a script knows its place.

    Args:
        limits: of tokens in a prompt, where a longer one gets status 400, and in a turn.
        sampling: how turns are drawn, whatever a request asks for.
        seed: of the sampling.

    Raises:
        Exception: at the end, what the engine raised first; the client saw status 500.
    """
    server = ChatServer("")
    settings = replace(sampling, max_new_tokens=limits.max_turn_tokens)
    handler = _Handler(server, engine, renderer, limits.max_prompt_tokens, settings, seed)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chat-server", daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_start(handler), loop).result()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    if server.error is not None:
        raise server.error


async def _start(handler: _Handler) -> web.AppRunner:
    application = web.Application(client_max_size=_LARGEST_REQUEST)
    application.router.add_post("/v1/chat/completions", handler.complete)
    application.router.add_get("/v1/models", handler.models)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


class _Handler:
    """Answers requests."""

    def __init__(
        self,
        server: ChatServer,
        engine: Engine,
        renderer: Renderer,
        max_prompt_tokens: int,
        sampling: SamplingParams,
        seed: int,
    ) -> None:
        self.server = server
        self.engine = engine
        self.renderer = renderer
        self.max_prompt_tokens = max_prompt_tokens
        self.sampling = sampling
        self.seed = seed
        self._serial = itertools.count()

    async def models(self, request: web.Request) -> web.Response:
        """The one model that is served."""
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def complete(self, request: web.Request) -> web.Response:
        """One turn."""
        self.server.counts["requests"] += 1
        try:
            body = await request.json()
            messages, user = body["messages"], str(body.get("user") or "")
            prompt = self.renderer.conversation_ids(messages, body.get("tools") or ())
        except (ValueError, KeyError, TypeError, TemplateError) as error:
            return self._refuse(f"{type(error).__name__}: {error}", "invalid_request_error")
        if len(prompt) > self.max_prompt_tokens:
            text = f"{len(prompt)} tokens, over max_prompt_tokens={self.max_prompt_tokens}"
            return self._refuse(text, "context_length_exceeded")
        said = sum(message["role"] == "assistant" for message in messages)
        try:
            generation = await self._sample(prompt, user, said)
        except Exception as error:
            self.server.error = self.server.error or error
            return self._refuse(f"{type(error).__name__}: {error}", "engine_error", status=500)
        sampled = len(generation.token_ids)
        return web.json_response(
            {
                "id": f"chatcmpl-{next(self._serial)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [self._choice(generation)],
                "usage": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": sampled,
                    "total_tokens": len(prompt) + sampled,
                },
            }
        )

    async def _sample(self, prompt: Sequence[int], user: str, said: int) -> Generation:
        session = session_name(self.seed, next(self._serial), said, user)
        seed = derive_seed(self.seed, user, said)
        try:
            return await self.engine.generate(session, prompt, self.sampling, seed)
        finally:
            self.engine.release(session)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        """What was sampled, as the protocol has it."""
        text = self.renderer.decode(generation.token_ids)
        calls = self.renderer.calls.parse(text, None) if generation.stopped else ()
        message, found = assistant_message(text, calls, self.renderer.calls)
        reason = "tool_calls" if found else "stop" if generation.stopped else "length"
        return {"index": 0, "message": message, "finish_reason": reason}

    def _refuse(self, text: str, code: str, status: int = 400) -> web.Response:
        self.server.counts[code] += 1
        return web.json_response({"error": {"message": text, "code": code}}, status=status)


def assistant_message(
    text: str, calls: Sequence[ToolCall], call_format: CallFormat = HERMES
) -> tuple[dict[str, Any], bool]:
    """A turn as a message of the protocol, and whether it has calls.

    Calls that cannot be read stay in the text.
    """
    reasoning, thought, spoken = text.rpartition("</think>")
    found = [call for call in calls if call.status is CallStatus.OK]
    content = call_format.before_calls(spoken) if found else spoken
    message: dict[str, Any] = {"role": "assistant", "content": content.strip()}
    if thought:
        message["reasoning_content"] = reasoning.removeprefix("<think>").strip()
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
    return message, bool(found)
