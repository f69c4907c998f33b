"""Soft assignment by entropic optimal transport."""

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
from matchtir.credit.assignment.newton import Problem
from matchtir.credit.assignment.sinkhorn import check_solver, sinkhorn
from matchtir.utils.options import check_option

_SPREAD_EPSILON = 1e-12


class SoftAssignment:
    """Entropic optimal transport from calls to gold calls (paper eq. 6-7).

    The plan Z minimises ``<Z, C> - reg * H(Z)`` with every call sending 1/m and every gold call
    receiving 1/n; a call earns ``sum_j Z_pj S_pj``. Without gold calls it earns 0. All mass must
    arrive, so that a wrong call takes some from the right ones (see `PartialAssignment`).

    Args:
        reg: entropic regulariser, positive; 0.1 in the paper.
        cost: ``linear`` (C = -S), ``normalized_inversion`` (C = 1 - (S - min) / (max - min)) or
            ``exponential`` (C = -exp(S)).
        scale: ``mass`` pays the transported mass as it is; ``conditional`` multiplies by m, so
            that a perfect call scores 1 however many calls there are.
        unmatched_penalty: a call whose similarities are all 0 earns ``-unmatched_penalty`` times
            its mass (1/m, or 1 with ``conditional``).
        tolerance: Euclidean norm of the marginal error at which the iteration stops.
        max_iterations: Sinkhorn iterations before giving up on them.
        finish: ``newton`` takes every plan to the tolerance by Newton's method; ``none`` keeps
            what the iterations left (release, with 1,000 iterations).
    """

    def __init__(
        self,
        reg: float = 0.1,
        cost: str = "linear",
        scale: str = "mass",
        unmatched_penalty: float = 0.0,
        tolerance: float = 1e-9,
        max_iterations: int = 100,
        finish: str = "newton",
    ) -> None:
        check_option("cost", cost, ("linear", "normalized_inversion", "exponential"))
        check_option("scale", scale, ("mass", "conditional"))
        check_option("finish", finish, ("newton", "none"))
        check_unmatched_penalty(unmatched_penalty)
        check_solver(reg, tolerance, max_iterations)
        self.reg = reg
        self.cost = cost
        self.conditional = scale == "conditional"
        self.unmatched_penalty = unmatched_penalty
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.finish = finish == "newton"

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One transport plan per matrix; ValueError where a similarity is not finite."""
        check_similarities(similarities)
        filled = [matrix for matrix in similarities if matrix.size]
        problems = [Problem.uniform(self._scores(matrix)) for matrix in filled]
        solved = iter(
            sinkhorn(problems, self.reg, self.tolerance, self.max_iterations, self.finish)
        )
        plans = [next(solved) if matrix.size else np.zeros(matrix.shape) for matrix in similarities]
        return transported(similarities, plans, self.conditional, self.unmatched_penalty)

    def _scores(self, similarity: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
        """Negative cost of every pair."""
        if self.cost == "linear":
            return similarity
        if self.cost == "exponential":
            return np.exp(similarity)
        low, high = similarity.min(), similarity.max()
        return (similarity - low) / (high - low + _SPREAD_EPSILON)
