"""The curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = tuple[Sequence[int], Sequence[float]]

PANELS = {
    "Reward": ("train/reward",),
    "Solve-F1": ("train/solve_f1", "val/solve_f1"),
    "Answer F1": ("train/answer_f1", "val/answer_f1"),
    "Loss": ("train/loss",),
    "Entropy": ("train/entropy",),
    "KL to the reference": ("train/kl",),
}
SMOOTHING = 10  # iterations
COLUMNS = 3


def draw_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw a panel for each group of metrics that was measured.

    Training metrics are drawn as measured, faint, and as the mean of the last 10 iterations.

    Args:
        curves: steps and values of each metric.
        path: of the PNG file.
    """
    panels = {
        title: [name for name in names if len(curves.get(name, ((), ()))[0])]
        for title, names in PANELS.items()
    }
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, position)
        for name in names:
            steps, values = curves[name]
            if name.startswith("train/"):
                (line,) = axes.plot(steps, trailing_mean(values, SMOOTHING), label=name)
                axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=name)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def trailing_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean of each value and up to `width - 1` before it, those that are finite; [n] -> [n]."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(ends - width, 0)
    with np.errstate(invalid="ignore"):  # no finite value: 0 / 0 is the honest result
        return (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
