"""Tokenizers, tasks and a sandbox for the tests of the rollout."""

import asyncio
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoTokenizer

from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.engine import SamplingParams, ScriptedEngine
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.types import CallStatus, ResultStatus, Task, ToolResult, ToolSpec

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


def tool(name="mayor_of", description="mayor of a city"):
    properties = {"city": {"type": "string", "enum": ["alpha", "beta"]}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    return ToolSpec(name, description, parameters)


def task(task_id="t", question="What is alpha ?", **fields):
    given = {"tools": (tool(),), "gold_calls": (), "answer": "beta"} | fields
    return Task(task_id=task_id, question=question, **given)


def call_text(city):
    return f'<tool_call>\n{{"name": "mayor_of", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


async def echo(call):
    """Answers with the arguments of the call, and rejects refused calls, as every session does."""
    if call.status is not CallStatus.OK:
        return ToolResult(f"Error: {call.status}", ResultStatus.REJECTED)
    return ToolResult(f"mayor of {call.arguments['city']}", seconds=0.5)


def hangs_on(city):
    """A tool that never answers for one city."""

    async def answer(call):
        if call.arguments["city"] == city:
            await asyncio.Event().wait()
        return await echo(call)

    return answer


class FakeSession:
    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.is_closed = False

    async def call(self, call):
        assert not self.is_closed
        return await self.sandbox.answer(call)

    async def state(self):
        return {}

    async def close(self):
        await self.sandbox.before_close()
        assert not self.is_closed
        self.is_closed = True


class FakeSandbox:
    """Sessions whose calls are answered by a coroutine function."""

    def __init__(self, answer=echo):
        self.answer = answer
        self.sessions = []

    async def open(self, tools, state=None):
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]

    async def before_close(self):
        """A place for tests to hold up a close."""

    def shutdown(self):
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

    A context must extend the session's earlier one, as engines with a cache want it. `before` is
    called with the session before each turn, and awaited.
    """

    def __init__(self, *turns, script=None, renderer=RENDERER, before=None):
        super().__init__(renderer, script or (lambda session, turn: turns[turn]))
        self.before = before
        self.requests = []
        self.released = []
        self.contexts = {}

    async def generate(self, session, context, sampling, seed):
        context = tuple(context)
        known = self.contexts.get(session, ())
        assert context[: len(known)] == known, f"session {session}: {context} after {known}"
        if self.before:
            await self.before(session)
        self.requests.append(Request(session, context, sampling, seed))
        generation = await super().generate(session, context, sampling, seed)
        self.contexts[session] = context + generation.token_ids
        return generation

    def release(self, session):
        self.released.append(session)
        self.contexts.pop(session, None)
        super().release(session)


def runner_of(engine, sandbox=None, max_concurrent=64, **limits):
    speaker = TokenSpeaker(engine, RENDERER)
    return EpisodeRunner(speaker, sandbox or FakeSandbox(), EpisodeLimits(**limits), max_concurrent)
