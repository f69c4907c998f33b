"""Assignments of predicted calls to gold calls: hard, soft and their relatives (paper eq. 5-7).

Every assignment is called with the similarity matrices of many trajectories, each [m, n] (either
may be 0), and returns one `Assignment` per matrix, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from matchtir.credit.transport import check_solver, transport
from matchtir.utils.options import check_option

# Relative handicap of a later call: far below any difference of two similarities, far above
# rounding. Among equally good matchings it pays the call that came first.
_TIE_BREAK = 1e-12
_SPREAD_EPSILON = 1e-12
_TOLERANCE = 1e-9
# Sinkhorn's iterations before Newton's method takes over. Scaling alone does not do: calls tie, and
# on ties it converges ever more slowly. Of 4,096 matrices of 6 calls, 1,000 iterations in the log
# domain (7 s) leave 31 % above a marginal error of 1e-9 at reg 0.1, and 72 % at reg 0.002, with
# errors of up to 5e-4. With Newton's method both take 0.2 s, and no error is above 1e-9.
_ITERATIONS = 100

Pairs = tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The plan of one trajectory, and what it pays each predicted call."""

    plan: Float[np.ndarray, "m n"]
    rewards: Float[np.ndarray, " m"]


@runtime_checkable
class Assigner(Protocol):
    """Assigns the calls of many trajectories at once."""

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]: ...


def check_similarities(similarities: Sequence[Float[np.ndarray, "_ _"]]) -> None:
    """Raise ValueError, naming the matrix and its row, where a similarity is not finite."""
    # One pass over all entries: the usual case must not cost a call per trajectory.
    if np.isfinite(np.concatenate([[0.0], *(matrix.ravel() for matrix in similarities)])).all():
        return
    for index, matrix in enumerate(similarities):
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if len(bad):
            raise ValueError(
                f"similarity matrix {index}, row {bad[0]} is not finite: {matrix[bad[0]].tolist()}"
            )


def check_unmatched_penalty(penalty: float) -> None:
    """Raise ValueError for a negative penalty, which would pay for calls that match nothing."""
    if penalty < 0:
        raise ValueError(f"unmatched_penalty={penalty} must not be negative")


# ---------------------------------------------------------------- one-to-one matchings


class Matching:
    """A one-to-one matching: a call earns the similarity of its pair.

    A pair of similarity 0 counts as unmatched. Subclasses say which pairs there are.

    Args:
        unmatched_penalty: taken from every call without a pair; lambda of the paper, whose
            experiments use 0.
    """

    threshold = 0.0  # similarity that a pair must exceed

    def __init__(self, unmatched_penalty: float = 0.0) -> None:
        check_unmatched_penalty(unmatched_penalty)
        self.unmatched_penalty = unmatched_penalty

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan of zeros and ones per matrix; ValueError where a similarity is not finite."""
        check_similarities(similarities)
        return [self._assign(similarity) for similarity in similarities]

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """Rows and columns of the matched pairs."""
        raise NotImplementedError

    def _assign(self, similarity: Float[np.ndarray, "m n"]) -> Assignment:
        rows, columns = self.pairs(similarity)
        found = similarity[rows, columns]
        matched = found > self.threshold
        plan = np.zeros(similarity.shape)
        plan[rows, columns] = matched
        rewards = np.full(len(similarity), -self.unmatched_penalty)
        rewards[rows] = np.where(matched, found, -self.unmatched_penalty)
        return Assignment(plan, rewards)


class HardAssignment(Matching):
    """Maximum-weight matching of calls (paper eq. 5, Kuhn-Munkres).

    Among matchings of equal weight, earlier calls are matched first, so that the repetition of a
    call is the one that goes unpaid. Options: `Matching`.
    """

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """The pairs of the largest summed similarity."""
        return linear_sum_assignment(similarity * _handicaps(len(similarity)), maximize=True)


@cache
def _handicaps(calls: int) -> Float[np.ndarray, "m 1"]:
    return 1.0 - _TIE_BREAK * np.arange(calls)[:, None]


class GreedyAssignment(Matching):
    """Pairs taken in descending similarity, each call and gold call once (release).

    Not a maximum-weight matching: on ``[[1, .9], [.9, 0]]`` it earns 1.0 where `HardAssignment`
    earns 1.8. Pairs of equal similarity are taken in order of rows, then columns. Options:
    `Matching`.
    """

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """The pairs, in the order in which they were taken."""
        rows, columns = np.nonzero(similarity > 0)
        order = np.argsort(-similarity[rows, columns], kind="stable")
        taken: dict[int, int] = {}
        used: set[int] = set()
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if row not in taken and column not in used:
                taken[row] = column
                used.add(column)
        return np.array(list(taken), dtype=int), np.array(list(taken.values()), dtype=int)


class OrderedAssignment(Matching):
    """Best monotone matching: later calls are matched to later gold calls (this project).

    Maximises the summed similarity over one-to-one pairs that do not cross, as in sequence
    alignment without gap costs: ``F[i, j] = max(F[i-1, j], F[i, j-1], F[i-1, j-1] + S[i, j])``.
    Right calls in a wrong order earn less than with `HardAssignment`; calls of one turn count in
    the order in which they were written. Among alignments of equal weight, earlier calls are
    matched first. Options: `Matching`.
    """

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """The pairs, from the last to the first."""
        calls, golds = similarity.shape
        # best[i][j]: weight of the best alignment of the first i calls with the first j gold calls
        best = np.zeros((calls + 1, golds + 1))
        for call in range(calls):
            paired = best[call, :-1] + similarity[call]
            best[call + 1, 1:] = np.maximum.accumulate(np.maximum(best[call, 1:], paired))
        rows, columns = [], []
        call, gold = calls, golds
        while call and gold:
            if best[call, gold] == best[call - 1, gold]:
                call -= 1
            elif best[call, gold] == best[call, gold - 1]:
                gold -= 1
            else:
                call, gold = call - 1, gold - 1
                rows.append(call)
                columns.append(gold)
        return np.array(rows, dtype=int), np.array(columns, dtype=int)


# ---------------------------------------------------------------- transport


def transported(
    similarities: Sequence[Float[np.ndarray, "_ _"]],
    plans_of: Callable[[Float[np.ndarray, "B m n"]], Float[np.ndarray, "B m n"]],
    conditional: bool,
    unmatched_penalty: float,
    threshold: float = 0.0,
) -> list[Assignment]:
    """Transport plans, made for all matrices of a shape at once, and their rewards.

    A call earns ``sum_j Z_pj S_pj``, times m if `conditional`; without any similarity above
    `threshold` it earns ``-unmatched_penalty`` times its mass instead, where there is a penalty.
    Raises ValueError where a similarity is not finite.
    """
    check_similarities(similarities)
    shapes: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(similarities):
        shapes[matrix.shape].append(index)
    assignments: dict[int, Assignment] = {}
    for (m, n), members in shapes.items():
        # Concatenating thousands of small arrays is much faster than stacking them.
        stack = np.concatenate([similarities[index] for index in members])
        stack = stack.reshape(len(members), m, n)
        plans = plans_of(stack) if stack.size else np.zeros(stack.shape)
        rewards = (plans * stack).sum(axis=2)
        if unmatched_penalty and m:
            rewards[~(stack > threshold).any(axis=2)] = -unmatched_penalty / m
        if conditional:
            rewards *= m
        assignments.update(zip(members, map(Assignment, plans, rewards), strict=True))
    return [assignments[index] for index in range(len(similarities))]


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
        tolerance: float = _TOLERANCE,
        max_iterations: int = _ITERATIONS,
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
        return transported(similarities, self._plans, self.conditional, self.unmatched_penalty)

    def _plans(self, similarity: Float[np.ndarray, "B m n"]) -> Float[np.ndarray, "B m n"]:
        _, m, n = similarity.shape
        scores = similarity  # the negative cost
        if self.cost == "exponential":
            scores = np.exp(similarity)
        elif self.cost == "normalized_inversion":
            low = similarity.min(axis=(1, 2), keepdims=True)
            high = similarity.max(axis=(1, 2), keepdims=True)
            scores = (similarity - low) / (high - low + _SPREAD_EPSILON)
        rows, columns = np.full(m, 1 / m), np.full(n, 1 / n)
        limits = self.reg, self.tolerance, self.max_iterations, self.finish
        return transport(scores, rows, columns, *limits)


class PartialAssignment(Matching):
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
        super().__init__(unmatched_penalty)
        check_option("kind", kind, ("matching", "transport"))
        check_option("scale", scale, ("mass", "conditional"))
        check_solver(reg, _TOLERANCE, _ITERATIONS)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1)")
        self.threshold = threshold
        self.transport = kind == "transport"
        self.conditional = scale == "conditional"
        self.reg = reg

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan [m, n] per matrix, without its dustbins; ValueError where one is not finite."""
        if not self.transport:
            return super().__call__(similarities)
        rule = self.conditional, self.unmatched_penalty, self.threshold
        return transported(similarities, self._plans, *rule)

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """The pairs of the largest gain over the threshold."""
        gains = np.maximum(similarity - self.threshold, 0.0) * _handicaps(len(similarity))
        return linear_sum_assignment(gains, maximize=True)

    def _plans(self, similarity: Float[np.ndarray, "B m n"]) -> Float[np.ndarray, "B m n"]:
        _, m, n = similarity.shape
        dustbins = (0, 0), (0, 1), (0, 1)
        scores = np.pad(similarity, dustbins, constant_values=self.threshold)
        rows, columns = np.append(np.full(m, 1 / m), 1.0), np.append(np.full(n, 1 / n), 1.0)
        plans = transport(scores, rows, columns, self.reg, _TOLERANCE, _ITERATIONS)
        return plans[:, :-1, :-1]
