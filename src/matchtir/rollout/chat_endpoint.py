"""A model behind an OpenAI-compatible chat-completions server, for episodes without token ids."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from torch import nn

from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.episode import task_id_of
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT, ChatMessage
from matchtir.types import Task, ToolResult

log = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 30.0


class EndpointError(RuntimeError):
    """The server refused a request, or could not be reached; the message says what it said."""


class ChatEndpoint:
    """Engine and conversation format in one: its vocabulary has one id for each message.

    The episode loop only strings ids together, counts them, and asks for their text, so that it
    runs as it does with tokens; limits of tokens mean nothing here, and log-probabilities are 0. A
    turn's text has the calls that the server found in the form that the project's parser reads:
    it remains the one reader of calls. The history goes back as the server gave it, without the
    reasoning, as servers expect.

    Args:
        url: of the API, as http://localhost:8000/v1; without a path, /v1 is added.
        model: name of the model; None: the one that the server lists.
        api_key_variable: environment variable with the key; no key is sent where it is not set.
        system_prompt: first message of every conversation; empty: none.
        tool_choice: "auto", or "none" for servers that were started without a parser of calls:
            they leave calls in the text, where they are found too.
        max_tokens: of one turn; None: as many as the server allows.
        extra_body: further fields of each request.
        timeout_s: of one request.
        retries: after failures of the network or an overloaded server, with growing pauses.

    `counts` holds how many requests were made, were made again, and were beyond the context.
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
    ) -> None:
        if tool_choice not in ("auto", "none"):
            raise ValueError(f"tool_choice must be auto or none, not {tool_choice!r}")
        self.url = api_url(url)
        self.model = model
        self.api_key = os.environ.get(api_key_variable)
        self.system_prompt = system_prompt
        self.tool_choice = tool_choice
        self.max_tokens = max_tokens
        self.extra_body = dict(extra_body or {})
        self.timeout = aiohttp.ClientTimeout(total=timeout_s)
        self.retries = retries
        self.version = 0
        self.counts: Counter[str] = Counter()
        self._messages: list[ChatMessage] = []  # by id
        self._tools: dict[
            int, list[ChatMessage]
        ] = {}  # by the id of the question they are offered for

    # -- the format ---------------------------------------------------------------------------

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """The ids of the system message, the history and the question."""
        messages = [{"role": m.role, "content": m.content} for m in task.history]
        messages.append({"role": "user", "content": task.question})
        if self.system_prompt:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        ids = tuple(self._add(message) for message in messages)
        self._tools[ids[-1]] = [tool.schema() for tool in task.tools]
        return ids

    def observation_ids(self, results: Sequence[ToolResult]) -> tuple[int, ...]:
        """The ids of one message per result."""
        return tuple(self._add({"role": "tool", "content": item.output}) for item in results)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn: reasoning, content, and calls in the form of the parser."""
        return "".join(turn_text(self._messages[index]) for index in token_ids)

    # -- the engine ---------------------------------------------------------------------------

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Ask for the next message.

        A conversation that is beyond the server's context gets an empty turn that was cut.

        Raises:
            EndpointError: the server refuses the request, or cannot be reached.
        """
        body: dict[str, Any] = {
            "model": await self.model_name(),
            "messages": self._conversation(context),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "user": task_id_of(session),
        }
        tools = next(self._tools[index] for index in context if index in self._tools)
        if tools:
            body |= {"tools": tools, "tool_choice": self.tool_choice}
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        answer = await self._request("POST", "/chat/completions", {**body, **self.extra_body})
        if answer is None:
            return self._generation({"role": "assistant", "content": ""}, stopped=False)
        try:
            choice = answer["choices"][0]
            return self._generation(choice["message"], choice["finish_reason"] != "length")
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.url} answered {str(answer)[:500]}") from error

    def release(self, session: str) -> None:
        """Nothing is kept for a session."""

    def sync(self, policy: nn.Module, version: int) -> None:
        """Raises: the weights are the server's."""
        raise NotImplementedError("an endpoint cannot be given weights")

    async def model_name(self) -> str:
        """The configured model, or the only one that the server lists.

        Raises:
            EndpointError: there is none, or there are several to choose from.
        """
        if self.model is None:
            answer = await self._request("GET", "/models", None)
            names = [item["id"] for item in (answer or {}).get("data", ())]
            if len(names) != 1:
                raise EndpointError(f"{self.url} has the models {names}: choose one of them")
            self.model = names[0]
        return self.model

    # -- messages -----------------------------------------------------------------------------

    def _add(self, message: ChatMessage) -> int:
        self._messages.append(message)
        return len(self._messages) - 1

    def _generation(self, message: ChatMessage, stopped: bool) -> Generation:
        return Generation((self._add(message),), (0.0,), stopped)

    def _conversation(self, context: Sequence[int]) -> list[ChatMessage]:
        """The messages of a context; each result names the call that it belongs to."""
        conversation: list[ChatMessage] = []
        waiting: list[str] = []
        for index in context:
            message = self._messages[index]
            if message["role"] == "assistant":
                kept = ("role", "content", "tool_calls")
                message = {key: message[key] for key in kept if message.get(key) is not None}
                waiting = [call["id"] for call in message.get("tool_calls", ())]
            elif message["role"] == "tool":
                call = waiting.pop(0) if waiting else f"call_{len(conversation)}"
                message = {**message, "tool_call_id": call}
            conversation.append(message)
        return conversation

    # -- the network --------------------------------------------------------------------------

    async def _request(self, method: str, path: str, body: Any) -> Any:
        """The answer as JSON; None where the conversation is beyond the server's context."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        for attempt in range(self.retries + 1):
            self.counts["requests"] += 1
            try:
                async with (
                    aiohttp.ClientSession(timeout=self.timeout, headers=headers) as session,
                    session.request(method, self.url + path, json=body) as response,
                ):
                    text = await response.text()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError) as error:
                status, text = 0, f"{type(error).__name__} {error}"
            if status == 200:
                return json.loads(text)
            if status and status not in _TRY_AGAIN:
                if _beyond_context(text):
                    self.counts["beyond_context"] += 1
                    return None
                raise EndpointError(f"{method} {self.url}{path}: status {status}: {text[:1000]}")
            log.warning("%s%s: %s: %s", self.url, path, status or "no answer", text[:200])
            if attempt < self.retries:
                self.counts["retries"] += 1
                await asyncio.sleep(min(2.0**attempt, _LONGEST_WAIT_S))
        raise EndpointError(f"{self.url}{path} failed {self.retries + 1} times; last: {text[:500]}")


def api_url(url: str) -> str:
    """The URL that the paths of the protocol are appended to."""
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def turn_text(message: ChatMessage) -> str:
    """An assistant message as the project's format of turns writes it."""
    parts = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        parts.append(f"<think>\n{reasoning}\n</think>\n")
    if message.get("content"):
        parts.append(message["content"])
    for call in message.get("tool_calls") or ():
        name, arguments = call["function"]["name"], call["function"].get("arguments") or "{}"
        block = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
        parts.append(f"<tool_call>\n{block}\n</tool_call>")
    return "\n".join(parts)


def _beyond_context(text: str) -> bool:
    """OpenAI's error code, and what vLLM and llama.cpp write in its place."""
    text = text.lower()
    return any(phrase in text for phrase in ("context_length", "context length", "context size"))
