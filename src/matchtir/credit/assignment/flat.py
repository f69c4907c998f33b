"""Many small matrices as one array, for what needs no loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Matrices = Sequence[Float[np.ndarray, "_ _"]]


@dataclass(frozen=True, slots=True)
class Flat:
    """B matrices [m, n] as cells, one after the other, row by row."""

    cells: Float[np.ndarray, " cells"]
    rows: Int[np.ndarray, " B"]  # m of every matrix
    columns: Int[np.ndarray, " B"]  # n of every matrix
    first_cell: Int[np.ndarray, " B"]
    first_row: Int[np.ndarray, " B"]

    @staticmethod
    def of(matrices: Matrices) -> Flat:
        """Lay out matrices, of which there must be at least one."""
        shapes = np.array([matrix.shape for matrix in matrices], dtype=np.int64)
        rows, columns = shapes[:, 0], shapes[:, 1]
        sizes = rows * columns
        cells = np.concatenate([matrix.ravel() for matrix in matrices])
        return Flat(cells, rows, columns, np.cumsum(sizes) - sizes, np.cumsum(rows) - rows)

    def row_sums(self, cells: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " rows"]:
        """Sum of every row, through all matrices."""
        widths = np.repeat(self.columns, self.rows)
        sums = np.zeros(len(widths))
        filled = widths > 0
        if filled.any():
            sums[filled] = np.add.reduceat(cells, (np.cumsum(widths) - widths)[filled])
        return sums

    @property
    def row_of(self) -> Int[np.ndarray, " cells"]:
        """Row of every cell, counted through all matrices."""
        widths = np.repeat(self.columns, self.rows)
        return np.repeat(np.arange(len(widths)), widths)

    @property
    def rows_beside(self) -> Int[np.ndarray, " rows"]:
        """Number of rows of the matrix of every row."""
        return np.repeat(self.rows, self.rows)

    def matrices(self, cells: Float[np.ndarray, " cells"]) -> Iterator[Float[np.ndarray, "_ _"]]:
        """Cells in this layout, as matrices again (views)."""
        layout = zip(
            self.first_cell.tolist(), self.rows.tolist(), self.columns.tolist(), strict=True
        )
        for start, m, n in layout:
            yield cells[start : start + m * n].reshape(m, n)

    def vectors(self, values: Float[np.ndarray, " rows"]) -> Iterator[Float[np.ndarray, " _"]]:
        """One number per row, matrix by matrix (views)."""
        for start, m in zip(self.first_row.tolist(), self.rows.tolist(), strict=True):
            yield values[start : start + m]
