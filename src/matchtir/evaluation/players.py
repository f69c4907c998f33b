"""What the policy of an evaluation may be: a script, a model with weights, an endpoint."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from matchtir.evaluation.policies import SCRIPTED_POLICIES
from matchtir.policy.loading import load_policy
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.chat_endpoint import ChatEndpoint
from matchtir.rollout.chat_server import MODEL, ChatServer, serve
from matchtir.rollout.engine import Engine, SamplingParams
from matchtir.rollout.episode import ConversationFormat, EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.scripted import ScriptedEngine, replay, turn_by_sample
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.utils.run_files import CONFIG_FILE

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name

# The turns of each task, by its id, that the scripted policy of this name and seed writes.
Scripts = Callable[[str, int], Mapping[str, Sequence[str]]]
MakeRenderer = Callable[[PreTrainedTokenizerBase], Renderer]
MakeEngine = Callable[[Sequence[int]], Engine]


@dataclass(frozen=True, slots=True)
class Player:
    """A policy ready to attempt tasks: its engine and its format of conversations.

    `limits` are those of a benchmark as far as they mean something for this policy.
    """

    engine: Engine
    renderer: ConversationFormat
    limits: Callable[[EpisodeLimits], EpisodeLimits]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a policy answers requests of the chat-completions protocol."""

    url: str
    model: str
    api_key: str
    server: ChatServer | None = None  # where it is ours


class EvaluatedPolicy(Protocol):
    """Plays the episodes of a benchmark, or answers the benchmark's own program."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What is worth knowing about its requests; empty where it makes none."""
        ...

    def player(self, scripts: Scripts) -> Player:
        """The policy for our episodes."""
        ...

    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> AbstractContextManager[Address]:
        """The policy behind a server, for as long."""
        ...


class ScriptedPolicy:
    """The gold solutions or random calls of each benchmark, written through the tiny tokenizer.

    Their limits are of turns only: how many tokens the tiny tokenizer makes of a prompt says
    nothing about any policy.
    """

    counts: Mapping[str, int] = MappingProxyType({})

    def __init__(self, name: str, renderer: MakeRenderer, seed: int) -> None:
        self.name = name
        self.renderer = renderer(tiny_tokenizer())
        self.seed = seed

    def player(self, scripts: Scripts) -> Player:
        """A player of the benchmark's scripts."""
        script = replay(scripts(self.name, self.seed))
        return Player(
            ScriptedEngine(self.renderer, script), self.renderer, EpisodeLimits.without_tokens
        )

    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> AbstractContextManager[Address]:
        """A server of the benchmark's scripts."""
        script = turn_by_sample(replay(scripts(self.name, self.seed)))
        engine = ScriptedEngine(self.renderer, script)
        return _served(engine, self.renderer, limits.without_tokens(), sampling, seed)


class ModelPolicy:
    """A run folder's policy, or a Hugging Face model by path or id; loaded when first needed."""

    counts: Mapping[str, int] = MappingProxyType({})

    def __init__(self, name_or_path: str, renderer: MakeRenderer, engine: MakeEngine) -> None:
        self.name_or_path = name_or_path
        self.make_renderer = renderer
        self.make_engine = engine

    def player(self, scripts: Scripts) -> Player:
        """The same engine for every benchmark."""
        return Player(*self._loaded, lambda limits: limits)

    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> AbstractContextManager[Address]:
        """A server of the model."""
        return _served(*self._loaded, limits, sampling, seed)

    @cached_property
    def _loaded(self) -> tuple[Engine, Renderer]:
        loaded, tokenizer = load_policy(self.name_or_path)
        renderer = self.make_renderer(tokenizer)
        engine = self.make_engine(renderer.stop_token_ids)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine.sync(loaded.to(device).eval(), version=0)
        return engine, renderer


class EndpointPolicy:
    """A model behind an OpenAI-compatible server: only its turns are limited here."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint = endpoint

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests, those made again, and those beyond the server's context."""
        return dict(self.endpoint.client.counts)

    def player(self, scripts: Scripts) -> Player:
        """The same engine for every benchmark."""
        return Player(self.endpoint, self.endpoint, EpisodeLimits.without_tokens)

    @contextmanager
    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> Iterator[Address]:
        """The server itself."""
        client = self.endpoint.client
        model = asyncio.run(self.endpoint.model_name())
        yield Address(client.url, model, client.api_key or "none")


@contextmanager
def _served(
    engine: Engine,
    renderer: Renderer,
    limits: EpisodeLimits,
    sampling: SamplingParams,
    seed: int,
) -> Iterator[Address]:
    with serve(engine, renderer, limits, sampling, seed) as server:
        yield Address(server.url, MODEL, "none", server)


def renderer_of_run(policy: str) -> MakeRenderer:
    """The renderer that a run folder's policy was trained with; else the default one."""
    file = Path(policy, CONFIG_FILE)
    settings = OmegaConf.select(OmegaConf.load(file), "renderer") if file.is_file() else None
    return instantiate(settings) if settings else Renderer


def find_policy(
    policy: str,
    renderer: MakeRenderer | None = None,
    engine: MakeEngine = TransformersEngine,
    endpoint: Callable[[str], ChatEndpoint] = ChatEndpoint,
    seed: int = 0,
) -> EvaluatedPolicy:
    """What a policy's name stands for.

    Args:
        policy: "gold" or "random" for a script; an http(s) URL for an endpoint; else a run folder,
            or a Hugging Face model by path or id.
        renderer: makes a renderer of the policy's tokenizer; default: that of the policy's run.
        engine: makes an engine, for policies with weights, of the stop token ids.
        endpoint: makes the engine of a URL.
        seed: of random calls.

    Raises:
        FileNotFoundError: it can only be a folder, and there is none.
    """
    if policy.startswith(("http://", "https://")):
        return EndpointPolicy(endpoint(policy))
    make_renderer = renderer or renderer_of_run(policy)
    if policy in SCRIPTED_POLICIES:
        return ScriptedPolicy(policy, make_renderer, seed)
    if not Path(policy).is_dir() and not HUB_ID.fullmatch(policy):
        raise FileNotFoundError(
            f"policy={policy}: no such folder. A policy is {', '.join(SCRIPTED_POLICIES)}, the URL "
            "of an endpoint, the folder of a run, or a Hugging Face model: a folder or owner/name"
        )
    return ModelPolicy(policy, make_renderer, engine)
