"""The update: optimizer steps on scored trajectories, in micro-batches of a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from matchtir.policy.batching import TokenBatch, collate
from matchtir.policy.losses import LossInputs, LossOutput, PolicyLoss, spread_turns
from matchtir.policy.policy import Policy, TokenScores
from matchtir.policy.weights import has_adapters, without_adapters
from matchtir.rollout.engine import SamplingParams
from matchtir.training.base import PolicyModule
from matchtir.training.sharing import mini_batch_rows, summed_metrics
from matchtir.types import Trajectory
from matchtir.utils.processes import gathered, rank, summed

SILENT = 1e-6  # advantages below are the rounding of a zero


def silent_rows(advantages: Float[np.ndarray, "N T"]) -> np.ndarray:
    """Which trajectories have no advantage in any turn, [N]."""
    return ~(np.abs(advantages) > SILENT).any(axis=1)


class UpdateModule(PolicyModule):
    """A policy that learns from trajectories with one advantage per turn (paper eq. 14).

    Args:
        objective: the loss over sampled tokens.
        sampling: how the trajectories were drawn.
        mini_batches: optimizer steps per iteration, each on an equal share of the trajectories.
        drop_silent: leave trajectories without any advantage out.
        settings: see `PolicyModule`.
    """

    def __init__(
        self,
        objective: PolicyLoss,
        sampling: SamplingParams,
        mini_batches: int = 1,
        drop_silent: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if mini_batches < 1:
            raise ValueError(f"mini_batches must be at least 1, got {mini_batches}")
        if sampling.temperature <= 0:
            raise ValueError(f"temperature={sampling.temperature}: training samples above 0")
        self.objective = objective
        self.sampling = sampling
        self.mini_batches = mini_batches
        self.drop_silent = drop_silent
        # In a list, so that checkpoints leave it out: a run that resumes makes it again.
        self._reference: list[Policy] = []
        if objective.kl_coefficient and not has_adapters(self.policy):
            self._reference.append(deepcopy(self.policy).eval().requires_grad_(False))

    def loss(self, inputs: LossInputs) -> LossOutput:
        """The objective on a part of a mini-batch."""
        return self.objective(inputs)

    def whole_policies(self) -> list[Policy]:
        """The policy and its reference."""
        return [self.policy, *self._reference]

    def update(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Float[np.ndarray, "N T"],
        group: Int[np.ndarray, " N"],
    ) -> dict[str, float]:
        """`mini_batches` optimizer steps; metrics are means over them.

        Trajectories without a turn have no tokens to learn from and are left out. Where nothing is
        left there is no step. With several processes each brings its own trajectories, and all of
        them take the same steps.
        """
        has_turns = np.array([bool(trajectory.turns) for trajectory in trajectories], dtype=bool)
        silent = silent_rows(advantages)
        kept = np.flatnonzero(has_turns & ~(silent & self.drop_silent))
        of_processes = gathered((bool(has_turns.any()), group[kept].tolist()))
        if not any(some for some, _ in of_processes):
            raise RuntimeError(
                "no trajectory of this iteration has a turn: every prompt is over the budget"
            )
        metrics = {"train/silent": float(silent.mean())}
        groups = [of_process for _, of_process in of_processes]
        if not any(groups):
            return metrics
        batch = collate([trajectories[int(row)] for row in kept], self.renderer.pad_id)
        batch = batch.to(self.device)
        turn_advantages = torch.tensor(advantages[kept], dtype=torch.float32)
        spread = spread_turns(turn_advantages.to(self.device), batch.turn_index)
        old = self._logprobs(self.policy, batch) if self.mini_batches > 1 else None
        reference = self._reference_logprobs(batch)

        seed = (self.seed, self.iteration)
        steps = []
        for rows in mini_batch_rows(groups, rank(), self.mini_batches, seed):
            index = torch.from_numpy(rows).to(self.device)
            steps.append(self._step(batch, spread, old, reference, index))
        return metrics | {
            f"train/{name}": float(np.mean([step[name] for step in steps])) for name in steps[0]
        }

    def _step(
        self,
        batch: TokenBatch,
        advantages: Tensor,
        old: Tensor | None,
        reference: Tensor | None,
        index: Tensor,
    ) -> dict[str, float]:
        """One optimizer step on the rows `index` of the batch, and those of other processes."""
        sampled, turn_index = batch.sampled[index], batch.turn_index[index]
        total = summed(self.objective.weight_total(sampled))
        weights = torch.zeros_like(advantages)
        weights[index] = self.objective.token_weights(sampled, turn_index, total)
        totals: dict[str, float] = {}
        for rows in self.passes(batch, self.micro_batch_tokens, index):
            tokens = self.tokens_of(batch, rows)

            def cut(values: Tensor, rows: Tensor = rows, like: Tensor = tokens.input_ids) -> Tensor:
                return (
                    values[rows, : like.shape[1]] if len(rows) else torch.zeros_like(like.float())
                )

            scores: TokenScores = self.policy(
                tokens.input_ids,
                tokens.sampled,
                self.sampling.temperature,
                tokens.attention_mask,
            )
            # With one step per iteration the policy is still the one at its start.
            output = self.loss(
                LossInputs(
                    logprobs=scores.logprobs,
                    old_logprobs=scores.logprobs.detach() if old is None else cut(old),
                    reference_logprobs=None if reference is None else cut(reference),
                    advantages=cut(advantages),
                    entropy=scores.entropy,
                    sampled=tokens.sampled,
                    turn_index=tokens.turn_index,
                    weights=cut(weights),
                    sampler_logprobs=tokens.sampler_logprobs,
                )
            )
            self.manual_backward(output.loss)
            for name, value in output.metrics.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        totals = summed_metrics(totals, self.device)
        return totals | {"grad_norm": self.step_optimizers()}

    def _reference_logprobs(self, batch: TokenBatch) -> Tensor | None:
        """Log-probabilities under the policy that training began with, where the loss wants them.

        Adapters have it in themselves: it is the model without them.
        """
        if not self.objective.kl_coefficient:
            return None
        if self._reference:
            return self._logprobs(self._reference[0], batch)
        with without_adapters(self.policy):
            return self._logprobs(self.policy, batch)

    @torch.no_grad()
    def _logprobs(self, policy: Policy, batch: TokenBatch) -> Tensor:
        """Log-probabilities [B, L] of the sampled tokens under a policy, without gradient."""
        if not isinstance(policy, FSDPModule):  # shares have their place
            policy.to(self.device)
        logprobs = torch.zeros(batch.input_ids.shape, device=self.device)
        for rows in self.passes(batch, 2 * self.micro_batch_tokens):
            part = self.tokens_of(batch, rows)
            scores = policy(
                part.input_ids, part.sampled, self.sampling.temperature, part.attention_mask
            )
            if len(rows):
                logprobs[rows, : part.input_ids.shape[1]] = scores.logprobs
        return logprobs

    def log_ratios(self, trajectories: Sequence[Trajectory]) -> list[list[list[float]]]:
        """How far the policy has moved since it sampled: log-probability now minus then.

        Returns:
            For each trajectory and turn, one number per sampled token.
        """
        batch = collate(trajectories, self.renderer.pad_id).to(self.device)
        with self.trainer.precision_plugin.forward_context():  # which callbacks are outside of
            ratios = self._logprobs(self.policy, batch) - batch.sampler_logprobs
        return [
            [row[turns == turn].tolist() for turn in range(len(trajectory.turns))]
            for trajectory, row, turns in zip(
                trajectories, ratios.cpu(), batch.turn_index.cpu(), strict=True
            )
        ]
