"""GiGPO: turns taken from the same state against each other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.trajectory import TrajectoryAdvantage
from matchtir.credit.advantages.turn import TurnAdvantage


class GigpoAdvantage:
    """``A[i, t] = A_g[i] + w A_s[i, t]`` (GiGPO, 2505.10978).

    ``A_s`` is the discounted return of the turn, normalised over the turns of the group taken from
    the same state; see `TurnKeys` for what counts as one. A state seen once says nothing: 0.

    Args:
        turn_weight: w; 1 in the paper.
        gamma: discount per turn, in [0, 1]; 0.95 in the paper.
        epsilon: added to the unbiased standard deviations.
        singleton: a group of one trajectory keeps its ``raw`` reward or gets ``zero``.
    """

    def __init__(
        self,
        turn_weight: float = 1.0,
        gamma: float = 0.95,
        epsilon: float = 1e-6,
        singleton: str = "zero",
    ) -> None:
        self.turn_weight = turn_weight
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)
        self.turn = TurnAdvantage(gamma, epsilon, "zero", "state")

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn; ValueError where the batch has no states."""
        return self.trajectory(batch) + self.turn_weight * self.turn(batch)
