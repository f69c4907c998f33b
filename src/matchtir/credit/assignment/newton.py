"""Newton's method on the dual of entropic transport, for problems that scaling left over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

_STEPS = 60
_STEP_LENGTHS = (1.0, 0.5, 0.25, 0.0625, 0.015625)
_LONGEST_STEP = 30.0  # of a log-scaling: flat directions of the dual must not run away
_RIDGE = 1e-14  # couplings below this carry no mass that any tolerance would see
_COOLING = 4.0  # ratio of two temperatures on the way down to a small regulariser
_WARMEST_RANGE = 20.0  # the first temperature leaves scores within e^-20 of each other
_WARM_TOLERANCE = 1e-4


@cache
def uniform_masses(count: int) -> Float[np.ndarray, " count"]:
    """1/count each; shared between callers, so read-only."""
    masses = np.full(count, 1.0 / count)
    masses.flags.writeable = False
    return masses


@dataclass(frozen=True, slots=True)
class Problem:
    """One transport problem; masses are positive, those of rows and of columns sum to the same."""

    scores: Float[np.ndarray, "m n"]
    rows: Float[np.ndarray, " m"]
    columns: Float[np.ndarray, " n"]

    @staticmethod
    def uniform(scores: Float[np.ndarray, "m n"]) -> Problem:
        """Masses 1/m and 1/n."""
        m, n = scores.shape
        return Problem(scores, uniform_masses(m), uniform_masses(n))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A problem, its number, and logarithms of column scalings to start from, if there are any."""

    index: int
    problem: Problem
    start: Float[np.ndarray, " n"] | None


@dataclass(frozen=True, slots=True)
class _Dual:
    """The semi-dual of B problems at some potentials."""

    log_plan: Float[np.ndarray, "B m n"]  # with exact rows
    value: Float[np.ndarray, " B"]
    error: Float[np.ndarray, "B n"]  # its gradient: column masses less column sums

    @property
    def size(self) -> Float[np.ndarray, " B"]:
        return np.linalg.norm(self.error, axis=1)


def solve_unfinished(
    unfinished: Sequence[Unfinished], reg: float, tolerance: float
) -> Iterator[tuple[int, Float[np.ndarray, "_ _"]]]:
    """Number and plan of every problem, solved in batches of equal shape."""
    batches: dict[tuple[int, int, bool], list[Unfinished]] = {}
    for item in unfinished:
        m, n = item.problem.scores.shape
        batches.setdefault((m, n, item.start is None), []).append(item)
    for batch in batches.values():
        # Concatenating thousands of small arrays is much faster than stacking them.
        shape = (len(batch), *batch[0].problem.scores.shape)
        scores = np.concatenate([item.problem.scores for item in batch]).reshape(shape)
        scores -= scores.max(axis=(1, 2), keepdims=True)
        rows = np.concatenate([item.problem.rows for item in batch]).reshape(shape[:2])
        columns = np.concatenate([item.problem.columns for item in batch]).reshape(shape[::2])
        starts = [item.start for item in batch if item.start is not None]
        if starts:
            potential = np.concatenate(starts).reshape(columns.shape)
            log_plan, _ = newton(scores / reg, rows, columns, potential, tolerance)
        else:
            log_plan = _cooled(scores, rows, columns, reg, tolerance)
        for item, plan in zip(batch, _rounded(np.exp(log_plan), rows, columns), strict=True):
            yield item.index, plan


def _cooled(
    scores: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, "B m"],
    columns: Float[np.ndarray, "B n"],
    reg: float,
    tolerance: float,
) -> Float[np.ndarray, "B m n"]:
    """Log-plans from no start at all: a warm problem first, then ever cooler ones down to reg."""
    temperature = max(reg, float(-scores.min()) / _WARMEST_RANGE)
    potential = np.zeros_like(columns)
    while temperature > reg:
        warm = max(tolerance, _WARM_TOLERANCE)
        _, potential = newton(scores / temperature, rows, columns, potential, warm)
        cooler = max(reg, temperature / _COOLING)
        potential *= temperature / cooler
        temperature = cooler
    return newton(scores / reg, rows, columns, potential, tolerance)[0]


def newton(
    log_kernel: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, "B m"],
    columns: Float[np.ndarray, "B n"],
    potential: Float[np.ndarray, "B n"],
    tolerance: float,
) -> tuple[Float[np.ndarray, "B m n"], Float[np.ndarray, "B n"]]:
    """Log-plans with exact rows, and column potentials, from a start that need not be close.

    Maximises the concave semi-dual ``D(g) = sum_j b_j g_j - sum_i a_i logsumexp_j(L_ij + g_j)``
    by turns of a Sinkhorn step (improves D from anywhere) and a Newton step of the first length
    that improves D, too.
    """
    potential = potential.copy()
    active = np.arange(len(log_kernel))
    for _ in range(_STEPS):
        dual = _dual(log_kernel[active], rows[active], columns[active], potential[active])
        going = dual.size >= tolerance
        if not going.any():
            break
        active = active[going]
        kernel, a, b = log_kernel[active], rows[active], columns[active]
        g = potential[active] + np.log(b) - _logsumexp(dual.log_plan[going], axis=1)
        dual = _dual(kernel, a, b, g)
        step = _newton_step(np.exp(dual.log_plan), a, dual.error)
        waiting = np.ones(len(active), dtype=bool)
        for length in _STEP_LENGTHS:
            candidate = g + length * step
            reached = _dual(kernel, a, b, candidate)
            # Close to the optimum D no longer shows progress in floating point; the error does.
            flat = reached.value > dual.value - 1e-13 * (1.0 + np.abs(dual.value))
            better = (reached.value > dual.value) | (flat & (reached.size < dual.size))
            taken = waiting & better
            g[taken] = candidate[taken]
            waiting &= ~better
            if not waiting.any():
                break
        potential[active] = g
    return _dual(log_kernel, rows, columns, potential).log_plan, potential


def _dual(
    log_kernel: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, "B m"],
    columns: Float[np.ndarray, "B n"],
    potential: Float[np.ndarray, "B n"],
) -> _Dual:
    shifted = log_kernel + potential[:, None, :]
    normaliser = _logsumexp(shifted, axis=2)
    log_plan = shifted + (np.log(rows) - normaliser)[:, :, None]
    value = (columns * potential).sum(axis=1) - (rows * normaliser).sum(axis=1)
    return _Dual(log_plan, value, columns - np.exp(log_plan).sum(axis=1))


def _logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    top = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - top).sum(axis=axis)) + top.squeeze(axis)


def _newton_step(
    plan: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, "B m"],
    error: Float[np.ndarray, "B n"],
) -> Float[np.ndarray, "B n"]:
    """Solve the semi-dual's Hessian, a graph Laplacian over columns, for the error.

    The last potential is held at 0, since a constant added to all changes nothing. The diagonal
    is summed from the off-diagonal couplings, which keeps weak ones exact.
    """
    laplacian = -np.matmul((plan / rows[:, :, None]).transpose(0, 2, 1), plan)
    diagonal = np.arange(plan.shape[2])
    laplacian[:, diagonal, diagonal] = 0.0
    laplacian[:, diagonal, diagonal] = _RIDGE - laplacian.sum(axis=2)
    step = np.zeros_like(error)
    step[:, :-1] = np.linalg.solve(laplacian[:, :-1, :-1], error[:, :-1, None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step * (_LONGEST_STEP / np.maximum(longest, _LONGEST_STEP))


def _rounded(
    plan: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, "B m"],
    columns: Float[np.ndarray, "B n"],
) -> Float[np.ndarray, "B m n"]:
    """The plans moved onto their marginals (Altschuler, Weed and Rigollet 2017, algorithm 2).

    Moves at most twice the remaining marginal error, and leaves none.
    """
    plan = plan * np.minimum(1.0, rows / plan.sum(axis=2).clip(_RIDGE))[:, :, None]
    plan = plan * np.minimum(1.0, columns / plan.sum(axis=1).clip(_RIDGE))[:, None, :]
    row_error = (rows - plan.sum(axis=2)).clip(0.0)
    column_error = (columns - plan.sum(axis=1)).clip(0.0)
    missing = row_error.sum(axis=1).clip(_RIDGE)[:, None, None]
    return plan + row_error[:, :, None] * column_error[:, None, :] / missing
