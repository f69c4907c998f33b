"""What is added to the rewards of an iteration before they become advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from matchtir.credit.advantages import RewardBatch
from matchtir.credit.rewards import Credit
from matchtir.policy.batching import TokenBatch, collate
from matchtir.policy.losses import PolicyLoss, kl_estimate, turn_sums
from matchtir.rollout.episode import response_tokens
from matchtir.types import StopReason, Trajectory
from matchtir.utils.options import UserError


@dataclass(frozen=True)
class OverlongPenalty:
    """Soft overlong punishment (DAPO, 2503.14476, eq. 13), added to the reward of the answer.

    With L tokens behind the prompt, tool results included as in the budget they share, it is 0 up
    to ``limit - buffer`` and falls linearly to ``-penalty`` at `limit`, where the budget ends.

    Args:
        limit: tokens of a response.
        buffer: tokens over which the penalty grows; 0: there is none.
        penalty: at the limit; 1 in DAPO.

    Raises:
        UserError: options out of range, or a penalty without a buffer.
    """

    limit: int
    buffer: int = 0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.buffer <= self.limit:
            raise UserError(f"overlong.buffer={self.buffer} must lie in [0, limit={self.limit}]")
        if self.penalty <= 0 or (self.penalty != 1 and not self.buffer):
            raise UserError(f"overlong.penalty={self.penalty} must be positive, and needs a buffer")

    def __call__(self, credit: Credit, trajectory: Trajectory) -> Credit:
        """The credit with the penalty in the last turn, the outcome's reward and the total."""
        over = response_tokens(trajectory.turns) - (self.limit - self.buffer)
        if trajectory.stop_reason is StopReason.RESPONSE_BUDGET:  # by results that nobody read
            over = self.buffer
        if not self.buffer or over <= 0:
            return credit
        taken = self.penalty * min(over / self.buffer, 1.0)
        rewards = np.array(credit.turn_rewards, dtype=float)
        rewards[-1] -= taken
        outcome, total = credit.outcome_reward - taken, credit.total - taken
        return replace(credit, turn_rewards=rewards, outcome_reward=outcome, total=total)


def less_kl(
    rewards: RewardBatch,
    trajectories: Sequence[Trajectory],
    loss: PolicyLoss,
    pad_id: int,
    score: Callable[[TokenBatch], Tensor],
) -> tuple[RewardBatch, float]:
    """``r_t - beta sum_l KL_l`` over the tokens l of turn t, and the mean of KL_l over all tokens.

    KL_l is the loss' estimate for the policy that sampled, by its sampler's log-probabilities: the
    tokens are its own, so that the estimates are unbiased.

    Args:
        rewards: of the trajectories.
        score: log-probabilities [B, L] of the reference; called once, with some tokens.
    """
    rows = np.flatnonzero([bool(each.turns) for each in trajectories])
    tokens = TokenBatch.dummy(pad_id)
    if len(rows):
        tokens = collate([trajectories[row] for row in rows], pad_id)
    estimates = kl_estimate(tokens.sampler_logprobs, score(tokens).cpu(), loss.kl_estimator)
    estimates = estimates.where(tokens.sampled, 0.0)
    taken = np.zeros_like(rewards.turn_rewards)
    if len(rows):
        of_turns = turn_sums(estimates.double(), tokens.turn_index).numpy()
        taken[rows, : len(of_turns.T)] = loss.kl_coefficient * of_turns
    total = rewards.total - taken.sum(axis=1)
    shaped = replace(rewards, turn_rewards=rewards.turn_rewards - taken, total=total)
    return shaped, float(estimates.sum() / tokens.sampled.sum().clamp(min=1))
