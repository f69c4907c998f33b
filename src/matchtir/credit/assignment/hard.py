"""Maximum-weight one-to-one matching."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from matchtir.credit.assignment.base import (
    Assignment,
    check_similarities,
    check_unmatched_penalty,
)
from matchtir.credit.assignment.flat import Flat

# Relative handicap of a later call: far below any difference of two similarities, far above
# rounding. Among equally good matchings it pays the call that came first.
_TIE_BREAK = 1e-12


class HardAssignment:
    """Maximum-weight matching of calls (paper eq. 5, Kuhn-Munkres).

    A call earns the similarity of its pair. A pair of similarity 0 counts as unmatched, and an
    unmatched call earns ``-unmatched_penalty``. Among matchings of equal weight, earlier calls
    are matched first, so that the repetition of a call is the one that goes unpaid.

    Args:
        unmatched_penalty: lambda of the paper, whose experiments use 0.
    """

    def __init__(self, unmatched_penalty: float = 0.0) -> None:
        check_unmatched_penalty(unmatched_penalty)
        self.unmatched_penalty = unmatched_penalty

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan of zeros and ones per matrix; ValueError where a similarity is not finite."""
        check_similarities(similarities)
        if not similarities:
            return []
        flat = Flat.of(similarities)
        row_in_matrix = flat.row_of - np.repeat(flat.first_row, flat.rows * flat.columns)
        weights = flat.cells * (1.0 - _TIE_BREAK * row_in_matrix)
        # Only the matching itself goes matrix by matrix.
        pairs = [linear_sum_assignment(matrix, maximize=True) for matrix in flat.matrices(weights)]
        count = [len(rows) for rows, _ in pairs]
        rows = np.concatenate([rows for rows, _ in pairs])
        columns = np.concatenate([columns for _, columns in pairs])
        cells = np.repeat(flat.first_cell, count) + rows * np.repeat(flat.columns, count) + columns
        calls = np.repeat(flat.first_row, count) + rows
        matched = flat.cells[cells] > 0
        plan = np.zeros_like(flat.cells)
        plan[cells[matched]] = 1.0
        rewards = np.full(flat.rows.sum(), -self.unmatched_penalty)
        rewards[calls[matched]] = flat.cells[cells[matched]]
        return list(map(Assignment, flat.matrices(plan), flat.vectors(rewards)))
