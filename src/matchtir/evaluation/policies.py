"""What the policy of an evaluation may be: a script, a model with weights, an endpoint.

Scripted policies need no weights: the gold solution, and chance. What they write goes through
tokenizer, parser, sandbox and scorer like the text of any policy.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from matchtir.policy.loading import POLICY_FOLDER, load_policy
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.chat_server import MODEL, ChatServer
from matchtir.rollout.engine import Engine, SamplingParams, ScriptedEngine, replay, turn_by_sample
from matchtir.rollout.episode import EpisodeLimits, Speaker
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.speakers import ChatEndpoint, TokenSpeaker
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.tools.formats import render_call
from matchtir.types import Task, ToolSpec
from matchtir.utils.options import UserError
from matchtir.utils.run_folder import CONFIG_FILE

SCRIPTED_POLICIES = ("gold", "random")
MODEL_FILE = "config.json"  # which every model of Hugging Face has

_TURNS, _CALLS = (1, 5), (1, 2)  # of a random attempt, and of a turn: about FTRL's gold traces
_OPTIONAL_SHARE = 0.25  # chance that an optional parameter is given
_DEFAULT_SHARE = 0.5  # chance that a parameter with a default gets it
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name

# The turns of each task, by its id, that the scripted policy of this name and seed writes.
Scripts = Callable[[str, int], Mapping[str, Sequence[str]]]
MakeRenderer = Callable[[PreTrainedTokenizerBase], Renderer]
MakeEngine = Callable[[Sequence[int]], Engine]
Made = tuple[Engine, Renderer]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a policy answers requests of the chat-completions protocol."""

    url: str
    model: str
    api_key: str
    server: ChatServer | None = None  # where it is ours


class LocalPolicy:
    """A policy whose turns are made by an engine in this process.

    Args:
        name: "gold", "random", or what was loaded.
        engine: makes its turns by a benchmark's scripts, if it is scripted: for our episodes, or
            (True) for a server of single turns.
        scripted: how many tokens the tiny tokenizer makes of a prompt says nothing about any
            policy, so that a script's limits are of turns alone.
    """

    counts: Mapping[str, int] = MappingProxyType({})  # of requests, of which it makes none

    def __init__(
        self, name: str, engine: Callable[[Scripts, bool], Made], scripted: bool = False
    ) -> None:
        self.name = name
        self.engine = engine
        self.scripted = scripted

    def limits(self, limits: EpisodeLimits) -> EpisodeLimits:
        """Those of a benchmark as far as they mean something for this policy."""
        return limits.without_tokens() if self.scripted else limits

    def speaker(self, scripts: Scripts) -> Speaker:
        """The policy for our episodes."""
        return TokenSpeaker(*self.engine(scripts, False))

    @contextmanager
    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> Iterator[Address]:
        """The policy behind a server, for as long."""
        engine, renderer = self.engine(scripts, True)
        with ChatServer(engine, renderer, self.limits(limits), sampling, seed) as server:
            yield Address(server.url, MODEL, "none", server)


def scripted_policy(name: str, make_renderer: MakeRenderer, seed: int) -> LocalPolicy:
    """The gold solutions or random calls of each benchmark, through the tiny tokenizer."""
    renderer = make_renderer(tiny_tokenizer())

    def engine(scripts: Scripts, served: bool) -> Made:
        script = replay(scripts(name, seed))
        return ScriptedEngine(renderer, turn_by_sample(script) if served else script), renderer

    return LocalPolicy(name, engine, scripted=True)


def model_policy(
    name_or_path: str, make_renderer: MakeRenderer, make_engine: MakeEngine
) -> LocalPolicy:
    """A run folder's policy, or a Hugging Face model by path or id; loaded when first needed."""

    @cache
    def loaded() -> Made:
        try:
            policy, tokenizer = load_policy(name_or_path)
        except OSError as error:  # Hugging Face's, for what is on no disk and in no hub
            said = str(error).partition("\n")[0]
            raise UserError(f"policy={name_or_path}: {said}") from error
        renderer = make_renderer(tokenizer)
        engine = make_engine(renderer.stop_token_ids)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine.sync(policy.to(device).eval(), version=0)
        return engine, renderer

    return LocalPolicy(name_or_path, lambda scripts, served: loaded())


class EndpointPolicy:
    """A model behind an OpenAI-compatible server: only its turns are limited here."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint = endpoint

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests, those made again, and those beyond the server's context."""
        return dict(self.endpoint.client.counts)

    def limits(self, limits: EpisodeLimits) -> EpisodeLimits:
        """Those of tokens mean nothing to it."""
        return limits

    def speaker(self, scripts: Scripts) -> Speaker:
        """The same for every benchmark."""
        return self.endpoint

    @contextmanager
    def served(
        self, scripts: Scripts, limits: EpisodeLimits, sampling: SamplingParams, seed: int
    ) -> Iterator[Address]:
        """The server itself."""
        client = self.endpoint.client
        model = asyncio.run(self.endpoint.model_name())
        yield Address(client.url, model, client.api_key or "none")


# Plays the episodes of a benchmark, or answers the benchmark's own program.
EvaluatedPolicy = LocalPolicy | EndpointPolicy


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
        FileNotFoundError: it can only be a folder, and there is none, or no policy in it.
    """
    if policy.startswith(("http://", "https://")):
        return EndpointPolicy(endpoint(policy))
    make_renderer = renderer or renderer_of_run(policy)
    if policy in SCRIPTED_POLICIES:
        return scripted_policy(policy, make_renderer, seed)
    folder = Path(policy)
    if folder.is_dir() and not any(
        (folder / name).exists() for name in (POLICY_FOLDER, MODEL_FILE)
    ):
        raise FileNotFoundError(
            f"policy={policy}: the folder has neither {POLICY_FOLDER}/, which a run leaves when it "
            f"ends, nor a Hugging Face model with its {MODEL_FILE}"
        )
    if not folder.is_dir() and not HUB_ID.fullmatch(policy):
        raise FileNotFoundError(
            f"policy={policy}: no such folder. A policy is {', '.join(SCRIPTED_POLICIES)}, the URL "
            "of an endpoint, the folder of a run, or a Hugging Face model: a folder or owner/name"
        )
    return model_policy(policy, make_renderer, engine)


def random_turn_texts(task: Task, seed: int) -> tuple[str, ...]:
    """One to five turns of well-formed calls to random tools, then a word of the question.

    The texts depend on the seed and the task's id alone.
    """
    generator = random.Random(f"{seed}/{task.task_id}")
    words = task.question.split() or ["?"]
    turns = []
    for _ in range(generator.randint(*_TURNS) if task.tools else 0):
        tools = generator.choices(task.tools, k=generator.randint(*_CALLS))
        calls = [render_call(tool.name, _arguments(tool, words, generator)) for tool in tools]
        turns.append("\n".join(calls))
    answers = [f"<answer>{generator.choice(words)}</answer>" for _ in (*task.user, "")]
    return (*turns, *answers)


def _arguments(tool: ToolSpec, words: Sequence[str], generator: random.Random) -> dict[str, Any]:
    """Arguments that fit the tool's schema: all required ones, some of the others."""
    required = tool.parameters.get("required") or ()
    properties = tool.parameters.get("properties") or {}
    return {
        name: random_value(schema, words, generator)
        for name, schema in properties.items()
        if name in required or generator.random() < _OPTIONAL_SHARE
    }


def random_value(schema: Any, words: Sequence[str], generator: random.Random) -> Any:
    """A value that fits a JSON schema: its default, one of its enum, or one of its type.

    Strings are made of one to three neighbouring `words`. An unknown type is taken as a string.
    """
    if not isinstance(schema, Mapping):
        schema = {}
    if "default" in schema and generator.random() < _DEFAULT_SHARE:
        return schema["default"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return generator.choice(schema["enum"])
    kind = schema.get("type", "string")
    if isinstance(kind, list):  # one of several types
        kind = generator.choice(kind) if kind else "string"
    match kind:
        case "boolean":
            return generator.random() < 0.5
        case "integer":
            return _whole_number(schema, generator)
        case "number":
            return round(_whole_number(schema, generator) + generator.choice((0.0, 0.5)), 1)
        case "array":
            count = generator.randint(1, 3)
            return [random_value(schema.get("items"), words, generator) for _ in range(count)]
        case "object":
            return {
                name: random_value(inner, words, generator)
                for name, inner in (schema.get("properties") or {}).items()
            }
        case "null":
            return None
    start = generator.randrange(len(words))
    return " ".join(words[start : start + generator.randint(1, 3)])


def _whole_number(schema: Mapping[str, Any], generator: random.Random) -> int:
    """A number within the schema's bounds, between 0 and 100 where it has none that are numbers."""
    lowest, highest = (
        int(bound) if isinstance(bound, int | float) and math.isfinite(bound) else None
        for bound in (schema.get("minimum"), schema.get("maximum"))
    )
    if lowest is None:
        lowest = min(0, highest or 0)
    return generator.randint(lowest, max(lowest, lowest + 100 if highest is None else highest))
