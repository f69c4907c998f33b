"""Entropic optimal transport of many small problems at once.

A problem is a matrix of scores [m, n] with row and column masses; its plan maximises
``<Z, scores> / reg + H(Z)`` over the plans with these marginals. Sinkhorn's matrix scaling runs
on all problems side by side; what it does not solve is left to Newton's method on the dual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from matchtir.credit.assignment.newton import Problem, Unfinished, solve_unfinished

_CHECK_EVERY = 5  # iterations between two looks at the marginal error
RELEASE_CHECKS_EVERY = 10
_LARGEST_EXPONENT = 300.0  # kernels down to e^-300 leave room for products of two scalings
_COMPACT_BELOW = 0.75  # share of waiting problems below which the solved ones are dropped


@dataclass(frozen=True, slots=True)
class Batch:
    """Problems of similar size, padded to one size, side by side in the last axis."""

    indices: list[int]
    scores: Float[np.ndarray, "M N B"]  # -inf in the padding
    rows: Float[np.ndarray, "M B"]  # 0 in the padding
    columns: Float[np.ndarray, "N B"]


def check_solver(reg: float, tolerance: float, max_iterations: int) -> None:
    """Raise ValueError for settings that `sinkhorn` cannot use."""
    if reg <= 0 or tolerance <= 0:
        raise ValueError(f"reg={reg} and tolerance={tolerance} must be positive")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations} must be at least 1")


def sinkhorn(
    problems: Sequence[Problem], reg: float, tolerance: float, max_iterations: int, finish: bool
) -> list[Float[np.ndarray, "_ _"]]:
    """Plans of all problems; every one must have at least one row and one column.

    Iterates until the Euclidean norm of the column error is below `tolerance` (rows are exact),
    at most `max_iterations` times. `finish` takes what has not converged by then, or lies outside
    the range of floating-point kernels, to the same tolerance by Newton's method; without it,
    such a range raises ValueError.
    """
    plans: list[Float[np.ndarray, "_ _"]] = [np.empty((0, 0))] * len(problems)
    unfinished: list[Unfinished] = []
    check_every = _CHECK_EVERY if finish else RELEASE_CHECKS_EVERY
    for batch in _batches(problems):
        top = batch.scores.max(axis=(0, 1))
        span = top - np.where(np.isfinite(batch.scores), batch.scores, top).min(axis=(0, 1))
        wide = span > _LARGEST_EXPONENT * reg
        if wide.any() and not finish:
            raise ValueError(
                f"reg={reg} is too small for scores {span.max():.3g} apart without finishing"
            )
        kernel = np.exp((batch.scores - top) / reg)
        u, v, converged = _scale(kernel, batch, ~wide, tolerance, max_iterations, check_every)
        stacked = np.ascontiguousarray((u[:, None] * kernel * v[None]).transpose(2, 0, 1))
        for position, index in enumerate(batch.indices):
            m, n = problems[index].scores.shape
            plans[index] = stacked[position, :m, :n]
        for position in np.flatnonzero(~converged).tolist() if finish else ():
            problem = problems[batch.indices[position]]
            columns = len(problem.columns)
            start = None if wide[position] else np.log(v[:columns, position])
            unfinished.append(Unfinished(batch.indices[position], problem, start))
    for index, plan in solve_unfinished(unfinished, reg, tolerance):
        plans[index] = plan
    return plans


def _batches(problems: Sequence[Problem]) -> Iterator[Batch]:
    """Batches of problems whose sizes round up to the same powers of two."""
    bins: dict[tuple[int, int], list[int]] = {}
    for index, problem in enumerate(problems):
        m, n = problem.scores.shape
        bins.setdefault(((m - 1).bit_length(), (n - 1).bit_length()), []).append(index)
    for indices in bins.values():
        chosen = [problems[index] for index in indices]
        shapes = np.array([problem.scores.shape for problem in chosen])
        in_row = np.arange(shapes[:, 0].max()) < shapes[:, :1]
        in_column = np.arange(shapes[:, 1].max()) < shapes[:, 1:]
        scores = np.full((*in_row.shape, in_column.shape[1]), -np.inf)
        inside = in_row[:, :, None] & in_column[:, None, :]
        scores[inside] = np.concatenate([problem.scores.ravel() for problem in chosen])
        rows, columns = np.zeros(in_row.shape), np.zeros(in_column.shape)
        rows[in_row] = np.concatenate([problem.rows for problem in chosen])
        columns[in_column] = np.concatenate([problem.columns for problem in chosen])
        yield Batch(indices, np.ascontiguousarray(scores.transpose(1, 2, 0)), rows.T, columns.T)


def _scale(
    kernel: Float[np.ndarray, "M N B"],
    batch: Batch,
    waiting: Bool[np.ndarray, " B"],
    tolerance: float,
    max_iterations: int,
    check_every: int,
) -> tuple[Float[np.ndarray, "M B"], Float[np.ndarray, "N B"], Bool[np.ndarray, " B"]]:
    """Scalings u, v of the `waiting` kernels, each as it was when its problem converged."""
    rows, columns = batch.rows, batch.columns
    final_u, final_v = rows.copy(), columns.copy()
    converged = np.zeros_like(waiting)
    active = np.arange(len(waiting))
    # A padded row or column has mass 0 over a sum of 0: its denominator becomes 1.
    row_pad, column_pad = (rows == 0).astype(float), (columns == 0).astype(float)
    u, v = rows, columns
    sums = np.einsum("mnb,mb->nb", kernel, u)
    for iteration in range(max_iterations):
        if waiting.mean() < _COMPACT_BELOW:
            active, kernel, sums = active[waiting], kernel[:, :, waiting], sums[:, waiting]
            rows, columns = rows[:, waiting], columns[:, waiting]
            row_pad, column_pad = row_pad[:, waiting], column_pad[:, waiting]
            waiting = waiting[waiting]
            if not len(active):
                break
        with np.errstate(all="ignore"):  # kernels out of range are iterated along, never kept
            v = columns / (sums + column_pad)
            u = rows / (np.einsum("mnb,nb->mb", kernel, v) + row_pad)
            sums = np.einsum("mnb,mb->nb", kernel, u)
        if iteration % check_every == 0:
            error = v * sums - columns
            done = waiting & (np.linalg.norm(error, axis=0) < tolerance)
            final_u[:, active[done]], final_v[:, active[done]] = u[:, done], v[:, done]
            converged[active[done]] = True
            waiting = waiting & ~done
    final_u[:, active[waiting]], final_v[:, active[waiting]] = u[:, waiting], v[:, waiting]
    return final_u, final_v, converged
