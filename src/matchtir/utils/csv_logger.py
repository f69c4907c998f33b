"""A Lightning logger that keeps one table, `metrics.csv`, whole through kills and resumed runs."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from matchtir.utils.run_files import METRICS_FILE, read_rows


class CsvLogger(Logger):
    """Writes `<folder>/metrics.csv`: a row per step, a column per metric, blank where not measured.

    Each row is on disk before `log_metrics` returns. Metrics of the same step share a row; a new
    metric adds a column on the right; the `epoch` that Lightning adds to some is left out.

    A step that lies before the end of the table means that the run was resumed: that row and all
    later ones are dropped and written anew, so that the file ends up as an unbroken run's would.
    The same holds for the last row of a file found at the start where it has one of the metrics
    already: the process that wrote it may not have finished it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_FILE
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, str]] = []
        self._last_row_offset = 0  # bytes
        self._continues = self.path.exists()
        if self._continues:
            self._columns, self._rows = read_rows(self.path)

    @property
    def name(self) -> str:
        """What Lightning calls the experiment; unused here."""
        return ""

    @property
    def version(self) -> str:
        """What Lightning calls the run; unused here."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the table."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the run folder has the resolved config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of `step`.

        Raises:
            ValueError: `step` is missing.
        """
        if step is None:
            raise ValueError("metrics.csv needs a step for every row")
        cells = {"step": str(step)}
        cells |= {name: _cell(value) for name, value in metrics.items() if name != "epoch"}
        new_columns = [name for name in cells if name not in self._columns]
        self._columns += new_columns
        # A file found at the start is always rewritten once: its last line may be torn.
        rewrite = bool(new_columns) or self._continues
        unwanted = step + (not (self._continues and self._measured_again(cells)))
        while self._rows and self._last_step() >= unwanted:
            self._rows.pop()
            rewrite = True
        self._continues = False

        joins = bool(self._rows) and self._last_step() == step
        if joins:
            self._rows[-1] |= cells
        else:
            self._rows.append(cells)
        if rewrite:
            self._rewrite()
        else:
            self._write_last_row(replace=joins)

    def _measured_again(self, cells: Mapping[str, str]) -> bool:
        return bool(self._rows) and any(n in self._rows[-1] for n in cells if n != "step")

    def _last_step(self) -> int:
        return int(self._rows[-1]["step"])

    def _rewrite(self) -> None:
        """Replace the file in one step, so that a kill leaves the old table or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = self._text(dict(zip(self._columns, self._columns, strict=True)))
        head += "".join(self._text(row) for row in self._rows[:-1])
        new = self.path.with_suffix(".csv.new")
        new.write_text(head + self._text(self._rows[-1]), encoding="utf-8")
        os.replace(new, self.path)
        self._last_row_offset = len(head.encode())

    def _write_last_row(self, replace: bool) -> None:
        with self.path.open("r+b") as file:
            if replace:
                file.seek(self._last_row_offset)
            else:
                self._last_row_offset = file.seek(0, os.SEEK_END)
            file.write(self._text(self._rows[-1]).encode())
            file.truncate()

    def _text(self, row: Mapping[str, str]) -> str:
        line = io.StringIO()
        csv.DictWriter(line, self._columns, restval="", lineterminator="\n").writerow(row)
        return line.getvalue()


def _cell(value: float) -> str:
    return repr(value if isinstance(value, int) else float(value))
