"""Entropic optimal transport of many small problems of one shape at once.

The plan of scores [m, n] maximises ``<Z, scores> / reg + H(Z)`` among the plans with row sums
`rows` and column sums `columns`. Sinkhorn's scaling solves most problems; Newton's method on the
dual solves the rest.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

_CHECK_EVERY = 10  # iterations between two looks at the marginal error, as in the release
_LARGEST_EXPONENT = 300.0  # kernels down to e^-300 leave room for products of two scalings
_STEPS = 60
_STEP_LENGTHS = (1.0, 0.5, 0.25, 0.0625, 0.015625)
_LONGEST_STEP = 30.0  # of a log-scaling: flat directions of the dual must not run away
_RIDGE = 1e-14  # couplings below this carry no mass that any tolerance would see
_COOLING = 4.0  # ratio of two temperatures on the way down to a small regulariser
_WARMEST_RANGE = 20.0  # the first temperature leaves scores within e^-20 of each other
_WARM_TOLERANCE = 1e-4


def check_solver(reg: float, tolerance: float, max_iterations: int) -> None:
    """Raise ValueError for settings that `transport` cannot use."""
    if reg <= 0 or tolerance <= 0:
        raise ValueError(f"reg={reg} and tolerance={tolerance} must be positive")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations} must be at least 1")


def transport(
    scores: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
    reg: float,
    tolerance: float,
    max_iterations: int,
    finish: bool = True,
) -> Float[np.ndarray, "B m n"]:
    """Plans of B problems, none of whose sides is empty; masses are positive, of equal sums.

    Scales until the Euclidean norm of the column errors is below `tolerance` (rows are exact), at
    most `max_iterations` times. `finish` takes what has not converged by then, or lies outside the
    range of floating-point kernels, to its marginals by Newton's method; without it, such a range
    raises ValueError.
    """
    span = np.ptp(scores, axis=(1, 2))
    wide = span > _LARGEST_EXPONENT * reg
    if wide.any() and not finish:
        raise ValueError(
            f"reg={reg} is too small for scores {span.max():.3g} apart without finishing"
        )
    plans = np.empty_like(scores)
    unsolved = wide.copy()
    plans[~wide], unsolved[~wide] = _scaled(
        scores[~wide], rows, columns, reg, tolerance, max_iterations
    )
    if finish and unsolved.any():
        plans[unsolved] = _newton(scores[unsolved], rows, columns, reg, tolerance)
    return plans


def _scaled(
    scores: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
    reg: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Float[np.ndarray, "B m n"], Bool[np.ndarray, " B"]]:
    """Plans by Sinkhorn's scaling, and which of them have not converged."""
    top = scores.max(axis=(1, 2), keepdims=True)
    # With the problems as the last axis, every operation runs over all of them at once.
    kernel = np.ascontiguousarray(np.exp((scores - top) / reg).transpose(1, 2, 0))
    a, b = rows[:, None], columns[:, None]
    u = np.repeat(a, len(scores), axis=1)
    sums = np.einsum("mnb,mb->nb", kernel, u)
    for iteration in range(max_iterations):
        v = b / sums
        u = a / np.einsum("mnb,nb->mb", kernel, v)
        sums = np.einsum("mnb,mb->nb", kernel, u)
        if iteration % _CHECK_EVERY == 0 or iteration == max_iterations - 1:
            unsolved = np.linalg.norm(v * sums - b, axis=0) >= tolerance
            if not unsolved.any():
                break
    return (u[:, None] * kernel * v[None]).transpose(2, 0, 1), unsolved


def _newton(
    scores: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
    reg: float,
    tolerance: float,
) -> Float[np.ndarray, "B m n"]:
    """Plans from the dual: first at a temperature that is easy, then at cooler ones down to reg."""
    scores = scores - scores.max(axis=(1, 2), keepdims=True)
    warmth = max(-scores.min() / (_WARMEST_RANGE * reg), 1.0)
    potential = np.zeros((len(scores), len(columns)))
    for cooling in range(math.ceil(math.log(warmth, _COOLING)), -1, -1):
        temperature = reg * _COOLING**cooling
        close = tolerance if cooling == 0 else max(tolerance, _WARM_TOLERANCE)
        start = potential / temperature
        potential = temperature * _ascend(scores / temperature, rows, columns, start, close)
    log_plan, _, _ = _dual(scores / reg, rows, columns, potential / reg)
    return _rounded(np.exp(log_plan), rows, columns)


def _ascend(
    log_kernel: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
    potential: Float[np.ndarray, "B n"],
    tolerance: float,
) -> Float[np.ndarray, "B n"]:
    """Column potentials that solve the dual.

    Maximises the concave semi-dual ``D(g) = sum_j b_j g_j - sum_i a_i logsumexp_j(L_ij + g_j)``
    by turns of a Sinkhorn step (improves D from anywhere) and a Newton step of the first length
    that improves D, too.
    """
    potential = potential.copy()
    active = np.arange(len(log_kernel))
    for _ in range(_STEPS):
        log_plan, _, error = _dual(log_kernel[active], rows, columns, potential[active])
        going = np.linalg.norm(error, axis=1) >= tolerance
        if not going.any():
            break
        active = active[going]
        kernel = log_kernel[active]
        g = potential[active] + np.log(columns) - logsumexp(log_plan[going], axis=1)
        log_plan, value, error = _dual(kernel, rows, columns, g)
        step = _newton_step(np.exp(log_plan), rows, error)
        size = np.linalg.norm(error, axis=1)
        waiting = np.ones(len(active), dtype=bool)
        for length in _STEP_LENGTHS:
            candidate = g + length * step
            _, reached, left = _dual(kernel, rows, columns, candidate)
            # Close to the optimum D no longer shows progress in floating point; the error does.
            flat = reached > value - 1e-13 * (1.0 + np.abs(value))
            better = (reached > value) | (flat & (np.linalg.norm(left, axis=1) < size))
            taken = waiting & better
            g[taken] = candidate[taken]
            waiting &= ~better
            if not waiting.any():
                break
        potential[active] = g
    return potential


def _dual(
    log_kernel: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
    potential: Float[np.ndarray, "B n"],
) -> tuple[Float[np.ndarray, "B m n"], Float[np.ndarray, " B"], Float[np.ndarray, "B n"]]:
    """Logarithms of the plan with exact rows, value of the semi-dual, its gradient (the error)."""
    shifted = log_kernel + potential[:, None, :]
    normaliser = logsumexp(shifted, axis=2)
    log_plan = shifted + (np.log(rows) - normaliser)[:, :, None]
    return log_plan, potential @ columns - normaliser @ rows, columns - np.exp(log_plan).sum(axis=1)


def _newton_step(
    plan: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    error: Float[np.ndarray, "B n"],
) -> Float[np.ndarray, "B n"]:
    """Solve the semi-dual's Hessian, a graph Laplacian over columns, for the error.

    The last potential is held at 0, since a constant added to all changes nothing. The diagonal
    is summed from the off-diagonal couplings, which keeps weak ones exact.
    """
    laplacian = -np.matmul((plan / rows[:, None]).transpose(0, 2, 1), plan)
    diagonal = np.arange(plan.shape[2])
    laplacian[:, diagonal, diagonal] = 0.0
    laplacian[:, diagonal, diagonal] = _RIDGE - laplacian.sum(axis=2)
    step = np.zeros_like(error)
    step[:, :-1] = np.linalg.solve(laplacian[:, :-1, :-1], error[:, :-1, None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step * (_LONGEST_STEP / np.maximum(longest, _LONGEST_STEP))


def _rounded(
    plan: Float[np.ndarray, "B m n"],
    rows: Float[np.ndarray, " m"],
    columns: Float[np.ndarray, " n"],
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
