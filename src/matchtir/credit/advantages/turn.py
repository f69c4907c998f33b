"""Turn-level advantage: the return from a turn on against the same turn of the group."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import AdvantageParts, RewardBatch
from matchtir.credit.advantages.statistics import (
    PRECISIONS,
    TURN_GROUPS,
    check_normalisation,
    discounted_returns,
    normalised,
    turn_groups,
)
from matchtir.utils.options import check_option


class TurnAdvantage:
    """``A[i, t] = (R_{i,t} - mean) / (std + epsilon)``, R the discounted return (paper eq. 11).

    Mean and std are over the trajectories of the group that reach turn t. A turn that only one
    of them reaches has mean 0 and std 1 there, so that its raw return becomes its advantage: a
    bonus for longer episodes, which ``singleton=zero`` takes away.

    Args:
        gamma: discount per turn, in [0, 1].
        epsilon: added to the unbiased standard deviation.
        singleton: ``raw`` (paper, release) or ``zero``.
        turn_groups: ``index`` compares turns of equal index (paper); ``kind_and_index`` compares
            calling turns of equal index, and answers with answers; ``state`` turns before which
            the same was known.
        precision: ``double``, or ``single`` to round like the release's float32 tensors.
    """

    def __init__(
        self,
        gamma: float = 0.9,
        epsilon: float = 1e-6,
        singleton: str = "raw",
        turn_groups: str = "index",
        precision: str = "double",
    ) -> None:
        check_normalisation(epsilon, singleton, precision, gamma)
        check_option("turn_groups", turn_groups, TURN_GROUPS)
        self.gamma = gamma
        self.epsilon = epsilon
        self.singleton = singleton
        self.dtype = PRECISIONS[precision]
        self.turn_groups = turn_groups

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn."""
        return self._normalise(batch, self.returns(batch))

    def returns(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """The discounted return R_{i,t} from every turn on."""
        rewards = batch.turn_rewards.astype(self.dtype)
        return discounted_returns(rewards, batch.turn_mask, self.gamma)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """R_{i,t} and A_l."""
        returns = self.returns(batch)
        return AdvantageParts(returns=returns, turn=self._normalise(batch, returns))

    def _normalise(
        self, batch: RewardBatch, returns: Float[np.ndarray, "N T"]
    ) -> Float[np.ndarray, "N T"]:
        mask = batch.turn_mask
        groups = turn_groups(batch, self.turn_groups)
        advantage = np.zeros(mask.shape)
        advantage[mask] = normalised(returns[mask], groups[mask], self.epsilon, self.singleton)
        return advantage
