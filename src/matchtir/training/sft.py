"""Supervised fine-tuning on written solutions."""

from __future__ import annotations

from itertools import chain
from typing import Any

from matchtir.policy.batching import collate
from matchtir.rollout.demonstration import (
    check_demonstrable,
    gold_trajectory,
    imperfect_trajectories,
)
from matchtir.tasks.habits import Habits
from matchtir.tools.sandbox import Sandbox
from matchtir.training.base import PolicyModule
from matchtir.training.data import existing
from matchtir.training.parallel import all_reduce_metrics
from matchtir.types import Task, Trajectory
from matchtir.utils.processes import all_reduce_sum


class SupervisedModule(PolicyModule):
    """Maximum likelihood of the assistant's tokens in solutions; tool results have no loss.

    Args:
        sandbox: executes the calls that a gold solution does not have.
        habits: of the demonstrator; None: it shows the gold solutions.
        settings: see `PolicyModule`.
    """

    def __init__(self, sandbox: Sandbox, habits: Habits | None = None, **settings: Any) -> None:
        super().__init__(sandbox=sandbox, **settings)
        self.sandbox = sandbox
        self.habits = habits

    def on_fit_start(self) -> None:
        """Refuse what cannot be demonstrated before the first step, not in the one that needs it.

        Raises:
            UserError: a training task has a user.
        """
        super().on_fit_start()
        stages = getattr(self.trainer.datamodule, "stages", ())  # type: ignore[attr-defined]
        for task in chain.from_iterable(existing(stage.training_tasks) for stage in stages):
            check_demonstrable(task)

    def demonstrations(self, tasks: list[Task]) -> list[Trajectory]:
        """One solution of each task."""
        if self.habits is None:
            return [gold_trajectory(task, self.renderer) for task in tasks]
        seed = f"{self.seed}/{self.iteration}"
        return imperfect_trajectories(tasks, self.habits, self.renderer, self.sandbox, seed)

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """One optimizer step on the mean token loss of solutions of `tasks`."""
        batch = collate(self.demonstrations(tasks), self.renderer.pad_id).to(self.device)
        count = all_reduce_sum(batch.sampled.sum())
        total, entropy = 0.0, 0.0
        for _, part in self.micro_batches(batch, self.micro_batch_tokens):
            scores = self.policy(part.input_ids, part.sampled, attention_mask=part.attention_mask)
            loss = -scores.logprobs.sum() / count
            self.manual_backward(loss)
            total += float(loss.detach())
            entropy += float(scores.entropy.detach().sum() / count)
        sums = all_reduce_metrics({"train/loss": total, "train/entropy": entropy})
        norm = self.step_optimizers(sums["train/loss"], tasks)
        self.step_schedules()
        self.log_row(sums | {"train/grad_norm": norm})
