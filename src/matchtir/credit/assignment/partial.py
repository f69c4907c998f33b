"""Partial assignment: calls and gold calls may stay without a partner, in a dustbin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment.base import (
    Assignment,
    check_similarities,
    check_unmatched_penalty,
    transported,
)
from matchtir.credit.assignment.hard import HardAssignment
from matchtir.credit.assignment.newton import Problem
from matchtir.credit.assignment.sinkhorn import check_solver, sinkhorn
from matchtir.utils.options import check_option

TOLERANCE = 1e-9
MAX_ITERATIONS = 100


class PartialAssignment:
    """Matching or transport with a dustbin that is worth `threshold` per partner (this project).

    The paper's assignments pay a call for any similarity at all: the right tool with a wrong value
    still earns 2/3. Here a pair below the threshold is worth less than no pair.

    ``matching`` maximises ``sum (S - threshold)`` over one-to-one pairs; a matched call earns S.
    ``transport`` is entropic transport with one more row and column of score `threshold` and
    mass 1, enough for everything; a call earns ``sum_j Z_pj S_pj`` over the true gold calls.

    Args:
        threshold: similarity, in [0, 1), that a pair must exceed.
        kind: ``matching`` or ``transport``.
        scale: of transport, ``mass`` or ``conditional`` (times m), as in `SoftAssignment`.
        reg: entropic regulariser of transport.
        unmatched_penalty: taken from a call without a pair (matching), or without any similarity
            above the threshold in proportion to its mass (transport).
    """

    def __init__(
        self,
        threshold: float = 0.7,
        kind: str = "matching",
        scale: str = "mass",
        reg: float = 0.1,
        unmatched_penalty: float = 0.0,
    ) -> None:
        check_option("kind", kind, ("matching", "transport"))
        check_option("scale", scale, ("mass", "conditional"))
        check_unmatched_penalty(unmatched_penalty)
        check_solver(reg, TOLERANCE, MAX_ITERATIONS)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1)")
        self.threshold = threshold
        self.transport = kind == "transport"
        self.conditional = scale == "conditional"
        self.reg = reg
        self.unmatched_penalty = unmatched_penalty
        self.matching = HardAssignment()

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan [m, n] per matrix, without its dustbins; ValueError where one is not finite."""
        check_similarities(similarities)
        return self._transported(similarities) if self.transport else self._matched(similarities)

    def _matched(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        gains = [np.maximum(matrix - self.threshold, 0.0) for matrix in similarities]
        plans = [assignment.plan for assignment in self.matching(gains)]
        return [
            Assignment(
                plan,
                np.where(
                    plan.any(axis=1), (plan * similarity).sum(axis=1), -self.unmatched_penalty
                ),
            )
            for similarity, plan in zip(similarities, plans, strict=True)
        ]

    def _transported(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        filled = [matrix for matrix in similarities if matrix.size]
        problems = [self._with_dustbin(matrix) for matrix in filled]
        solved = iter(sinkhorn(problems, self.reg, TOLERANCE, MAX_ITERATIONS, finish=True))
        plans = [
            next(solved)[:-1, :-1] if matrix.size else np.zeros(matrix.shape)
            for matrix in similarities
        ]
        return transported(
            similarities, plans, self.conditional, self.unmatched_penalty, self.threshold
        )

    def _with_dustbin(self, similarity: Float[np.ndarray, "m n"]) -> Problem:
        m, n = similarity.shape
        scores = np.full((m + 1, n + 1), self.threshold)
        scores[:-1, :-1] = similarity
        return Problem(
            scores, np.append(np.full(m, 1.0 / m), 1.0), np.append(np.full(n, 1 / n), 1.0)
        )
