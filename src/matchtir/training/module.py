"""Reinforcement learning with one advantage per turn: one training step is one iteration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from matchtir.credit import diagnostics
from matchtir.credit.advantages import Advantage, RewardBatch
from matchtir.credit.calls import call_advantages, with_call_variance
from matchtir.credit.rewards import Reward
from matchtir.policy import losses
from matchtir.policy.batching import TokenBatch, collate, values_to_tokens
from matchtir.policy.losses import LossInputs, LossOutput, PolicyLoss
from matchtir.policy.policy import Policy, TokenScores
from matchtir.policy.weights import adapter_dropout, full_tensor, has_adapters, without_adapters
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import derive_seed
from matchtir.training import parallel
from matchtir.training.base import PolicyModule
from matchtir.training.groups import (
    Groups,
    GroupSource,
    ScoredRollout,
    check_rewards,
    rollout_metrics,
)
from matchtir.training.phases import Phases
from matchtir.training.shaping import OverlongPenalty, less_kl
from matchtir.training.turnsight import TurnSight
from matchtir.types import StopReason, Task, Trajectory
from matchtir.utils.options import UserError, check_at_least, check_option
from matchtir.utils.processes import all_gather, all_reduce_sum, rank


class PolicyGradientModule(PolicyModule):
    """Group-sampled policy gradient (paper eq. 14). Override `rollout`, `score` or `loss`.

    Args:
        reward: calls and answers to turn rewards.
        advantage: turn rewards to one advantage per turn.
        objective: the loss over sampled tokens.
        sampling: how trajectories are drawn.
        group_size: trajectories per task, G.
        mini_batches: optimizer steps per iteration, each on an equal share of the trajectories.
        zero_advantage: what becomes of trajectories that have no advantage in any turn, as in
            groups that all succeed or fail alike. "keep"; "drop": they are left out of the update;
            "replace": so are they, after such groups were replaced. Their share is logged.
        ahead, partial_groups, max_partial_iterations: see `GroupSource`. Groups sampled ahead are
            one iteration old, never older; of partial ones the later turns come from newer weights
            than the first.
        masked_stops: trajectories that ended so are in the baseline of their group and carry no
            loss (DAPO's overlong filtering, 2503.14476: cut ones, whose reward is noise).
        overlong: takes from the reward of long responses; None: nothing.
        reference_reset_every: after so many iterations the reference becomes the policy as it is
            then (ProRL, 2505.24864); None: it stays what training began with.
        hindsight: weighs the advantages by what the reference thinks in hindsight; None: nothing.
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
        zero_advantage: Literal["keep", "drop", "replace"] = "keep",
        ahead: bool = False,
        partial_groups: int = 0,
        max_partial_iterations: int = 2,
        masked_stops: Sequence[str] = (),
        overlong: OverlongPenalty | None = None,
        reference_reset_every: int | None = None,
        hindsight: TurnSight | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_at_least(1, group_size=group_size, mini_batches=mini_batches)
        self.reward = reward
        self.advantage = advantage
        self.objective = objective
        self.sampling = sampling
        self.group_size = group_size
        self.mini_batches = mini_batches
        self.drops_zero_advantages = zero_advantage != "keep"
        self.source = GroupSource(
            self, zero_advantage, ahead, partial_groups, max_partial_iterations
        )
        self.masked_stops = frozenset(masked_stops)
        self.overlong = overlong
        # Of advantages that have a call's; None: one advantage per turn.
        per_call = getattr(advantage, "level", "turn") == "call"
        self.call_weight: Any = advantage.call_weight if per_call else None  # type: ignore[attr-defined]
        self.hindsight = hindsight
        self.reference_reset_every = reference_reset_every
        self.needs_reference = bool(objective.kl_coefficient) or hindsight is not None
        # In a list, so that checkpoints leave it out: a run that resumes makes it again.
        self._reference: list[Policy] = []
        self._check_options()

    # -- one iteration, top to bottom ------------------------------------------------------------

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """Sample groups, score their turns, update the policy."""
        self.phases = Phases(self.device)
        every = self.reference_reset_every
        if every and self.iteration > 1 and (self.iteration - 1) % every == 0:
            parallel.copy_weights(self._reference[0], [*self.policy.parameters()])
        groups: Groups | None = self.source.sample(tasks)
        while groups is not None:  # once, but where groups without advantages are replaced
            with self.phases.timed("credit"):
                scored = self.score(groups)
            groups = self.source.replace(groups, scored)
        with self.phases.timed("update"):
            metrics = self.update(scored)
        self.step_schedules()
        self.last_rollout = scored
        self.log_row(parallel.reduced_metrics(metrics | self._rollout_metrics(scored)))

    # -- the hooks -------------------------------------------------------------------------------

    def rollout(self, tasks: Sequence[Task], seed: int) -> Groups:
        """One group of trajectories per task, sampled from the weights that the engine has.

        With partial rollouts: the groups that are complete first, of these tasks and earlier ones;
        the group source keeps the others.
        """
        processes = self.trainer.world_size
        places = range(self.global_rank, processes * len(tasks), processes)
        fresh = self.episodes.attempts(tasks, self.group_size, self.sampling, seed, places)
        return self.source.finish_groups(fresh)

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> ScoredRollout:
        """What every turn earned, and its advantage."""
        trajectories = [trajectory for group in groups for trajectory in group]
        numbers = [number for number, group in enumerate(groups) for _ in group]
        credits = self.reward(trajectories)
        check_rewards(credits, trajectories)
        if self.overlong is not None:
            credits = list(map(self.overlong, credits, trajectories))
        batch = RewardBatch.from_credits(credits, trajectories, numbers)
        metrics: dict[str, float] = {}
        if self.objective.kl_in == "reward":
            pad, score = self.renderer.pad_id, self.reference_logprobs
            batch, metrics["train/kl"] = less_kl(batch, trajectories, self.objective, pad, score)
        (advantages, parts), calls = parallel.over_all_processes(self.advantage, batch), None
        if self.hindsight is not None:
            advantages, took = self.hindsight(
                advantages, trajectories, batch.group, self.renderer, self.reference_logprobs
            )
            metrics |= took
        if self.call_weight is not None:
            batch = with_call_variance(batch, credits, trajectories)
            weight, _ = parallel.over_all_processes(self.call_weight, batch)
            calls = call_advantages(advantages, weight, credits, trajectories)
        return ScoredRollout(trajectories, credits, batch, advantages, parts, calls, metrics)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """The objective on a part of a mini-batch."""
        return self.objective(inputs)

    # -- update ----------------------------------------------------------------------------------

    def update(self, scored: ScoredRollout) -> dict[str, float]:
        """`mini_batches` optimizer steps; metrics are means over them.

        Trajectories without a turn have no tokens to learn from and are left out, as are those
        whose stop is masked. Where nothing is left there is no step. With several processes each
        brings its own trajectories, and all of them take the same steps.

        Raises:
            RuntimeError: no trajectory has a turn.
        """
        has_turns = np.array([bool(each.turns) for each in scored.trajectories], dtype=bool)
        zero = scored.zero_advantage
        stops = [each.stop_reason in self.masked_stops for each in scored.trajectories]
        masked = np.array(stops, dtype=bool)
        kept = np.flatnonzero(has_turns & ~masked & ~(zero & self.drops_zero_advantages))
        learned = [scored.trajectories[row] for row in kept]
        batch = collate(learned, self.renderer.pad_id).to(self.device)
        own = bool(has_turns.any()), scored.rewards.group[kept].tolist(), batch.lengths.tolist()
        any_turns, numbers, lengths = zip(*all_gather(own), strict=True)
        if not any(any_turns):
            raise RuntimeError(
                "no trajectory of this iteration has a turn: every prompt is over the budget"
            )
        self.token_metrics = {"tokens": batch.sampled.float().cpu()}  # more by `_step`
        steps: list[dict[str, float]] = []
        if any(numbers):
            batch = replace(batch, extras=self._extras(batch, scored, kept))
            for rows in parallel.mini_batch_rows(numbers, lengths, rank(), self.mini_batches):
                seed = derive_seed(self.seed, self.iteration, len(steps))
                steps.append(self._step(batch, rows, seed, [learned[row].task for row in rows]))
        self.turn_sums = scored.sums_of_turns(kept, self.token_metrics, batch.turn_index.cpu())
        metrics = scored.metrics | {"train/zero_advantage": float(zero.mean())}
        metrics |= {"train/masked": float(masked.mean())} if self.masked_stops else {}
        if steps:
            good = [step for step in steps if all(map(math.isfinite, step.values()))]
            metrics["train/skipped_steps"] = float(len(steps) - len(good))
            for name in steps[0]:
                metrics[f"train/{name}"] = float(np.mean([step[name] for step in good or steps]))
        return metrics

    def _extras(self, batch: TokenBatch, scored: ScoredRollout, rows: Any) -> dict[str, Tensor]:
        """What the loss needs and the policy does not compute, of these rows of the rollout."""
        trajectories = [scored.trajectories[row] for row in rows]
        calls = scored.call_advantages and [scored.call_advantages[row] for row in rows]
        length = batch.input_ids.shape[1]
        values = values_to_tokens(trajectories, scored.advantages[rows], calls, length)
        extras = {"advantages": values.to(self.device)}
        if self.mini_batches > 1:
            extras["old_logprobs"] = self._logprobs(self.policy, batch)
        if self.objective.kl_coefficient and self.objective.kl_in == "loss":
            extras["reference_logprobs"] = self.reference_logprobs(batch)
        return extras

    def _step(
        self, whole: TokenBatch, rows: np.ndarray, seed: int, tasks: Sequence[Task]
    ) -> dict[str, float]:
        """One optimizer step on these rows, and those of other processes."""
        index = torch.from_numpy(rows).to(self.device)
        batch, objective = whole.rows(index), self.objective
        total = all_reduce_sum(losses.weight_total(batch.sampled, objective.aggregation))
        batch.extras["weights"] = losses.token_weights(
            batch.sampled, batch.turn_index, objective.aggregation, objective.length, total
        )
        if objective.covariance is not None:
            batch.extras["chosen"] = objective.covariance.choose(
                batch.sampler_logprobs, batch.extras["advantages"], batch.sampled, seed
            )
        totals: dict[str, float] = defaultdict(float)
        for part, tokens in self.micro_batches(batch, self.micro_batch_tokens):
            output = self.loss(self._loss_inputs(tokens))
            self.manual_backward(output.loss)
            for name, value in (output.metrics | {"loss": output.loss.detach()}).items():
                totals[name] += float(value)
            for name, value in output.per_token.items() if len(part) else ():
                of_all = self.token_metrics.setdefault(name, torch.zeros(whole.input_ids.shape))
                of_all[index[part].cpu(), : value.shape[1]] = value.cpu()
        sums = parallel.all_reduce_metrics(totals)
        return sums | {"grad_norm": self.step_optimizers(sums["loss"], tasks)}

    def _loss_inputs(self, tokens: TokenBatch) -> LossInputs:
        """What the policy computes for a micro-batch, and its extras."""
        scores = self._scores(self.policy, tokens)
        # With one step per iteration the policy is still the one at its start.
        return LossInputs(
            logprobs=scores.logprobs,
            entropy=scores.entropy,
            sampled=tokens.sampled,
            turn_index=tokens.turn_index,
            sampler_logprobs=tokens.sampler_logprobs,
            **{"old_logprobs": scores.logprobs.detach(), **tokens.extras},
        )

    def _scores(self, policy: Policy, tokens: TokenBatch) -> TokenScores:
        temperature = self.sampling.temperature
        return policy(tokens.input_ids, tokens.sampled, temperature, tokens.attention_mask)

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [B, L] under the reference: with adapters the model without them."""
        batch = batch.to(self.device)
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
        # No backward pass: twice as many tokens fit.
        for rows, tokens in self.micro_batches(batch, 2 * self.micro_batch_tokens):
            scores = self._scores(policy, tokens)
            if len(rows):
                logprobs[rows, : tokens.input_ids.shape[1]] = scores.logprobs
        return logprobs

    # -- checks and set-up -----------------------------------------------------------------------

    def _check_options(self) -> None:
        """Refuse what does not go together."""
        sampling, objective, every = self.sampling, self.objective, self.reference_reset_every
        for stop in self.masked_stops:
            check_option("masked_stops", stop, [each for each in StopReason if each != "answer"])
        if sampling.temperature <= 0:
            raise ValueError(f"temperature={sampling.temperature}: training samples above 0")
        if (sampling.top_p < 1 or sampling.top_k) and objective.correction is None:
            raise ValueError(
                f"top_p={sampling.top_p}, top_k={sampling.top_k}: tokens are drawn with other "
                "probabilities than the policy's; only loss=truncated_is corrects for that"
            )
        if dropout := adapter_dropout(self.policy):
            raise ValueError(
                f"model.lora.lora_dropout={dropout}: policy gradients need the probabilities with "
                "which tokens were drawn, so nothing is dropped; set it to 0"
            )
        if self.source.off_policy and objective.correction is None:
            raise ValueError(
                "ahead and partial groups come from older weights: they need a loss that corrects "
                "for it (loss=truncated_is)"
            )
        if self.mini_batches == 1 and objective.covariance and objective.covariance.coefficient:
            raise UserError(
                "loss.covariance.coefficient: with mini_batches=1 the policy is the old one"
            )
        if self.call_weight is not None and not getattr(self.reward, "pays_calls", False):
            raise ValueError("advantage_level=call: this reward pays no single calls")
        check_at_least(1, reference_reset_every=1 if every is None else every)
        if every is not None and (not self.needs_reference or has_adapters(self.policy)):
            raise UserError(
                f"reference_reset_every={every} needs a reference model: a KL or hindsight, and no "
                "model.lora, whose reference is the model without adapters"
            )

    @property
    def policies(self) -> list[Policy]:
        """The policy and its reference."""
        return [self.policy, *self._reference]

    def configure_model(self) -> None:
        """Make the reference, once; shard it and the policy, where the strategy says so."""
        if self.needs_reference and not has_adapters(self.policy) and not self._reference:
            sharded = isinstance(self.trainer.strategy, parallel.ShardedStrategy)
            self._reference.append(parallel.frozen_copy(self.policy, weights=not sharded))
        super().configure_model()

    def set_training_mode(self) -> None:
        """Without dropout: its noise would be taken for a difference between two policies."""
        self.policy.train_without_dropout()

    # -- groups under way outlive an interruption ------------------------------------------------

    def on_validation_start(self) -> None:
        """The engine is needed for validation."""
        self.source.wait()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep groups that were sampled ahead or are partial, and a reference that is reset."""
        checkpoint["groups"] = self.source.state_dict()
        if self.reference_reset_every:
            weights = self._reference[0].parameters()
            checkpoint["reference"] = [full_tensor(each).cpu() for each in weights]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` kept."""
        self.source.load_state_dict(checkpoint["groups"])
        if self.reference_reset_every:
            parallel.copy_weights(self._reference[0], checkpoint["reference"])

    # -- what is logged and traced ---------------------------------------------------------------

    def _rollout_metrics(self, scored: ScoredRollout) -> dict[str, float]:
        trajectories, advantages = scored.trajectories, scored.advantages
        found = diagnostics.diagnose(
            self.reward, trajectories, scored.credits, scored.rewards, advantages
        )
        places = diagnostics.sums_by_slice(
            scored.parts.get("trajectory_advantage"),
            getattr(self.advantage, "trajectory_weight", 1.0),
            *(trajectories, advantages, self.turn_sums),
        )
        spans = diagnostics.sums_by_span(trajectories, advantages, scored.call_advantages)
        return {
            **rollout_metrics(scored, self.source.seconds, self.iteration),
            **{f"credit/{name}": value for name, value in found.items()},
            **diagnostics.by_slice(diagnostics.added(all_gather(places))),
            **diagnostics.by_span(diagnostics.added(all_gather(spans))),
            **self.phases.metrics(),
            "train/partial_groups": float(len(self.source.partial)),
            "train/replaced": float(self.source.replaced),
            "train/dropped": float(self.source.dropped),
        }

    def log_ratios(self, trajectories: Sequence[Trajectory]) -> list[list[list[float]]]:
        """Log-probability now minus that at sampling: by trajectory, turn and sampled token."""
        batch = collate(trajectories, self.renderer.pad_id).to(self.device)
        with self.trainer.precision_plugin.forward_context():  # which callbacks are outside of
            ratios = self._logprobs(self.policy, batch) - batch.sampler_logprobs
        return [
            [row[turns == turn].tolist() for turn in range(len(trajectory.turns))]
            for trajectory, row, turns in zip(
                trajectories, ratios.cpu(), batch.turn_index.cpu(), strict=True
            )
        ]
