"""What both ways of training share: optimizer steps over processes, attempts at held-out tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.evaluation.metrics import Scoring, TrajectoryMetrics
from matchtir.policy.batching import TokenBatch, micro_batch_rows
from matchtir.policy.packing import shared_prefixes
from matchtir.policy.policy import Policy
from matchtir.policy.weights import full_tensor
from matchtir.rollout.engine import Engine, SamplingParams
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.tools.sandbox import Sandbox
from matchtir.training.optim import OptimizerFactory
from matchtir.training.parallel import ShardedStrategy, sum_gradients
from matchtir.training.phases import Colocation, Phases
from matchtir.types import Task
from matchtir.utils.loggers import CsvLogger
from matchtir.utils.options import UserError, check_at_least
from matchtir.utils.processes import all_reduce_max

log = logging.getLogger(__name__)

GREEDY = SamplingParams(temperature=0.0)
# Settings of a trainer that would do nothing here, or harm: what they must be, and why.
REFUSED_SETTINGS: dict[str, tuple[Any, str]] = {
    "max_epochs": (1, "an epoch is the whole run, whose length is `iterations`"),
    "max_steps": (-1, "it counts the steps of every optimizer; say `iterations`"),
    "overfit_batches": (0, "a batch is an iteration: the run would be as short; debug=overfit"),
    "gradient_clip_val": (None, "module.max_grad_norm"),
    "accumulate_grad_batches": (1, "tasks_per_iteration and module.micro_batch_tokens"),
}
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    WeightAveraging: "what is validated and kept would not be what samples",
    StochasticWeightAveraging: "it averages over epochs, and an epoch is the whole run",
    BatchSizeFinder: "tasks_per_iteration and module.micro_batch_tokens are the sizes",
    LearningRateFinder: "here a loss says little of a learning rate; sweep over optimizer.lr",
}


def check_trainer(trainer: Trainer) -> None:
    """Refuse settings of a trainer with which a policy would not learn as it should.

    Raises:
        UserError: naming each setting and callback, and why.
    """
    given: dict[str, Any] = {
        name: getattr(trainer, name) for name in (*REFUSED_SETTINGS, "fast_dev_run")
    }
    if given["fast_dev_run"]:  # sets it
        given["max_steps"] = -1
    problems = [
        f"trainer.{name}={given[name]}: {why}"
        for name, (neutral, why) in REFUSED_SETTINGS.items()
        if given[name] != neutral
    ]
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        why = "gradients would be clipped while they are scaled; use bf16-mixed"
        problems.append(f"trainer.precision={trainer.precision}: {why}")
    offload, strategy = getattr(trainer, "offload", "none"), trainer.strategy
    on_host = strategy.root_device.type == "cpu" or getattr(strategy, "cpu_offload", False)
    if offload != "none" and on_host:
        problems.append(f"trainer.offload={offload}: all is in host memory already")
    problems += [
        f"callback {type(callback).__name__}: {why}"
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for kind, why in REFUSED_CALLBACKS.items()
        if isinstance(callback, kind)
    ]
    if problems:
        raise UserError("\n".join(problems))


class PolicyModule(LightningModule):
    """A policy that is trained by steps of its own making and validated by greedy decoding.

    Args:
        policy: the model in training.
        renderer: writes conversations as its tokens.
        engine: samples from it.
        sandbox: executes the calls.
        episodes: makes the runner of episodes, of engine, renderer and sandbox.
        optimizer: makes the optimizers.
        micro_batch_tokens: padded tokens in one backward pass.
        max_grad_norm: the norm that gradients are clipped to.
        max_bad_steps: so many steps in a row without a finite loss and gradient end the run.
        seed: of everything random in the iterations.
    """

    def __init__(
        self,
        policy: Policy,
        renderer: Renderer,
        engine: Engine,
        sandbox: Sandbox,
        episodes: Callable[..., EpisodeRunner],
        optimizer: OptimizerFactory,
        micro_batch_tokens: int,
        max_grad_norm: float,
        seed: int,
        max_bad_steps: int = 5,
    ) -> None:
        super().__init__()
        check_at_least(1, micro_batch_tokens=micro_batch_tokens, max_bad_steps=max_bad_steps)
        if max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={max_grad_norm} must be positive")
        self.automatic_optimization = False
        self.policy = policy
        self.renderer = renderer
        self.engine = engine
        self.make_episodes = partial(episodes, TokenSpeaker(engine, renderer), sandbox)
        self.episodes = self.make_episodes()
        self.optimizer_factory = optimizer
        self.micro_batch_tokens = micro_batch_tokens
        self.max_grad_norm = max_grad_norm
        self.max_bad_steps = max_bad_steps
        self.bad_steps = 0  # in a row
        self.seed = seed
        self.phases = Phases(self.device)  # of the iteration under way
        self.last_rollout: Any = None  # what the traces show, where there is one
        self.test_scores: Mapping[str, Mapping[str, float]] = {}  # of each task, by measure

    @property
    def policies(self) -> list[Policy]:
        """The models that a sharding strategy shards."""
        return [self.policy]

    @property
    def iteration(self) -> int:
        """The iteration under way or just done, from 1 on; 0 before training.

        Rows of the metrics have it as their step, trajectories as the version of their policy.
        """
        return self.trainer.fit_loop.total_batch_idx + 1

    # -- processes ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Trainer and engine take turns on the device."""
        offload = getattr(self.trainer, "offload", "none")

        def optimizer_state() -> Iterator[Tensor]:
            for state in (each for one in self.trainer.optimizers for each in one.state.values()):
                yield from (each for each in state.values() if isinstance(each, Tensor))

        def weights() -> Iterator[Tensor]:
            return (each for policy in self.policies for each in policy.parameters())

        self.colocation = Colocation(self.engine, offload, optimizer_state, weights)

    def configure_model(self) -> None:
        """Shard the weights, where the trainer's strategy says so."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            strategy.shard(self.policies)
        elif isinstance(strategy, ModelParallelStrategy):
            raise TypeError(f"use {ShardedStrategy.__name__}, which sums gradients (trainer=fsdp)")
        elif any(each.is_meta for each in self.policy.parameters()):
            raise ValueError("model.load_once=true needs trainer=fsdp, which spreads the weights")

    def micro_batches(
        self, batch: TokenBatch, max_tokens: int
    ) -> Iterator[tuple[Tensor, TokenBatch]]:
        """The rows of each micro-batch, and their tokens.

        Processes with fewer of them get dummies without rows, so that collectives stay in step.
        """
        packed = None
        if self.policy.packing and len(batch.input_ids):
            packed = shared_prefixes(batch.input_ids, batch.sampled)
        parts = [
            rows.to(self.device) for rows in micro_batch_rows(batch.lengths, max_tokens, packed)
        ]
        missing = all_reduce_max(len(parts), self.device) - len(parts)
        yield from ((rows, batch.rows(rows)) for rows in parts)
        dummy = TokenBatch.dummy(self.renderer.pad_id).to(self.device)
        extras = {name: each.new_zeros(1, 2) for name, each in batch.extras.items()}
        for _ in range(missing):
            yield torch.zeros(0, dtype=torch.int64), replace(dummy, extras=extras)

    def on_fit_start(self) -> None:
        """Gradients are summed once per optimizer step, and by this module itself.

        DDP would average those of the first backward pass and drop those of all others.

        Raises:
            ValueError: see `check_trainer`.
        """
        trainer = self.trainer
        check_trainer(trainer)
        self.set_training_mode()
        replica = trainer.strategy.model
        if isinstance(replica, DistributedDataParallel):
            replica.require_backward_grad_sync = False
            replica.broadcast_buffers = False  # a process may have fewer batches to validate

    def on_train_start(self) -> None:
        """Let the loggers forget what an earlier process measured behind the checkpoint.

        What callbacks log stands beside what was measured in the same iteration: Lightning would
        count their rows from 0. The learning rates are those of the run as long as it is now.
        """
        for each in self.trainer.lr_scheduler_configs:
            schedule: Any = each.scheduler
            for group, lr, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = lr * factor(schedule.last_epoch)
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.iteration + 1
        for logger in self.loggers:
            if isinstance(logger, CsvLogger):
                logger.resume(self.iteration)

    def log_row(self, metrics: Mapping[str, Any]) -> None:
        """Log what was measured in this iteration, and nothing else.

        Lightning's own way to the loggers would repeat the last value of a metric in every later
        row, also in iterations that did not measure it.
        """
        # Numbers, which Lightning puts on the device: tensors would be summed over processes where
        # they are, which NCCL cannot do on a CPU.
        row = {name: float(value) for name, value in metrics.items()}
        self.log_dict(row, logger=False, sync_dist=True)  # alike in every process
        for logger in self.loggers:
            logger.log_metrics(row, step=self.iteration)

    # -- optimisation -------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Optimizers with their schedules, which `optimizer_step` steps."""
        # Not trainer.estimated_stepping_batches: it sets the loader up before a resumed run has
        # its state, which would then be lost.
        iterations = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        scheduled = self.optimizer_factory(self.policy, iterations)
        schedules = [{"scheduler": s.schedule, "interval": "step"} for s in scheduled]
        return [s.optimizer for s in scheduled], schedules

    def step_optimizers(self, loss: float, tasks: Iterable[Task]) -> float:
        """Clip the gradients, step, clear them; returns the norm before clipping.

        A step without a finite loss and gradient is skipped, in all processes alike, and the
        tasks that it was to learn from are named.

        Raises:
            RuntimeError: `max_bad_steps` in a row were skipped.
        """
        sum_gradients(self.policy.parameters())
        clipped = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        norm = float(full_tensor(clipped))
        good = math.isfinite(loss) and math.isfinite(norm)
        self.bad_steps = 0 if good else self.bad_steps + 1
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            if good:
                optimizer.step()
            optimizer.zero_grad()
        if not good:
            names = sorted({task.task_id for task in tasks})
            text = f"a step is skipped, its loss is {loss} and its gradient {norm}: {names}"
            log.warning("iteration %d: %s", self.iteration, text)
            if self.bad_steps == self.max_bad_steps:
                raise RuntimeError(f"{self.bad_steps} steps in a row; {text}")
        return norm

    def step_schedules(self) -> None:
        """Step the schedules of the learning rates, once per iteration."""
        for each in self.trainer.lr_scheduler_configs:
            each.scheduler.step()  # type: ignore[call-arg]

    # -- sampling -----------------------------------------------------------------------------

    def set_training_mode(self) -> None:
        """Train mode: in eval mode, as models are loaded, all activations would be kept."""
        self.policy.train()

    @contextmanager
    def engine_synced(self) -> Iterator[None]:
        """The engine has the weights as they are now, and the policy is in eval mode, inside."""
        with self.phases.timed("sync"):
            self.colocation.enter("sync")
            self.engine.sync(self.policy, version=self.iteration)
            self.colocation.enter("rollout")
        self.policy.eval()
        try:
            with self.phases.timed("rollout"):
                yield
        finally:
            self.set_training_mode()
        with self.phases.timed("sync"):
            self.colocation.enter("update")

    # -- held-out tasks -----------------------------------------------------------------------

    def _begin_attempts(
        self,
        benchmark: TaskBenchmark | None = None,
        attempts: int = 1,
        sampling: SamplingParams = GREEDY,
    ) -> None:
        self.held_out_sampling = attempts, sampling
        limits = {} if benchmark is None else {"limits": benchmark.limits}
        self.held_out_episodes = self.make_episodes(**limits) if limits else self.episodes
        scoring = Scoring(attempts=attempts) if benchmark is None else benchmark.scoring
        self.held_out = TrajectoryMetrics(scoring)
        self._attempts = ExitStack()
        self._attempts.enter_context(self.engine_synced())

    def validation_step(self, tasks: list[Task], batch_index: int) -> None:
        """The attempts at each task, measured; a benchmark brings its own limits."""
        attempts, sampling = self.held_out_sampling
        groups = self.held_out_episodes.run(tasks, attempts, sampling, self.seed)
        self.held_out.update([trajectory for group in groups for trajectory in group])

    test_step = validation_step

    def _end_attempts(self, split: str) -> None:
        self._attempts.close()
        means = self.held_out.compute()
        self.log_row({f"{split}/{name}": value for name, value in means.items()})

    def on_validation_epoch_start(self) -> None:
        """Measure what the benchmark that validates measures, if there is one."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._begin_attempts(data.validation, data.attempts, data.sampling)

    def on_validation_epoch_end(self) -> None:
        """Log val/<measure>."""
        self._end_attempts("val")

    def on_test_epoch_start(self) -> None:
        """Measure what every task set has; callbacks log beside it, as in training."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.iteration
        self._begin_attempts()

    def on_test_epoch_end(self) -> None:
        """Log test/<measure>, and keep the score of each task."""
        self.test_scores = self.held_out.per_task()
        self._end_attempts("test")
