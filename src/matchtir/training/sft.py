"""Supervised fine-tuning on gold solutions."""

from __future__ import annotations

from matchtir.policy.batching import collate
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.training.base import PolicyModule
from matchtir.training.parallel import summed_metrics
from matchtir.types import Task
from matchtir.utils.processes import summed


class SupervisedModule(PolicyModule):
    """Maximum likelihood of the assistant's tokens in gold solutions; tool results have no loss."""

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """One optimizer step on the mean token loss of the gold solutions of `tasks`."""
        demonstrations = [gold_trajectory(task, self.renderer) for task in tasks]
        batch = collate(demonstrations, self.renderer.pad_id).to(self.device)
        count = summed(batch.sampled.sum())
        total, entropy = 0.0, 0.0
        for rows in self.passes(batch, self.micro_batch_tokens):
            part = self.tokens_of(batch, rows)
            scores = self.policy(part.input_ids, part.sampled, attention_mask=part.attention_mask)
            loss = -scores.logprobs.sum() / count
            self.manual_backward(loss)
            total += float(loss.detach())
            entropy += float(scores.entropy.detach().sum() / count)
        norm = self.step_optimizers()
        self.step_schedules()
        sums = summed_metrics({"train/loss": total, "train/entropy": entropy}, self.device)
        self.log_row(sums | {"train/grad_norm": norm})
