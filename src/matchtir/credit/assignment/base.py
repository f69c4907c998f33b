"""What every assignment takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment.flat import Flat


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
    if not similarities:
        return
    # One pass over all entries: the usual case must not cost a call per trajectory.
    if np.isfinite(np.concatenate([matrix.ravel() for matrix in similarities])).all():
        return
    for index, matrix in enumerate(similarities):
        bad = ~np.isfinite(matrix)
        if bad.any():
            row = int(np.argwhere(bad)[0, 0])
            raise ValueError(
                f"similarity matrix {index}, row {row} is not finite: {matrix[row].tolist()}"
            )


def check_unmatched_penalty(penalty: float) -> None:
    """Raise ValueError for a negative penalty, which would pay for calls that match nothing."""
    if penalty < 0:
        raise ValueError(f"unmatched_penalty={penalty} must not be negative")


def transported(
    similarities: Sequence[Float[np.ndarray, "_ _"]],
    plans: Sequence[Float[np.ndarray, "_ _"]],
    conditional: bool,
    unmatched_penalty: float,
    threshold: float = 0.0,
) -> list[Assignment]:
    """Transport plans with their rewards: ``sum_j Z_pj S_pj``, times m if `conditional`.

    A call without any similarity above `threshold` earns ``-unmatched_penalty`` times its mass
    instead, where there is a penalty.
    """
    if not similarities:
        return []
    flat = Flat.of(similarities)
    rewards = flat.row_sums(flat.cells * np.concatenate([plan.ravel() for plan in plans]))
    if unmatched_penalty:
        partners = flat.row_sums((flat.cells > threshold).astype(np.float64))
        rewards = np.where(partners > 0, rewards, -unmatched_penalty / flat.rows_beside)
    if conditional:
        rewards = rewards * flat.rows_beside
    return list(map(Assignment, plans, flat.vectors(rewards)))
