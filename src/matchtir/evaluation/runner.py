"""Runs a policy on the tasks of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from matchtir.credit.rewards import Credit, Reward
from matchtir.evaluation.metrics import measure
from matchtir.evaluation.policies import SCRIPTED_POLICIES, scripted_policy
from matchtir.policy.loading import load_policy
from matchtir.policy.tokenizer import tiny_tokenizer
from matchtir.rollout.engine import Engine, SamplingParams
from matchtir.rollout.episode import EpisodeLimits, EpisodeRunner
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.scripted import ScriptedEngine
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.tasks.task_set import TaskSet
from matchtir.tools.sandbox import Sandbox
from matchtir.types import Task, Trajectory
from matchtir.utils.run_files import CONFIG_FILE

Score = Callable[[Trajectory], float]

_UNLIMITED_TOKENS = 10_000_000


class Benchmark:
    """Which tasks are attempted, within which limits, and what is scored.

    Args:
        name: what the benchmark is called in tables and results.
        tasks: the task set.
        split: of the task set.
        limits: where episodes end.
        sampling: how tokens are drawn; greedy by default.
        scores: measures of a trajectory besides the common ones, by name.
        max_tasks: attempt only so many, spread evenly over the split; None: all.

    Raises:
        ValueError: `max_tasks` below 1.
    """

    def __init__(
        self,
        name: str,
        tasks: TaskSet,
        split: str = "test",
        limits: EpisodeLimits | None = None,
        sampling: SamplingParams | None = None,
        scores: Mapping[str, Score] | None = None,
        max_tasks: int | None = None,
    ) -> None:
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
        self.name = name
        self.task_set = tasks
        self.split = split
        self.limits = limits or EpisodeLimits()
        self.sampling = sampling or SamplingParams(temperature=0.0)
        self.scores = dict(scores or {})
        self.max_tasks = max_tasks

    def select(self) -> list[Task]:
        """The tasks to attempt.

        Raises:
            ValueError: there are none.
        """
        tasks = self.task_set.tasks(self.split)
        count = min(self.max_tasks or len(tasks), len(tasks))
        if not count:
            raise ValueError(f"benchmark {self.name}: the split {self.split!r} has no tasks")
        return [tasks[index * len(tasks) // count] for index in range(count)]


@dataclass(frozen=True, slots=True)
class Player:
    """A policy ready to attempt tasks: its engine, its tokens, and the limits that it gets."""

    engine: Engine
    renderer: Renderer
    limits: EpisodeLimits


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out, in the order of the tasks."""

    trajectories: tuple[Trajectory, ...]
    credits: tuple[Credit, ...]
    values: tuple[Mapping[str, float], ...]  # of each trajectory, by measure
    seconds: float


def renderer_of_run(policy: str) -> Callable[[PreTrainedTokenizerBase], Renderer]:
    """The renderer that a run folder's policy was trained with; else the default one."""
    file = Path(policy, CONFIG_FILE)
    settings = OmegaConf.select(OmegaConf.load(file), "renderer") if file.is_file() else None
    return instantiate(settings) if settings else Renderer


def make_player(
    policy: str,
    tasks: Sequence[Task],
    benchmark: Benchmark,
    renderer: Callable[[PreTrainedTokenizerBase], Renderer] = Renderer,
    engine: Callable[[Sequence[int]], Engine] = TransformersEngine,
    seed: int = 0,
) -> Player:
    """The player of a policy.

    Args:
        policy: "gold" or "random" for a script; else a run folder, or a Hugging Face model by path
            or id.
        tasks: the tasks that it will attempt.
        renderer: makes a renderer of the policy's tokenizer.
        engine: makes an engine, for policies with weights, of the stop token ids.
        seed: of random calls.

    Raises:
        ValueError: gold solutions of tasks that have none.
    """
    if policy in SCRIPTED_POLICIES:
        return _scripted_player(policy, tasks, benchmark, renderer(tiny_tokenizer()), seed)
    loaded, tokenizer = load_policy(policy)
    rendering = renderer(tokenizer)
    sampler = engine(rendering.stop_token_ids)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampler.sync(loaded.to(device).eval(), version=0)
    return Player(sampler, rendering, benchmark.limits)


def _scripted_player(
    policy: str, tasks: Sequence[Task], benchmark: Benchmark, renderer: Renderer, seed: int
) -> Player:
    """The gold solutions or random calls, written through the tiny tokenizer.

    Their limits are of turns only: how many tokens the tiny tokenizer makes of a prompt says
    nothing about any policy.
    """
    if policy == "gold" and not any(task.gold_calls for task in tasks):
        raise ValueError(
            f"policy=gold: the tasks of benchmark {benchmark.name} have no gold calls "
            "(for FTRL's test tasks they come from benchmark.tasks.gold_traces_path)"
        )
    limits = EpisodeLimits(
        max_turns=benchmark.limits.max_turns,
        max_prompt_tokens=_UNLIMITED_TOKENS,
        max_response_tokens=_UNLIMITED_TOKENS,
        max_turn_tokens=_UNLIMITED_TOKENS,
    )
    return Player(ScriptedEngine(renderer, scripted_policy(policy, tasks, seed)), renderer, limits)


def evaluate(
    benchmark: Benchmark,
    tasks: Sequence[Task],
    player: Player,
    sandbox: Sandbox,
    reward: Reward,
    seed: int = 0,
    max_concurrent: int = 64,
) -> Evaluation:
    """One attempt at each task, measured: `MEASURES`, the benchmark's scores, and the reward."""
    runner = EpisodeRunner(player.engine, player.renderer, sandbox, player.limits, max_concurrent)
    started = time.perf_counter()
    groups = runner.run(tasks, 1, benchmark.sampling, seed)
    seconds = time.perf_counter() - started
    trajectories = tuple(trajectory for group in groups for trajectory in group)
    credits = tuple(reward(trajectories))
    values = tuple(
        {
            **measure(trajectory),
            **{name: float(score(trajectory)) for name, score in benchmark.scores.items()},
            "reward": credit.total,
        }
        for trajectory, credit in zip(trajectories, credits, strict=True)
    )
    return Evaluation(trajectories, credits, values, seconds)
