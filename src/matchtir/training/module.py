"""Reinforcement learning with one advantage per turn: one training step is one iteration."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from matchtir.credit.advantages import Advantage, RewardBatch
from matchtir.credit.diagnostics import diagnose
from matchtir.credit.rewards import Reward
from matchtir.evaluation.metrics import measure
from matchtir.policy.batching import TokenBatch, collate
from matchtir.policy.losses import LossInputs, LossOutput, PolicyLoss, spread_turns
from matchtir.policy.policy import Policy
from matchtir.policy.weights import has_adapters, without_adapters
from matchtir.rollout.engine import SamplingParams
from matchtir.training.base import PolicyModule
from matchtir.training.groups import Groups, GroupSource, ScoredRollout, rollout_metrics
from matchtir.training.parallel import (
    advantages_of,
    metrics_of_all,
    mini_batch_rows,
    summed_metrics,
)
from matchtir.types import Task, Trajectory
from matchtir.utils.options import check_at_least, check_option
from matchtir.utils.processes import gathered, rank, summed


class PolicyGradientModule(PolicyModule):
    """Group-sampled policy gradient (paper eq. 14). Override `rollout`, `score` or `loss`.

    Args:
        reward: calls and answers to turn rewards.
        advantage: turn rewards to one advantage per turn.
        objective: the loss over sampled tokens.
        sampling: how trajectories are drawn.
        group_size: trajectories per task, G.
        mini_batches: optimizer steps per iteration, each on an equal share of the trajectories.
        silent: what becomes of trajectories that have no advantage in any turn, as in groups that
            all succeed or fail alike. "keep"; "drop": they are left out of the update; "replace":
            so are they, after `GroupSource` has replaced such groups. Their share is logged either
            way.
        ahead: sample the next iteration's groups while the policy is updated: with weights that
            are one iteration old, never older.
        carried_groups: partial rollouts: an iteration does not wait for so many groups; the next
            ones go on with them. Their later turns come from newer weights than their first ones.
        most_carries: how often a group may be left under way.
        settings: see `PolicyModule`.

    Raises:
        ValueError: options that do not go together; see the message.
    """

    def __init__(
        self,
        reward: Reward,
        advantage: Advantage,
        objective: PolicyLoss,
        sampling: SamplingParams,
        group_size: int,
        mini_batches: int = 1,
        silent: str = "keep",
        ahead: bool = False,
        carried_groups: int = 0,
        most_carries: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_option("silent", silent, ("keep", "drop", "replace"))
        check_at_least(1, group_size=group_size, mini_batches=mini_batches)
        if sampling.temperature <= 0:
            raise ValueError(f"temperature={sampling.temperature}: training samples above 0")
        self.reward = reward
        self.advantage = advantage
        self.objective = objective
        self.sampling = sampling
        self.group_size = group_size
        self.mini_batches = mini_batches
        self.drops_zero_advantages = silent != "keep"
        self.source = GroupSource(silent == "replace", ahead, carried_groups, most_carries)
        if self.source.off_policy and objective.correction is None:
            raise ValueError(
                "ahead and carried groups come from older weights: they need a loss that corrects "
                "for it (loss=truncated_is)"
            )
        if ahead and not self.engine.own_weights:
            raise ValueError(
                "ahead: the engine samples from the weights that are being updated meanwhile; it "
                "needs its own (rollout.engine.own_weights=true, or rollout=vllm)"
            )
        # In a list, so that checkpoints leave it out: a run that resumes makes it again.
        self._reference: list[Policy] = []
        if objective.kl_coefficient and not has_adapters(self.policy):
            self._reference.append(deepcopy(self.policy).eval().requires_grad_(False))
        self.phases = Phases(self.device)  # of the iteration under way

    @property
    def policies(self) -> list[Policy]:
        """The policy and its reference."""
        return [self.policy, *self._reference]

    # -- one iteration, top to bottom ------------------------------------------------------------

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """Sample groups, score their turns, update the policy."""
        self.phases = Phases(self.device)
        groups, seconds = self._sample(tasks)
        scored, replaced = self.source.replaced(
            groups, self._score(groups), self._sample_others, self._score
        )
        with self.phases.measured("update"):
            metrics = self.update(scored)
        self.step_schedules()
        self.last_rollout = scored
        metrics = self._rollout_metrics(scored, seconds) | metrics
        metrics |= {"train/carried": float(len(self.source.partial)), "train/replaced": replaced}
        self.log_row(metrics_of_all(metrics | self.phases.metrics()))

    # -- the hooks -------------------------------------------------------------------------------

    def rollout(self, tasks: Sequence[Task], seed: int) -> Groups:
        """One group of trajectories per task, sampled from the weights that the engine has.

        With partial rollouts: the groups that are whole first, of these tasks and of earlier ones.
        """
        places = range(
            self.global_rank, self.trainer.world_size * len(tasks), self.trainer.world_size
        )
        fresh = self.episodes.attempts(tasks, self.group_size, self.sampling, seed, places)
        return self.source.complete(self.episodes, fresh)

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> ScoredRollout:
        """What every turn earned, and its advantage."""
        trajectories = [trajectory for group in groups for trajectory in group]
        numbers = [number for number, group in enumerate(groups) for _ in group]
        credits = self.reward(trajectories)
        batch = RewardBatch.from_credits(credits, trajectories, numbers)
        advantages = advantages_of(self.advantage, batch)
        return ScoredRollout(trajectories, credits, batch, advantages)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """The objective on a part of a mini-batch."""
        return self.objective(inputs)

    # -- sample ----------------------------------------------------------------------------------

    def _sample(self, tasks: Sequence[Task]) -> tuple[Groups, float]:
        """The groups of this iteration, and the seconds that sampling them took."""
        with self.phases.measured("rollout"):
            sampled = self.source.take()
        if sampled is None:
            self._sync()
            groups = self._sample_now(tasks, self._rollout_seed(self.iteration))
            sampled = groups, self.phases.seconds["rollout"]
        if self.source.ahead:
            self._sample_ahead()
        return sampled

    def _sample_now(self, tasks: Sequence[Task], seed: int) -> Groups:
        with self.phases.measured("rollout"), self.policy_at_rest():
            return self.rollout(tasks, seed)

    def _sample_ahead(self) -> None:
        """Begin with the groups of the next iteration, where there is one."""
        tasks = self.trainer.datamodule.tasks_of(self.iteration + 1)  # type: ignore[attr-defined]
        if not tasks:
            return
        self._sync()
        seed = self._rollout_seed(self.iteration + 1)

        def sample() -> Groups:
            # The trainer's precision holds in its own thread only.
            with self.trainer.precision_plugin.forward_context():
                return self.rollout(tasks, seed)

        self.source.start(sample)

    def _sample_others(self, round_: int, count: int) -> Groups:
        """Groups of so many other tasks, for a round of replacements."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tasks = data.spare_tasks(self.iteration, round_, count)
        seed = self._rollout_seed(self.iteration, round_)
        return self._sample_now(tasks, seed) if tasks else []

    def _score(self, groups: Groups) -> ScoredRollout:
        with self.phases.measured("credit"):
            return self.score(groups)

    def _rollout_seed(self, iteration: int, *round_: int) -> int:
        sequence = np.random.SeedSequence((self.seed, iteration, *round_))
        return int(sequence.generate_state(1)[0])

    def _sync(self) -> None:
        with self.phases.measured("sync"):
            self.sync_engine()

    # -- update ----------------------------------------------------------------------------------

    def update(self, scored: ScoredRollout) -> dict[str, float]:
        """`mini_batches` optimizer steps; metrics are means over them.

        Trajectories without a turn have no tokens to learn from and are left out. Where nothing is
        left there is no step. With several processes each brings its own trajectories, and all of
        them take the same steps.
        """
        has_turns = np.array([bool(each.turns) for each in scored.trajectories], dtype=bool)
        zero = scored.zero_advantage
        kept = np.flatnonzero(has_turns & ~(zero & self.drops_zero_advantages))
        of_processes = gathered((bool(has_turns.any()), scored.rewards.group[kept].tolist()))
        if not any(some for some, _ in of_processes):
            raise RuntimeError(
                "no trajectory of this iteration has a turn: every prompt is over the budget"
            )
        metrics = {"train/silent": float(zero.mean())}
        groups = [of_process for _, of_process in of_processes]
        if not any(groups):
            return metrics
        batch = collate([scored.trajectories[int(row)] for row in kept], self.renderer.pad_id)
        batch = batch.to(self.device)
        advantages = torch.tensor(scored.advantages[kept], dtype=torch.float32)
        spread = spread_turns(advantages.to(self.device), batch.turn_index)
        old = self._logprobs(self.policy, batch) if self.mini_batches > 1 else None
        reference = self._reference_logprobs(batch)
        steps = [
            self._step(batch, spread, old, reference, torch.from_numpy(rows).to(self.device))
            for rows in mini_batch_rows(
                groups, rank(), self.mini_batches, seed=(self.seed, self.iteration)
            )
        ]
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
                if len(rows):
                    return values[rows, : like.shape[1]]
                return torch.zeros_like(like, dtype=torch.float32)

            scores = self.policy(
                tokens.input_ids, tokens.sampled, self.sampling.temperature, tokens.attention_mask
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
        return summed_metrics(totals, self.device) | {"grad_norm": self.step_optimizers()}

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
        if not isinstance(policy, FSDPModule):  # shards have their place
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

    # -- groups under way outlive an interruption ------------------------------------------------

    def on_validation_start(self) -> None:
        """The engine is needed for validation."""
        self.source.wait()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep groups that were sampled ahead or are partial."""
        checkpoint["groups"] = self.source.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self.source.load_state_dict(checkpoint["groups"])

    # -- what is logged and traced ---------------------------------------------------------------

    def _rollout_metrics(self, scored: ScoredRollout, seconds: float) -> dict[str, float]:
        measured = [measure(trajectory) for trajectory in scored.trajectories]
        means = {
            f"train/{name}": float(np.mean([values[name] for values in measured]))
            for name in ("success", "solve_f1", "answer_f1", "answered")
        }
        reward = float(np.mean([credit.total for credit in scored.credits]))
        versions = [turn.policy_version for each in scored.trajectories for turn in each.turns]
        staleness = self.iteration - float(np.mean(versions)) if versions else 0.0
        rollout = rollout_metrics(scored.trajectories, seconds)
        found = diagnose(
            self.reward, scored.trajectories, scored.credits, scored.rewards, scored.advantages
        )
        credit = {f"credit/{name}": value for name, value in found.items()}
        return means | {"train/reward": reward, "train/staleness": staleness} | rollout | credit

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


class Phases:
    """Seconds of each phase of one iteration, and on a GPU the most memory that PyTorch held."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(("sync", "rollout", "credit", "update"), 0.0)
        self.peaks: dict[str, float] = defaultdict(float)  # GiB
        self._gpu = device if device.type == "cuda" else None

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """A part of a phase; parts add up."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        started = time.perf_counter()
        yield
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
            peak = torch.cuda.max_memory_allocated(self._gpu) / 2**30
            self.peaks[phase] = max(peak, self.peaks[phase])
        self.seconds[phase] += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` and, on a GPU, `memory/<phase>`."""
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        return times | {f"memory/{phase}": peak for phase, peak in self.peaks.items()}
