"""Draws the curves of a run while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from matchtir.reports.curves import draw_curves
from matchtir.utils.run_files import read_metrics


class Curves(Callback):
    """Keeps `<folder>/curves.png` up to date with `<folder>/metrics.csv`.

    Args:
        folder: of the run.
        every_n_iterations: between two drawings; the end of training always gets one.
    """

    def __init__(self, folder: str, every_n_iterations: int = 50) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations={every_n_iterations} must be 1 or more")
        self.folder = Path(folder)
        self.every_n_iterations = every_n_iterations

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Draw what the iterations before this one logged."""
        iterations = trainer.fit_loop.total_batch_idx
        if iterations and iterations % self.every_n_iterations == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        metrics = self.folder / "metrics.csv"
        if trainer.is_global_zero and metrics.exists():
            draw_curves(read_metrics(metrics), self.folder / "curves.png")
