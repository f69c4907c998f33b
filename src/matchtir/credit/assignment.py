"""Assignments of predicted calls to gold calls: hard, soft and their relatives (paper eq. 5-7).

Every assignment is called with the similarity matrices of many trajectories, each [m, n] (either
may be 0), and returns one `Assignment` per matrix, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from matchtir.credit.transport import Masses, transport
from matchtir.utils.options import check_at_least, check_option

# Relative handicap of a later call: far below any difference of two similarities, far above
# rounding. Among equally good matchings it pays the call that came first.
_TIE_BREAK = 1e-12
_SPREAD_EPSILON = 1e-12

Pairs = tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]
Stack = Float[np.ndarray, "B m n"]  # matrices of one shape


@dataclass(frozen=True, slots=True)
class Assignment:
    """The plan of one trajectory, and what it pays each predicted call."""

    plan: Float[np.ndarray, "m n"]
    rewards: Float[np.ndarray, " m"]


@runtime_checkable
class Assigner(Protocol):
    """Assigns the calls of many trajectories at once."""

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]: ...


class ByShape:
    """Assigns all matrices of one shape at once; subclasses say how."""

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan per matrix, in order; ValueError where a similarity is not finite."""
        shapes: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, matrix in enumerate(similarities):
            shapes[matrix.shape].append(index)
        assignments: dict[int, Assignment] = {}
        for (m, n), members in shapes.items():
            # Concatenating thousands of small arrays is much faster than stacking them.
            rows = np.concatenate([similarities[index] for index in members])
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if len(bad):
                raise ValueError(
                    f"similarity matrix {members[bad[0] // m]}, row {bad[0] % m} is not finite: "
                    f"{rows[bad[0]].tolist()}"
                )
            plans, rewards = self._solve(rows.reshape(len(members), m, n))
            assignments.update(zip(members, map(Assignment, plans, rewards), strict=True))
        return [assignments[index] for index in range(len(similarities))]

    def _solve(self, stack: Stack) -> tuple[Stack, Float[np.ndarray, "B m"]]:
        raise NotImplementedError


# ---------------------------------------------------------------- one-to-one matchings


@dataclass(frozen=True)
class Matching(ByShape):
    """A one-to-one matching: a call earns the similarity of its pair.

    Subclasses say which pairs there are.

    Args:
        unmatched_penalty: taken from every call without a pair; lambda of the paper, whose
            experiments use 0.
        threshold: in [0, 1); a pair whose similarity is not above it counts as none.
    """

    unmatched_penalty: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        # A negative one would pay for calls that match nothing.
        check_at_least(0, unmatched_penalty=self.unmatched_penalty)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0, 1)")

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """Rows and columns of the matched pairs."""
        raise NotImplementedError

    def _solve(self, stack: Stack) -> tuple[Stack, Float[np.ndarray, "B m"]]:
        plans = np.zeros(stack.shape)
        for plan, similarity in zip(plans, stack, strict=True):
            plan[self.pairs(similarity)] = 1.0
        plans *= stack > self.threshold
        earned = (plans * stack).sum(axis=2)
        return plans, np.where(plans.any(axis=2), earned, -self.unmatched_penalty)


class HardAssignment(Matching):
    """Matching of the largest summed similarity (paper eq. 5, Kuhn-Munkres).

    With a threshold, of the largest sum of what exceeds it: a pair below is worth less than none.
    Among matchings of equal weight, earlier calls are matched first, so that the repetition of a
    call is the one that goes unpaid. Options: `Matching`.
    """

    def pairs(self, similarity: Float[np.ndarray, "m n"]) -> Pairs:
        """The best pairs."""
        gains = similarity
        if self.threshold:
            gains = np.maximum(similarity - self.threshold, 0.0)
        return linear_sum_assignment(gains * _handicaps(len(similarity)), maximize=True)


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
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if row not in taken and column not in taken.values():
                taken[row] = column
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
        call, gold = similarity.shape
        # best[i][j]: weight of the best alignment of the first i calls with the first j gold calls
        best = np.zeros((call + 1, gold + 1))
        for row, here in enumerate(similarity):
            better = np.maximum(best[row, 1:], best[row, :-1] + here)
            best[row + 1, 1:] = np.maximum.accumulate(better)
        rows, columns = [], []
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


@dataclass(frozen=True)
class SoftAssignment(ByShape):
    """Entropic optimal transport from calls to gold calls (paper eq. 6-7).

    The plan Z minimises ``<Z, C> - reg * H(Z)`` with every call sending 1/m and every gold call
    receiving 1/n; a call earns ``sum_j Z_pj S_pj``, 0 where there are no gold calls. All mass must
    arrive, so that a wrong call takes some from the right ones (see `PartialAssignment`).

    Args:
        reg: entropic regulariser, positive; 0.1 in the paper.
        cost: ``linear`` (C = -S), ``normalized_inversion`` (C = 1 - (S - min) / (max - min)) or
            ``exponential`` (C = -exp(S)).
        scale: ``mass`` pays the transported mass as it is; ``conditional`` multiplies by m, so
            that a perfect call scores 1 however many calls there are.
        unmatched_penalty: a call that is like no gold call earns ``-unmatched_penalty`` times
            its mass (1/m, or 1 with ``conditional``).
        max_iterations: Sinkhorn stops there, converged or not (release: 1,000); None: every plan
            converges.
        dustbin: score of one more row and column of mass 1, enough for everything, which earns
            nothing, so that mass need not go to anything worse; None: there is none.
    """

    reg: float = 0.1
    cost: str = "linear"
    scale: str = "mass"
    unmatched_penalty: float = 0.0
    max_iterations: int | None = None
    dustbin: float | None = None

    def __post_init__(self) -> None:
        check_option("cost", self.cost, ("linear", "normalized_inversion", "exponential"))
        check_option("scale", self.scale, ("mass", "conditional"))
        check_at_least(0, unmatched_penalty=self.unmatched_penalty)
        if self.reg <= 0:
            raise ValueError(f"reg={self.reg} must be positive")
        if self.max_iterations is not None:
            check_at_least(1, max_iterations=self.max_iterations)

    def _solve(self, stack: Stack) -> tuple[Stack, Float[np.ndarray, "B m"]]:
        calls = stack.shape[1]
        plans = self._plans(stack) if stack.size else np.zeros(stack.shape)
        rewards = (plans * stack).sum(axis=2)
        if self.unmatched_penalty and calls:
            rewards[~(stack > (self.dustbin or 0)).any(axis=2)] = -self.unmatched_penalty / calls
        return plans, rewards * calls if self.scale == "conditional" else rewards

    def _plans(self, stack: Stack) -> Stack:
        scores = stack  # the negative cost
        if self.cost == "exponential":
            scores = np.exp(stack)
        elif self.cost == "normalized_inversion":
            low, high = (f(stack, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
            scores = (stack - low) / (high - low + _SPREAD_EPSILON)
        masses = Masses(*(np.full(size, 1 / size) for size in stack.shape[1:]))
        if self.dustbin is None:
            return transport(scores, masses, self.reg, self.max_iterations)
        scores = np.pad(scores, ((0, 0), (0, 1), (0, 1)), constant_values=self.dustbin)
        masses = Masses(*(np.append(sums, 1.0) for sums in masses))
        return transport(scores, masses, self.reg, self.max_iterations)[:, :-1, :-1]


@dataclass(frozen=True)
class PartialAssignment:
    """Matching or transport with a dustbin that is worth `threshold` per partner (this project).

    The paper's assignments pay a call for any similarity at all: the right tool with a wrong value
    still earns 2/3. Here a pair below the threshold is worth less than no pair.

    Args:
        threshold: similarity, in [0, 1), that a pair must exceed.
        kind: ``matching`` is `HardAssignment`, ``transport`` is `SoftAssignment`, with a threshold.
        scale, reg: of transport, as in `SoftAssignment`.
        unmatched_penalty: taken from a call without a pair (matching), or without any similarity
            above the threshold in proportion to its mass (transport).
    """

    threshold: float = 0.7
    kind: str = "matching"
    scale: str = "mass"
    reg: float = 0.1
    unmatched_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_option("kind", self.kind, ("matching", "transport"))
        self._solver()  # which checks the other options

    def __call__(self, similarities: Sequence[Float[np.ndarray, "_ _"]]) -> list[Assignment]:
        """One plan [m, n] per matrix, without its dustbins; ValueError where one is not finite."""
        return self._solver()(similarities)

    def _solver(self) -> Assigner:
        penalty = self.unmatched_penalty
        if self.kind == "matching":
            return HardAssignment(penalty, self.threshold)
        return SoftAssignment(self.reg, "linear", self.scale, penalty, dustbin=self.threshold)
