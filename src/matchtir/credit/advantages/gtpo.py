"""Hybrid GTPO: normalised discounted returns and a damped outcome."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import AdvantageParts, RewardBatch
from matchtir.credit.advantages.statistics import normalised
from matchtir.credit.advantages.turn import TurnAdvantage


class GtpoHybridAdvantage:
    """``A[i, t] = A_l[i, t] + w_o A_o[i]`` (hybrid GTPO of 2604.02869, returns of 2511.14846).

    ``A_l`` is the discounted return from turn t on, normalised over the group's turns of this
    index, and ``A_o`` the outcome, normalised over the group. The paper pays the outcome one
    discount step after the last turn; here it is part of the last turn's reward.

    Args:
        outcome_weight: w_o; 0.3 in the paper.
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviations.
        singleton: a turn that nobody else of the group reaches keeps its ``raw`` return or gets
            ``zero``; likewise the outcome of a group of one.
    """

    def __init__(
        self,
        outcome_weight: float = 0.3,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "zero",
    ) -> None:
        self.outcome_weight = outcome_weight
        self.epsilon = epsilon
        self.singleton = singleton
        self.turn = TurnAdvantage(gamma, epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        outcome = normalised(batch.outcome, batch.group, self.epsilon, self.singleton)
        damped = self.outcome_weight * outcome[:, None]
        return self.turn(batch) + np.where(batch.turn_mask, damped, 0.0)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t} and A_l."""
        return self.turn.parts(batch)
