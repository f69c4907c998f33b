"""REINFORCE++: rewards whitened over the whole batch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.statistics import centred, check_normalisation, normalised
from matchtir.utils.options import check_option


class ReinforcePlusPlusAdvantage:
    """``A[i, t] = (x_i - mean) / (std + epsilon)`` over the batch (REINFORCE++, 2501.03262).

    Without baseline ``x_i = R_i``; with ``baseline=group``, ``x_i = R_i - mean of its group``.
    The paper normalises over tokens, after taking a KL penalty from the reward. Here each
    trajectory counts once, whatever its length, and the KL stays in the loss.

    Args:
        baseline: ``none`` or ``group``.
        epsilon: added to the unbiased standard deviation.
    """

    def __init__(self, baseline: str = "none", epsilon: float = 1e-6) -> None:
        check_option("baseline", baseline, ("none", "group"))
        check_normalisation(epsilon)
        self.group_baseline = baseline == "group"
        self.epsilon = epsilon

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        rewards = centred(batch.total, batch.group, "zero") if self.group_baseline else batch.total
        whole = np.zeros(len(rewards), dtype=np.int64)
        advantage = normalised(rewards, whole, self.epsilon, "zero")
        return np.where(batch.turn_mask, advantage[:, None], 0.0)
