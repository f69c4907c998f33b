"""Training modules of the smallest size, and the tasks and trainers to run them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim.lr_scheduler import LambdaLR

from matchtir.credit.advantages import DualAdvantage
from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.policy.losses import LossInputs, LossOutput, PolicyLoss
from matchtir.rollout.engine import SamplingParams, ScriptedEngine
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.data import Stage, TaskDataModule
from matchtir.training.groups import Groups, ScoredRollout
from matchtir.training.module import PolicyGradientModule
from matchtir.training.optim import Scheduled
from matchtir.types import Task, ToolCall
from matchtir.utils.loggers import CsvLogger
from matchtir.utils.run_folder import read_metrics
from tests.policy.tiny_policy import small
from tests.rollout.episode_fakes import FakeSandbox, call_text, task

LIMITS = EpisodeLimits(max_turns=3, max_response_tokens=300, max_turn_tokens=80)
GOLD = ToolCall("mayor_of", {"city": "alpha"})


def tasks(count: int) -> list[Task]:
    """One call to make, and the answer beta."""
    return [
        task(f"t{n}", f"What is {'the ' * n}mayor of a place ?", gold_calls=(GOLD,))
        for n in range(count)
    ]


# What the samples of a group write, turn by turn.
ATTEMPTS = (
    (call_text("alpha"), "<answer>beta</answer>"),
    (call_text("beta"), "<answer>beta</answer>"),
    ("<answer>amber anchor</answer>",),
    (f"{call_text('alpha')}\n{call_text('beta')}", "What is the unit", "never reached"),
)


def script(session: str, turn: int) -> str:
    _, sample, _ = session.split("/")
    return ATTEMPTS[int(sample) % len(ATTEMPTS)][turn]


class TaskList:
    """The same tasks in every split."""

    def __init__(self, given: Sequence[Task]) -> None:
        self.given = given

    def tasks(self, split: str) -> Sequence[Task]:
        return self.given


def sgd(lr: float = 0.1):
    """Plain gradient steps, from which gradients can be read off."""

    def make(policy: torch.nn.Module, iterations: int) -> list[Scheduled]:
        optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
        return [Scheduled(optimizer, LambdaLR(optimizer, lambda iteration: 1.0))]

    return make


def parts(scripted: bool = True, limits: EpisodeLimits = LIMITS, **settings: Any) -> dict[str, Any]:
    """The arguments of a `PolicyModule`."""
    loaded = small(layers=1)
    renderer = Renderer(loaded.tokenizer, system_prompt="")
    engine: Any = TransformersEngine(renderer.stop_token_ids)
    if scripted:
        engine = ScriptedEngine(renderer, script)
    return {
        "policy": loaded.policy,
        "renderer": renderer,
        "engine": engine,
        "sandbox": FakeSandbox(),
        "episodes": partial(EpisodeRunner, limits=limits),
        "optimizer": sgd(),
        "micro_batch_tokens": 10_000,
        "max_grad_norm": 1e9,
        "seed": 1,
    } | settings


class Recorder(PolicyGradientModule):
    """Keeps what the hooks got and gave."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.groups: list[Groups] = []
        self.scored: list[ScoredRollout] = []
        self.inputs: list[LossInputs] = []

    def score(self, groups: Any) -> ScoredRollout:
        self.groups.append(groups)
        self.scored.append(super().score(groups))
        return self.scored[-1]

    def loss(self, inputs: LossInputs) -> LossOutput:
        self.inputs.append(inputs)
        return super().loss(inputs)


def policy_gradient(
    kind: type[Any] = Recorder,
    scripted: bool = True,
    loss: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    given = {
        "reward": MatchReward(Similarity(), HardAssignment(0.25), no_answer_penalty=0.5),
        "advantage": DualAdvantage(),
        "objective": PolicyLoss(**(loss or {})),
        "group_size": len(ATTEMPTS),
        "sampling": SamplingParams(temperature=1.0),
    }
    return kind(**{**given, **parts(scripted, **settings)})


def trained(
    folder: Path, given: Sequence[Task] | None = None, iterations: int = 1, **settings: Any
) -> Any:
    """A policy gradient module of these settings after so many iterations."""
    module = policy_gradient(**settings)
    fit(module, folder, given, iterations)
    return module


def trainer(folder: Path, **settings: Any) -> Trainer:
    """One that shows and keeps nothing by itself."""
    given = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return Trainer(**{**given, **settings})


def fit(
    module: Any,
    folder: Path,
    given: Sequence[Task] | None = None,
    iterations: int = 1,
    batch_size: int = 2,
    validate: bool = False,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    checkpoint: Path | None = None,
) -> Trainer:
    """Train; metrics go to `<folder>/metrics.csv`."""
    task_set = TaskList(tasks(2) if given is None else given)
    fitting = trainer(
        folder,
        logger=[CsvLogger(folder), *loggers],
        limit_val_batches=1.0 if validate else 0,
        callbacks=list(callbacks),
    )
    data = TaskDataModule([Stage(task_set, iterations, batch_size)], task_set, seed=1)
    fitting.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return fitting


class Breaking(Callback):
    """Stops a run behind an iteration, with a checkpoint, as a killed run leaves it."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.iteration == self.iteration:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def logged(folder: Path, name: str) -> list[float]:
    """The values of a metric, row after row."""
    return read_metrics(folder / "metrics.csv")[name][1]


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in module.policy.named_parameters()}


def long_task() -> Task:
    """A prompt that is over 400 tokens."""
    return replace(tasks(1)[0], task_id="long", question="? " * 500)
