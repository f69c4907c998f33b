"""A model behind an OpenAI-compatible chat-completions server, for episodes without token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from matchtir.rollout.attempt import task_id_of
from matchtir.rollout.chat_client import BeyondContextError, ChatClient, EndpointError
from matchtir.rollout.chat_format import ChatMessage
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT
from matchtir.tools.formats import HERMES, CallFormat
from matchtir.types import Task, ToolResult


class ChatEndpoint:
    """Engine and conversation format in one: its vocabulary has one id for each message.

    The episode loop only strings ids together, counts them, and asks for their text, so that it
    runs as it does with tokens; limits of tokens mean nothing here, and log-probabilities are 0. A
    turn's text has the calls that the server found in the form that the project's parser reads:
    it remains the one reader of calls. The history goes back as the server gave it, without the
    reasoning, as servers expect.

    Args:
        url, api_key_variable, timeout_s, retries, requests_per_minute: see `ChatClient`; its counts
            get the `prompt_tokens` and `completion_tokens` that the server reports.
        model: name of the model; None: the one that the server lists.
        system_prompt: first message of every conversation; empty: none.
        tool_choice: "auto", or "none" for servers that were started without a parser of calls:
            they leave calls in the text, where they are found too.
        max_tokens: of one turn; None: as many as the server allows.
        extra_body: further fields of each request.
    """

    own_weights = True
    calls: CallFormat = HERMES

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
        self.client = ChatClient(url, api_key_variable, timeout_s, retries, requests_per_minute)
        self.model = model
        self.system_prompt = system_prompt
        self.tool_choice = tool_choice
        self.max_tokens = max_tokens
        self.extra_body = dict(extra_body or {})
        self.version = 0
        self._messages: list[ChatMessage] = []  # by id
        self._tools: dict[int, list[dict[str, Any]]] = {}  # by the id of their question

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

    def observation_ids(
        self, results: Sequence[ToolResult], turn_ids: Sequence[int]
    ) -> tuple[int, ...]:
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
        try:
            answer = await self.client.request(
                "POST", "/chat/completions", {**body, **self.extra_body}
            )
        except BeyondContextError:
            self.client.counts["beyond_context"] += 1
            return self._generation({"role": "assistant", "content": ""}, stopped=False)
        try:
            usage = answer.get("usage") or {}
            for kind in {"prompt_tokens", "completion_tokens"} & usage.keys():
                self.client.counts[kind] += usage[kind]
            choice = answer["choices"][0]
            return self._generation(choice["message"], choice["finish_reason"] != "length")
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.client.url} answered {str(answer)[:500]}") from error

    def release(self, session: str) -> None:
        """Nothing is kept for a session."""

    def sync(self, policy: nn.Module, version: int) -> None:
        """Raises: the weights are the server's."""
        raise NotImplementedError("an endpoint cannot be given weights")

    def close(self) -> None:
        """Nothing is kept."""

    async def model_name(self) -> str:
        """The configured model, or the only one that the server lists.

        Raises:
            EndpointError: there is none, or there are several to choose from.
        """
        if self.model is None:
            answer = await self.client.request("GET", "/models")
            names = [item["id"] for item in answer["data"]]
            if len(names) != 1:
                raise EndpointError(f"{self.client.url} has the models {names}: choose one of them")
            self.model = names[0]
        return self.model

    # -- messages -----------------------------------------------------------------------------

    def _add(self, message: ChatMessage) -> int:
        self._messages.append(message)
        return len(self._messages) - 1

    def _generation(self, message: ChatMessage, stopped: bool) -> Generation:
        """An assistant message as a turn; every call has an id that results can refer to."""
        index = len(self._messages)
        calls = [
            {**call, "id": call.get("id") or f"call_{index}_{number}"}
            for number, call in enumerate(message.get("tool_calls") or ())
        ]
        return Generation((self._add({**message, "tool_calls": calls}),), (0.0,), stopped)

    def _conversation(self, context: Sequence[int]) -> list[ChatMessage]:
        """The messages of a context; each result refers to its call.

        Results of calls that were only in the text have none to refer to, but must name one.
        """
        conversation: list[ChatMessage] = []
        waiting: list[str] = []
        for index in context:
            message = self._messages[index]
            if message["role"] == "assistant":
                waiting = [call["id"] for call in message["tool_calls"]]
                kept = {"role": "assistant", "content": message.get("content") or ""}
                message = kept | ({"tool_calls": message["tool_calls"]} if waiting else {})
            elif message["role"] == "tool":
                call = waiting.pop(0) if waiting else f"call_{index}"
                message = {**message, "tool_call_id": call}
            conversation.append(message)
        return conversation


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
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        block = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
        parts.append(f"<tool_call>\n{block}\n</tool_call>")
    return "\n".join(parts)
