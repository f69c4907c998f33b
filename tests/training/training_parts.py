"""Training modules of the smallest size, and the tasks and trainers to run them."""

from functools import partial

import torch
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import LambdaLR

from matchtir.credit.advantages import DualAdvantage
from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.policy.losses import PolicyLoss
from matchtir.rollout.engine import SamplingParams, ScriptedEngine
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.data import Stage, TaskDataModule
from matchtir.training.module import PolicyGradientModule
from matchtir.training.optim import Scheduled
from matchtir.types import ToolCall
from matchtir.utils.loggers import CsvLogger
from matchtir.utils.run_folder import read_metrics
from tests.policy.tiny_policy import small
from tests.rollout.episode_fakes import FakeSandbox, call_text, task

LIMITS = EpisodeLimits(max_turns=3, max_response_tokens=300, max_turn_tokens=80)
GOLD = ToolCall("mayor_of", {"city": "alpha"})


def tasks(count):
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


def script(session, turn):
    _, sample, _ = session.split("/")
    return ATTEMPTS[int(sample) % len(ATTEMPTS)][turn]


class TaskList:
    """The same tasks in every split, or in one alone."""

    def __init__(self, given, split=None):
        self.given, self.split = given, split

    def tasks(self, split):
        return self.given if self.split in (None, split) else ()


def sgd(lr=0.1):
    """Plain gradient steps, from which gradients can be read off."""

    def make(policy, iterations):
        optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
        return [Scheduled(optimizer, LambdaLR(optimizer, lambda iteration: 1.0))]

    return make


def parts(scripted=True, limits=LIMITS, **settings):
    """The arguments of a `PolicyModule`."""
    loaded = small(layers=1)
    renderer = Renderer(loaded.tokenizer, system_prompt="")
    engine = TransformersEngine(renderer.stop_token_ids)
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

    def __init__(self, **settings):
        super().__init__(**settings)
        self.groups = []
        self.scored = []
        self.inputs = []

    def score(self, groups):
        self.groups.append(groups)
        self.scored.append(super().score(groups))
        return self.scored[-1]

    def loss(self, inputs):
        self.inputs.append(inputs)
        return super().loss(inputs)


def policy_gradient(kind=Recorder, scripted=True, loss=None, **settings):
    given = {
        "reward": MatchReward(Similarity(), HardAssignment(0.25), no_answer_penalty=0.5),
        "advantage": DualAdvantage(),
        "objective": PolicyLoss(**(loss or {})),
        "group_size": len(ATTEMPTS),
        "sampling": SamplingParams(temperature=1.0),
    }
    return kind(**{**given, **parts(scripted, **settings)})


def trained(folder, given=None, iterations=1, **settings):
    """A policy gradient module of these settings after so many iterations."""
    module = policy_gradient(**settings)
    fit(module, folder, given, iterations)
    return module


def trainer(folder, **settings):
    """One that shows and keeps nothing by itself."""
    nothing = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    given = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder}
    given |= {"log_every_n_steps": 1, "num_sanity_val_steps": 0}
    return Trainer(**{**dict.fromkeys(nothing, False), **given, **settings})


def fit(
    module,
    folder,
    given=None,
    iterations=1,
    batch_size=2,
    validate=False,
    callbacks=(),
    loggers=(),
    checkpoint=None,
):
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

    def __init__(self, path, iteration):
        self.path, self.iteration = path, iteration

    def on_train_batch_end(self, trainer, pl_module, *_):
        if pl_module.iteration == self.iteration:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def broken_and_resumed(make, folder, given=None, iterations=4, behind=2):
    """A module whose run was stopped behind an iteration, and one that went on from there."""
    broken, resumed, checkpoint = make(), make(), folder / "broken.ckpt"
    fit(broken, folder / "broken", given, iterations, callbacks=[Breaking(checkpoint, behind)])
    fit(resumed, folder / "resumed", given, iterations, checkpoint=checkpoint)
    return broken, resumed


def logged(folder, name):
    """The values of a metric, row after row."""
    return read_metrics(folder / "metrics.csv")[name][1]


def weights(module):
    return {name: each.detach().clone() for name, each in module.policy.named_parameters()}
