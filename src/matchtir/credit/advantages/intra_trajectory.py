"""Turn level inside one trajectory: its turns against each other (paper App. C.1)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.statistics import (
    check_normalisation,
    discounted_returns,
    normalised,
)
from matchtir.credit.advantages.trajectory import TrajectoryAdvantage
from matchtir.utils.options import check_option


class IntraTrajectoryAdvantage:
    """The trajectory advantage, shifted or scaled by how a turn compares with its fellows.

    With ``l[i, t]`` the discounted return of turn t, normalised over the turns of trajectory i
    (0 for a trajectory of one turn)::

        sum:      A[i, t] = w_g A_g[i] + w_l l[i, t]
        product:  A[i, t] = A_g[i] * 2 sigmoid(w_l sign(A_g[i]) l[i, t])

    The paper names a weighted product and a weighted sum without its weights. A plain product would
    reward the bad turns of bad trajectories; the factor here lies in (0, 2), is 1 for an average
    turn, and gives better turns more of the praise and less of the blame.

    Args:
        combination: ``product`` or ``sum``.
        trajectory_weight: w_g, of the sum.
        turn_weight: w_l.
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviations.
        singleton: a group of one keeps its ``raw`` reward (paper) or gets ``zero``.
    """

    def __init__(
        self,
        combination: str = "product",
        trajectory_weight: float = 1.0,
        turn_weight: float = 1.0,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
    ) -> None:
        check_option("combination", combination, ("product", "sum"))
        check_normalisation(epsilon, gamma=gamma)
        self.product = combination == "product"
        self.trajectory_weight = trajectory_weight
        self.turn_weight = turn_weight
        self.gamma = gamma
        self.epsilon = epsilon
        self.trajectory = TrajectoryAdvantage(epsilon, singleton)

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        mask = batch.turn_mask
        returns = discounted_returns(batch.turn_rewards, mask, self.gamma)
        own = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
        turn = np.zeros(mask.shape)
        turn[mask] = self.turn_weight * normalised(returns[mask], own[mask], self.epsilon, "zero")
        trajectory = self.trajectory(batch)
        if self.product:
            # 2 sigmoid(x) = 1 + tanh(x / 2), which cannot overflow
            return trajectory * (1.0 + np.tanh(np.sign(trajectory) * turn / 2))
        return self.trajectory_weight * trajectory + turn
