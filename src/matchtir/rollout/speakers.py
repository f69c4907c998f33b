"""Who speaks in episodes: an engine through a renderer, a chat server, somebody outside."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from matchtir.rollout.engine import Engine
from matchtir.rollout.episode import Attempt, Response, Speaker, User
from matchtir.rollout.http import EndpointError, HttpClient
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT, Renderer
from matchtir.rollout.templates import ChatMessage, plain_text
from matchtir.tools.formats import SURROGATE, call_from_api, without_thinking
from matchtir.types import ToolCall

_THINK_TAG = re.compile(r"</?think>")
# OpenAI's error code, and what vLLM and llama.cpp write in its place.
_BEYOND_CONTEXT = ("context_length", "context length", "context size")


class TokenSpeaker(Speaker):
    """An engine that reads and writes tokens, and the renderer that says what they mean."""

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self.engine = engine
        self.renderer: Renderer = renderer

    @property
    def version(self) -> int:  # type: ignore[override]
        """Of the engine's weights."""
        return self.engine.version

    @property
    def cache_tokens(self) -> int | None:  # type: ignore[override]
        """Of the engine."""
        return self.engine.cache_tokens

    async def speak(self, attempt: Attempt, room: int) -> Response:
        """Sample the next turn; what was sampled is never encoded again."""
        sampling = replace(attempt.sampling, max_new_tokens=room)
        said = await self.engine.generate(
            attempt.session, attempt.context, sampling, attempt.turn_seed
        )
        text = self.renderer.decode(said.token_ids)
        return Response(text, said.stopped, token_ids=said.token_ids, logprobs=said.logprobs)

    def release(self, session: str) -> None:
        """The engine may forget the episode."""
        self.engine.release(session)


class ChatEndpoint(Speaker):
    """A model behind a server of the OpenAI-compatible chat-completions protocol.

    Calls that the server found are executed as it gave them, and nothing that the text may hold
    besides; where it gave none they are read in the text. Reasoning is never read. The history goes
    back as the server gave it, without the reasoning, as servers expect.

    Args:
        url: of the API, as http://localhost:8000/v1; without a path, /v1 is added.
        model: name of the model; None: the one that the server lists.
        api_key_variable: environment variable with the key; no key is sent where it is not set.
        system_prompt: first message of every conversation; empty: none.
        tool_choice: "auto", or "none" for servers that were started without a parser of calls:
            they leave calls in the text, where they are found too.
        max_tokens: of one turn; None: as many as the server allows.
        extra_body: further fields of each request.
        timeout_s, retries, requests_per_minute: see `HttpClient`; its counts get the
            `prompt_tokens` and `completion_tokens` that the server reports.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        tool_choice: str = "auto",
        max_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
        retries: int = 6,
        requests_per_minute: float | None = None,
    ) -> None:
        if tool_choice not in ("auto", "none"):
            raise ValueError(f"tool_choice must be auto or none, not {tool_choice!r}")
        key = os.environ.get(api_key_variable)
        self.client = HttpClient(api_url(url), timeout_s, retries, key, requests_per_minute)
        self.model = model
        self.system_prompt = system_prompt
        self.tool_choice = tool_choice
        self.max_tokens = max_tokens
        self.extra_body = dict(extra_body or {})
        self._said: dict[str, list[ChatMessage]] = defaultdict(list)  # of each session, as given

    async def speak(self, attempt: Attempt, room: int) -> Response:
        """Ask for the next message, with as much room as the server gives.

        A conversation that is beyond the server's context gets an empty turn that was cut.

        Raises:
            EndpointError: the server refuses the request, or cannot be reached.
        """
        sampling, tools = attempt.sampling, [tool.schema() for tool in attempt.task.tools]
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "user": attempt.task.task_id,
            **({"tools": tools, "tool_choice": self.tool_choice} if tools else {}),
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            **({"max_tokens": self.max_tokens} if self.max_tokens is not None else {}),
        }
        try:
            answer = await self.ask(attempt, self._messages(attempt), options)
        except EndpointError as error:
            if not any(phrase in (error.said or "").lower() for phrase in _BEYOND_CONTEXT):
                raise
            self.client.counts["beyond_context"] += 1
            return Response("", stopped=False)
        with self.reading(answer):
            usage = answer.get("usage") or {}
            for kind in {"prompt_tokens", "completion_tokens"} & usage.keys():
                self.client.counts[kind] += usage[kind]
            choice = answer["choices"][0]
            message, stopped = choice["message"], choice["finish_reason"] != "length"
            names = {tool.name for tool in attempt.task.tools}
            given = [call["function"] for call in message.get("tool_calls") or ()]
            calls = tuple(call_from_api(c["name"], c.get("arguments"), names) for c in given)
            said = Response(turn_text(message, calls), stopped, calls or None)
        self._said[attempt.session].append(message)
        return said

    async def ask(
        self, attempt: Attempt, messages: Sequence[ChatMessage], options: Mapping[str, Any]
    ) -> Any:
        """The server's answer to messages, for the next turn of an attempt."""
        body = {"model": await self.model_name(), "messages": messages, "seed": attempt.turn_seed}
        body |= {**options, **self.extra_body}
        return await self.client.request("POST", "/chat/completions", body)

    @contextmanager
    def reading(self, answer: Any) -> Iterator[None]:
        """Raises EndpointError where an answer is not of the protocol."""
        try:
            yield
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.client.url} answered {str(answer)[:500]}") from error

    def release(self, session: str) -> None:
        """Forget its messages."""
        self._said.pop(session, None)

    async def model_name(self) -> str:
        """The configured model, or the only one that the server lists.

        Raises:
            EndpointError: there is none, or there are several to choose from.
        """
        if self.model is None:
            answer = await self.client.request("GET", "/models")
            with self.reading(answer):
                names = [item["id"] for item in answer["data"]]
            if len(names) != 1:
                raise EndpointError(f"{self.client.url} has the models {names}: choose one of them")
            self.model = names[0]
        return self.model

    def _messages(self, attempt: Attempt) -> list[ChatMessage]:
        """The conversation so far; each result refers to its call.

        Results of calls that were only in the text have none to refer to, but must name one.
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        history = [{"role": m.role, "content": m.content} for m in attempt.task.history]
        question = {"role": "user", "content": attempt.task.question}
        messages: list[ChatMessage] = [*system, *history, question]
        for turn, said in zip(attempt.turns, self._said[attempt.session], strict=True):
            calls = [
                {**call, "id": call.get("id") or f"call_{len(messages)}_{number}"}
                for number, call in enumerate(said.get("tool_calls") or ())
            ]
            kept = {"role": "assistant", "content": plain_text(said.get("content"))}
            messages.append(kept | ({"tool_calls": calls} if calls else {}))
            for number, result in enumerate(turn.results):
                name = calls[number]["id"] if number < len(calls) else f"call_{len(messages)}"
                messages.append({"role": "tool", "content": result.output, "tool_call_id": name})
            if turn.reply:
                messages.append({"role": "user", "content": turn.reply})
        return messages


class EndpointUser(User):
    """A model behind a chat-completions server plays the user of tasks with a `user_goal`.

    It is told the goal and begins as the task's question does; it ends the conversation by `STOP`.
    The users of other tasks say what the tasks have written down.

    Args:
        endpoint: the server.
        temperature: of its messages.
    """

    STOP = "###STOP###"
    RULES = (
        "You play the user of an assistant. Write the user's next message and nothing else. Say "
        "only what you are asked for, do not make up what you do not know. When your goal is "
        f"reached, or cannot be, write {STOP} alone.\n\nYour goal: "
    )

    def __init__(self, endpoint: ChatEndpoint, temperature: float = 0.0) -> None:
        self.endpoint = endpoint
        self.temperature = temperature

    async def reply(self, attempt: Attempt, said: str) -> str | None:
        """Ask for the user's next message.

        Raises:
            EndpointError: the server refuses the request, or cannot be reached.
        """
        task = attempt.task
        if not task.user_goal:
            return await super().reply(attempt, said)
        messages = [
            {"role": "system", "content": self.RULES + task.user_goal},
            {"role": "assistant", "content": task.question},
        ]
        for turn in attempt.turns:
            if turn.reply:
                messages.append({"role": "user", "content": without_thinking(turn.text).strip()})
                messages.append({"role": "assistant", "content": turn.reply})
        messages.append({"role": "user", "content": without_thinking(said).strip()})
        options = {"temperature": self.temperature}
        answer = await self.endpoint.ask(attempt, messages, options)
        with self.endpoint.reading(answer):
            text = plain_text(answer["choices"][0]["message"].get("content"))
        text = SURROGATE.sub("\ufffd", without_thinking(text).strip())
        return None if self.STOP in text or not text else text


def api_url(url: str) -> str:
    """The URL that the paths of the chat-completions protocol are appended to."""
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def turn_text(message: ChatMessage, calls: Sequence[ToolCall]) -> str:
    """An assistant message as the project's format of turns writes it, for readers of traces.

    Lone surrogates become U+FFFD: no trace could be written with them.
    """
    parts = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:  # a tag of its own would end it
        parts.append(f"<think>\n{_THINK_TAG.sub('', reasoning)}\n</think>\n")
    parts.append(plain_text(message.get("content")))
    parts += [f"<tool_call>\n{call.text}\n</tool_call>" for call in calls]
    return SURROGATE.sub("\ufffd", "\n".join(part for part in parts if part))
