"""Order-preserving assignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment.base import (
    Assignment,
    check_similarities,
    check_unmatched_penalty,
)


class OrderedAssignment:
    """Best monotone matching: later calls are matched to later gold calls (this project).

    Maximises the summed similarity over one-to-one pairs that do not cross, as in sequence
    alignment without gap costs: ``F[i, j] = max(F[i-1, j], F[i, j-1], F[i-1, j-1] + S[i, j])``.
    Right calls in a wrong order earn less than with `HardAssignment`; calls of one turn count in
    the order in which they were written. Among alignments of equal weight, earlier calls are
    matched first.

    Args:
        unmatched_penalty: taken from every call that has no pair of positive similarity.
    """

    def __init__(self, unmatched_penalty: float = 0.0) -> None:
        check_unmatched_penalty(unmatched_penalty)
        self.unmatched_penalty = unmatched_penalty

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan of zeros and ones per matrix; ValueError where a similarity is not finite."""
        check_similarities(similarities)
        return [self._align(similarity) for similarity in similarities]

    def _align(self, similarity: Float[np.ndarray, "m n"]) -> Assignment:
        calls, golds = similarity.shape
        # best[i][j]: weight of the best alignment of the first i calls with the first j gold calls
        best = np.zeros((calls + 1, golds + 1))
        for call in range(calls):
            paired = best[call, :-1] + similarity[call]
            best[call + 1, 1:] = np.maximum.accumulate(np.maximum(best[call, 1:], paired))
        plan = np.zeros(similarity.shape)
        rewards = np.full(calls, -self.unmatched_penalty)
        call, gold = calls, golds
        while call and gold:
            if best[call, gold] == best[call - 1, gold]:
                call -= 1
            elif best[call, gold] == best[call, gold - 1]:
                gold -= 1
            else:
                call, gold = call - 1, gold - 1
                plan[call, gold] = 1.0
                rewards[call] = similarity[call, gold]
        return Assignment(plan, rewards)
