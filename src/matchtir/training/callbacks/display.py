"""Shows a run as it trains: a live display or plain lines, and curves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.live import Live

from matchtir.reports.progress import TRAINING, VALIDATION, Position, draw_curves, panel, plain_line
from matchtir.utils.options import check_at_least
from matchtir.utils.run_folder import METRICS_FILE, read_metrics

HISTORY = 14  # iterations in a sparkline


class Progress(Callback):
    """A live display in a terminal; elsewhere one plain line every few iterations.

    Args:
        title: heads the live display; usually the experiment's name.
        every_n_iterations: between two plain lines.
        console: where to show it; standard output by default.
    """

    def __init__(
        self, title: str | None = None, every_n_iterations: int = 10, console: Console | None = None
    ) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        self.title = title or ""
        self.every_n_iterations = every_n_iterations
        self.console = console or Console()
        self._live: Live | None = None
        self._history: dict[str, deque[float]] = {}
        self._started = 0.0
        self._iterations_before = 0  # of an earlier process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the display."""
        self._started = time.monotonic()
        self._iterations_before = trainer.fit_loop.total_batch_idx + 1
        if trainer.is_global_zero and self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Show the iteration."""
        position = self._position(trainer)
        due = position.iteration % self.every_n_iterations == 0
        self._show(trainer, position, TRAINING, due or position.iteration == position.total)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation of the iteration."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._show(trainer, self._position(trainer), VALIDATION, due=True)

    def on_train_end(self, *_: Any) -> None:
        """Close the display; its last state stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_exception(self, *_: Any) -> None:
        """The same, so that the error can be read."""
        self.on_train_end()

    def _show(
        self, trainer: Trainer, position: Position, names: Mapping[str, str], due: bool
    ) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name in names:
            if name in metrics:
                self._history.setdefault(name, deque(maxlen=HISTORY)).append(metrics[name])
        if self._live is not None:
            self._live.update(panel(self.title, position, metrics, self._history))
        elif due:
            line = plain_line(position, metrics, names)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _position(self, trainer: Trainer) -> Position:
        iteration, total = trainer.fit_loop.total_batch_idx + 1, int(trainer.num_training_batches)
        elapsed = time.monotonic() - self._started
        per_iteration = elapsed / max(iteration - self._iterations_before, 1)
        return Position(iteration, total, elapsed, per_iteration * (total - iteration))


class Curves(Callback):
    """Keeps `<folder>/curves.png` up to date with `<folder>/metrics.csv`.

    Args:
        folder: of the run.
        every_n_iterations: between two drawings; the end of training always gets one.
    """

    def __init__(self, folder: str, every_n_iterations: int = 50) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
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
        metrics = self.folder / METRICS_FILE
        if trainer.is_global_zero and metrics.exists():
            draw_curves(read_metrics(metrics), self.folder / "curves.png")
