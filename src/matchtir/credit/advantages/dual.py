"""The paper's dual-level advantage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import AdvantageParts, RewardBatch
from matchtir.credit.advantages.trajectory import TrajectoryAdvantage
from matchtir.credit.advantages.turn import TurnAdvantage


class DualAdvantage:
    """``A[i, t] = w_g A_g[i] + w_l A_l[i, t]``: trajectory and turn level, as the paper has it.

    Args:
        trajectory_weight: w_g; 1 in the paper, 1/2 in the release.
        turn_weight: w_l; 1 in the paper, 1/2 in the release.
        gamma, epsilon, singleton, turn_groups, precision: as in `TurnAdvantage`.
    """

    def __init__(
        self,
        trajectory_weight: float = 1.0,
        turn_weight: float = 1.0,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
        turn_groups: str = "index",
        precision: str = "double",
    ) -> None:
        self.trajectory_weight = trajectory_weight
        self.turn_weight = turn_weight
        self.trajectory = TrajectoryAdvantage(epsilon, singleton, precision)
        self.turn = TurnAdvantage(gamma, epsilon, singleton, turn_groups, precision)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        return self.trajectory_weight * self.trajectory(batch) + self.turn_weight * self.turn(batch)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t}, A_g and A_l."""
        return replace(self.turn.parts(batch), trajectory=self.trajectory(batch))
