"""MT-GRPO: sums of normalised turn rewards, plus the outcome."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.statistics import (
    check_normalisation,
    discounted_returns,
    normalised,
    turn_groups,
)


class MtGrpoAdvantage:
    """``A[i, t] = w sum_{k >= t} A_r[i, k] + A_o[i]`` (MT-GRPO, 2505.11821).

    ``A_o`` is the outcome, normalised over the group; ``A_r[i, k]`` the reward of calling turn k
    without the outcome, normalised over the trajectories of the group that call tools in turn k.
    The paper's formula has one turn; the sum over turns is that of 2604.02869. A turn without calls
    has no turn reward of its own (A_r = 0), as the paper's last turn has none.

    Args:
        turn_weight: w.
        epsilon: added to the unbiased standard deviations.
        singleton: a turn that nobody else of the group reaches keeps its ``raw`` reward or gets
            ``zero``; likewise the outcome of a group of one.
    """

    def __init__(
        self, turn_weight: float = 1.0, epsilon: float = 1e-6, singleton: str = "zero"
    ) -> None:
        check_normalisation(epsilon, singleton)
        self.turn_weight = turn_weight
        self.epsilon = epsilon
        self.singleton = singleton

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        calling = batch.turn_mask & batch.has_calls
        groups = turn_groups(batch, "index")
        normal = np.zeros(calling.shape)
        normal[calling] = normalised(
            batch.process_rewards[calling], groups[calling], self.epsilon, self.singleton
        )
        following = discounted_returns(normal, batch.turn_mask, 1.0)
        outcome = normalised(batch.outcome, batch.group, self.epsilon, self.singleton)
        return np.where(batch.turn_mask, self.turn_weight * following + outcome[:, None], 0.0)
