"""GRPO: the whole trajectory against its group."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import AdvantageParts, RewardBatch
from matchtir.credit.advantages.statistics import PRECISIONS, check_normalisation, normalised


class TrajectoryAdvantage:
    """``A[i, t] = (R_i - mean) / (std + epsilon)`` over the group, for every turn (GRPO).

    Args:
        epsilon: added to the unbiased standard deviation.
        singleton: a group of one keeps its ``raw`` reward (paper, release) or gets ``zero``.
        precision: ``double``, or ``single`` to round like the release's float32 tensors.
    """

    def __init__(
        self, epsilon: float = 1e-6, singleton: str = "raw", precision: str = "double"
    ) -> None:
        check_normalisation(epsilon, singleton, precision)
        self.epsilon = epsilon
        self.singleton = singleton
        self.dtype = PRECISIONS[precision]

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        total = batch.total.astype(self.dtype)
        advantage = normalised(total, batch.group, self.epsilon, self.singleton)
        return np.where(batch.turn_mask, advantage[:, None], 0.0)

    def parts(self, batch: RewardBatch) -> AdvantageParts:
        """A_g alone."""
        return AdvantageParts(trajectory=self(batch))
