"""Reinforcement learning with one advantage per turn: one training step is one iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from matchtir.credit.advantages.batch import Advantage, RewardBatch
from matchtir.credit.diagnostics import diagnose
from matchtir.credit.rewards import Credit, Reward
from matchtir.evaluation.metrics import measure
from matchtir.policy.batching import TokenBatch, collate, micro_batches
from matchtir.policy.losses import LossInputs, LossOutput, PolicyLoss, spread_turns
from matchtir.policy.policy import Policy, TokenScores
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.metrics import rollout_metrics
from matchtir.training.base import PolicyModule
from matchtir.types import Task, Trajectory

SILENT = 1e-6  # advantages below are the rounding of a zero


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """The trajectories of an iteration and what each of their turns earned."""

    trajectories: list[Trajectory]  # N, group after group
    credits: list[Credit]
    rewards: RewardBatch
    advantages: Float[np.ndarray, "N T"]


class PolicyGradientModule(PolicyModule):
    """Group-sampled policy gradient (paper eq. 14). Override `rollout`, `score` or `loss`.

    Args:
        reward: calls and answers to turn rewards.
        advantage: turn rewards to one advantage per turn.
        objective: the loss over sampled tokens.
        group_size: trajectories per task, G.
        sampling: how training trajectories are drawn.
        mini_batches: optimizer steps per iteration, each on an equal share of the trajectories.
        drop_silent: leave trajectories out of the update that have no advantage in any turn, as in
            groups that all succeed or all fail alike; their share is logged either way.
        settings: see `PolicyModule`.
    """

    def __init__(
        self,
        reward: Reward,
        advantage: Advantage,
        objective: PolicyLoss,
        group_size: int,
        sampling: SamplingParams,
        mini_batches: int = 1,
        drop_silent: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if group_size < 1 or mini_batches < 1:
            raise ValueError("group_size and mini_batches must be at least 1")
        if sampling.temperature <= 0:
            raise ValueError(f"temperature={sampling.temperature}: training samples above 0")
        self.reward = reward
        self.advantage = advantage
        self.objective = objective
        self.group_size = group_size
        self.sampling = sampling
        self.mini_batches = mini_batches
        self.drop_silent = drop_silent
        self._seconds: dict[str, float] = {}
        # In a list, so that checkpoints leave it out: a run that resumes makes it again.
        self._reference: list[Policy] = []
        if objective.kl_coefficient:
            self._reference.append(deepcopy(self.policy).eval().requires_grad_(False))

    # -- one iteration, top to bottom -----------------------------------------------------------

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """Sample groups, score their turns, update the policy."""
        with self._timed("rollout"):
            groups = self.rollout(tasks)
        with self._timed("credit"):
            scored = self.score(groups)
        with self._timed("update"):
            losses = self.update(scored)
        self.step_schedules()
        self.last_rollout = scored
        metrics = self._rollout_metrics(scored) | losses
        metrics |= {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        self.log_row(metrics)

    # -- the three hooks -----------------------------------------------------------------------

    def rollout(self, tasks: Sequence[Task]) -> list[list[Trajectory]]:
        """One group of trajectories per task, sampled from the policy as it is now."""
        self.policy.eval()
        self.engine.sync(self.policy, version=self.iteration)
        seed = int(np.random.SeedSequence((self.seed, self.iteration)).generate_state(1)[0])
        groups = self.episodes.run(tasks, self.group_size, self.sampling, seed)
        self.policy.train()
        return groups

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> ScoredRollout:
        """What every turn earned, and its advantage."""
        trajectories = [trajectory for group in groups for trajectory in group]
        numbers = [number for number, group in enumerate(groups) for _ in group]
        credits = self.reward(trajectories)
        batch = RewardBatch.from_credits(credits, trajectories, numbers)
        return ScoredRollout(trajectories, credits, batch, self.advantage(batch))

    def loss(self, inputs: LossInputs) -> LossOutput:
        """The objective on a part of a mini-batch."""
        return self.objective(inputs)

    # -- the update ------------------------------------------------------------------------------

    def update(self, scored: ScoredRollout) -> dict[str, float]:
        """`mini_batches` optimizer steps; metrics are means over them.

        Trajectories without a turn have no tokens to learn from and are left out. Where nothing is
        left there is no step.
        """
        has_turns = np.array([bool(trajectory.turns) for trajectory in scored.trajectories])
        if not has_turns.any():
            raise RuntimeError(
                "no trajectory of this iteration has a turn: every prompt is over the budget"
            )
        silent = ~(np.abs(scored.advantages) > SILENT).any(axis=1)
        metrics = {"train/silent": float(silent.mean())}
        kept = np.flatnonzero(has_turns & ~(silent & self.drop_silent))
        if not len(kept):
            return metrics
        batch = collate([scored.trajectories[row] for row in kept], self.renderer.pad_id)
        batch = batch.to(self.device)
        turn_advantages = torch.tensor(scored.advantages[kept], dtype=torch.float32)
        advantages = spread_turns(turn_advantages.to(self.device), batch.turn_index)
        old = self._logprobs(self.policy, batch) if self.mini_batches > 1 else None
        reference = self._logprobs(self._reference[0], batch) if self._reference else None

        order = np.random.default_rng((self.seed, self.iteration)).permutation(len(kept))
        steps = []
        for rows in np.array_split(order, min(self.mini_batches, len(kept))):
            index = torch.from_numpy(np.sort(rows)).to(self.device)
            steps.append(self._step(batch, advantages, old, reference, index))
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
        """One optimizer step on the rows `index` of the batch."""
        weights = torch.zeros_like(advantages)
        weights[index] = self.objective.token_weights(batch.sampled[index], batch.turn_index[index])
        totals: dict[str, float] = {}
        for part in micro_batches(batch.lengths[index], self.micro_batch_tokens):
            rows = index[part]
            tokens = batch.rows(rows)

            def cut(values: Tensor, rows: Tensor = rows, like: Tensor = tokens.input_ids) -> Tensor:
                return values[rows, : like.shape[1]]

            scores: TokenScores = self.policy(
                tokens.input_ids, tokens.sampled, self.sampling.temperature
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
        return totals | {"grad_norm": self.step_optimizers()}

    @torch.no_grad()
    def _logprobs(self, policy: Policy, batch: TokenBatch) -> Tensor:
        """Log-probabilities [B, L] of the sampled tokens under a policy, without gradient."""
        policy.to(self.device)
        logprobs = torch.zeros(batch.input_ids.shape, device=self.device)
        for rows in micro_batches(batch.lengths, 2 * self.micro_batch_tokens):
            part = batch.rows(rows.to(self.device))
            scores = policy(part.input_ids, part.sampled, self.sampling.temperature)
            logprobs[rows, : part.input_ids.shape[1]] = scores.logprobs
        return logprobs

    # -- what is logged ----------------------------------------------------------------------

    def log_ratios(self, trajectories: Sequence[Trajectory]) -> list[list[list[float]]]:
        """How far the policy has moved since it sampled: log-probability now minus then.

        Returns:
            For each trajectory and turn, one number per sampled token.
        """
        batch = collate(trajectories, self.renderer.pad_id).to(self.device)
        ratios = self._logprobs(self.policy, batch) - batch.sampler_logprobs
        return [
            [row[turns == turn].tolist() for turn in range(len(trajectory.turns))]
            for trajectory, row, turns in zip(
                trajectories, ratios.cpu(), batch.turn_index.cpu(), strict=True
            )
        ]

    def _rollout_metrics(self, scored: ScoredRollout) -> dict[str, float]:
        measured = [measure(trajectory) for trajectory in scored.trajectories]
        means = {
            f"train/{name}": float(np.mean([values[name] for values in measured]))
            for name in ("solve_f1", "answer_f1", "answered")
        }
        reward = float(np.mean([credit.total for credit in scored.credits]))
        rollout = rollout_metrics(scored.trajectories, self._seconds["rollout"])
        found = diagnose(
            self.reward, scored.trajectories, scored.credits, scored.rewards, scored.advantages
        )
        credit = {f"credit/{name}": value for name, value in found.items()}
        return means | {"train/reward": reward} | rollout | credit

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[phase] = time.perf_counter() - started
