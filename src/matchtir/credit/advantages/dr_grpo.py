"""Dr. GRPO: rewards centred, not scaled."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import RewardBatch
from matchtir.credit.advantages.statistics import centred
from matchtir.utils.options import check_option


class DrGrpoAdvantage:
    """``A[i, t] = R_i - mean`` over the group (Dr. GRPO, 2503.20783).

    Dividing by the std weighs a task by how uniform its rewards are; the paper drops it, and the
    division by length in the loss (``aggregation: dr_grpo`` of `PolicyLoss`).

    Args:
        singleton: a group of one keeps its ``raw`` reward or gets ``zero``.
    """

    def __init__(self, singleton: str = "zero") -> None:
        check_option("singleton", singleton, ("raw", "zero"))
        self.singleton = singleton

    def __call__(self, batch: RewardBatch) -> Float[np.ndarray, "N T"]:
        """One advantage per turn, the same for all turns of a trajectory."""
        advantage = centred(batch.total, batch.group, self.singleton)
        return np.where(batch.turn_mask, advantage[:, None], 0.0)
