"""The curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from matchtir.reports.smoothing import SMOOTHING, trailing_mean

Curve = tuple[Sequence[int], Sequence[float]]

PANELS = {
    "Reward": ("train/reward",),
    "Solve-F1": ("train/solve_f1", "val/solve_f1"),
    "Answer F1": ("train/answer_f1", "val/answer_f1"),
    "Loss": ("train/loss",),
    "Entropy": ("train/entropy",),
    "KL to the reference": ("train/kl",),
}
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
