"""Greedy one-to-one matching, which the release uses under the name of Hungarian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment.base import (
    Assignment,
    check_similarities,
    check_unmatched_penalty,
)


class GreedyAssignment:
    """Pairs taken in descending similarity, each call and gold call once (release).

    Not a maximum-weight matching: on ``[[1, .9], [.9, 0]]`` it earns 1.0 where `HardAssignment`
    earns 1.8. Pairs of equal similarity are taken in order of rows, then columns.

    Args:
        unmatched_penalty: taken from every call that has no pair of positive similarity.
    """

    def __init__(self, unmatched_penalty: float = 0.0) -> None:
        check_unmatched_penalty(unmatched_penalty)
        self.unmatched_penalty = unmatched_penalty

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan of zeros and ones per matrix; ValueError where a similarity is not finite."""
        check_similarities(similarities)
        return [self._match(similarity) for similarity in similarities]

    def _match(self, similarity: Float[np.ndarray, "m n"]) -> Assignment:
        plan = np.zeros(similarity.shape)
        rewards = np.full(len(similarity), -self.unmatched_penalty)
        rows, columns = np.nonzero(similarity > 0)
        order = np.argsort(-similarity[rows, columns], kind="stable")
        used_rows: set[int] = set()
        used_columns: set[int] = set()
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if row not in used_rows and column not in used_columns:
                used_rows.add(row)
                used_columns.add(column)
                plan[row, column] = 1.0
                rewards[row] = similarity[row, column]
        return Assignment(plan, rewards)
