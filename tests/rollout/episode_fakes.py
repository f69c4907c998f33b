"""Tokenizers, tasks and a sandbox for the tests of the rollout."""

import os
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoTokenizer

from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.engine import Generation, SamplingParams, ScriptedEngine
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.types import CallStatus, ResultStatus, Task, ToolCall, ToolResult, ToolSpec

WORDS = ("alpha", "beta", "gamma", "delta", "What", "is", "question", "city", "mayor_of")


@lru_cache(maxsize=1)
def small_tokenizer():
    return build_tokenizer(WORDS)


@lru_cache(maxsize=1)
def qwen3_tokenizer():
    """Qwen3's real tokenizer with its real template; skips the test where it is absent."""
    if "MATCHTIR_DATA" not in os.environ:
        pytest.skip("MATCHTIR_DATA is unset: Qwen3's tokenizer is not at hand")
    return AutoTokenizer.from_pretrained(Path(os.environ["MATCHTIR_DATA"]) / "qwen3_tokenizer")


TOKENIZERS = pytest.mark.parametrize("load", [small_tokenizer, qwen3_tokenizer])


def tool(name: str = "mayor_of", description: str = "mayor of a city") -> ToolSpec:
    properties = {"city": {"type": "string", "enum": ["alpha", "beta"]}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    return ToolSpec(name, description, parameters)


def task(task_id: str = "t", question: str = "What is alpha ?", **fields) -> Task:
    given = {"tools": (tool(),), "gold_calls": (), "answer": "beta"} | fields
    return Task(task_id=task_id, question=question, **given)


def call_text(city: str) -> str:
    return f'<tool_call>\n{{"name": "mayor_of", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


async def echo(call: ToolCall) -> ToolResult:
    """Answers with the arguments of the call, and rejects refused calls, as every session does."""
    if call.status is not CallStatus.OK:
        return ToolResult(f"Error: {call.status}", ResultStatus.REJECTED)
    return ToolResult(f"mayor of {call.arguments['city']}", seconds=0.5)


class FakeSession:
    def __init__(self, sandbox: "FakeSandbox") -> None:
        self.sandbox = sandbox
        self.is_closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        assert not self.is_closed
        return await self.sandbox.answer(call)

    async def state(self) -> dict:
        return {}

    async def close(self) -> None:
        await self.sandbox.before_close()
        assert not self.is_closed
        self.is_closed = True


class FakeSandbox:
    """Sessions whose calls are answered by a coroutine function."""

    def __init__(self, answer: Callable[[ToolCall], Awaitable[ToolResult]] = echo) -> None:
        self.answer = answer
        self.sessions: list[FakeSession] = []

    async def open(self, tools, state=None) -> FakeSession:
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]

    async def before_close(self) -> None:
        """A place for tests to hold up a close."""

    def shutdown(self) -> None:
        raise AssertionError("the episode loop does not own the sandbox")


RENDERER = Renderer(small_tokenizer(), "", thinking=False)
SAMPLING = SamplingParams(temperature=0.7)
ANSWER = "<answer>beta</answer>"


class Request(NamedTuple):
    """What an engine was asked for."""

    session: str
    context: tuple[int, ...]
    sampling: SamplingParams
    seed: int


class Engine(ScriptedEngine):
    """Writes listed turns, the same for every session; notes requests and released sessions.

    A context must extend the session's earlier one, as engines with a cache want it.
    """

    def __init__(self, *turns: str, script=None, renderer: Renderer = RENDERER) -> None:
        super().__init__(renderer, script or (lambda session, turn: turns[turn]))
        self.requests: list[Request] = []
        self.released: list[str] = []
        self.contexts: dict[str, tuple[int, ...]] = {}

    async def generate(self, session, context, sampling, seed) -> Generation:
        context = tuple(context)
        known = self.contexts.get(session, ())
        assert context[: len(known)] == known, f"session {session}: {context} after {known}"
        self.requests.append(Request(session, context, sampling, seed))
        generation = await super().generate(session, context, sampling, seed)
        self.contexts[session] = context + generation.token_ids
        return generation

    def release(self, session: str) -> None:
        self.released.append(session)
        self.contexts.pop(session, None)
        super().release(session)


def runner_of(engine, sandbox=None, max_concurrent=64, **limits) -> EpisodeRunner:
    speaker = TokenSpeaker(engine, RENDERER)
    return EpisodeRunner(speaker, sandbox or FakeSandbox(), EpisodeLimits(**limits), max_concurrent)
