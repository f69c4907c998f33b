"""RLOO: each trajectory against the mean of the others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.statistics import centred
from matchtir.utils.options import check_option


class RlooAdvantage:
    """``A[i, t] = R_i - mean of R_j over j != i`` in the group (RLOO, 2402.14740).

    That is ``G / (G - 1)`` times the centred reward: a baseline that does not depend on the
    trajectory it is subtracted from.

    Args:
        singleton: a group of one keeps its ``raw`` reward (no baseline) or gets ``zero``.
    """

    def __init__(self, singleton: str = "zero") -> None:
        check_option("singleton", singleton, ("raw", "zero"))
        self.singleton = singleton

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        _, index, count = np.unique(batch.group, return_inverse=True, return_counts=True)
        scale = (count / np.maximum(count - 1, 1))[index]
        advantage = scale * centred(batch.total, batch.group, self.singleton)
        return np.where(batch.turn_mask, advantage[:, None], 0.0)
