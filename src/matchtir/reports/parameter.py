"""Final scores against the values of one parameter: the paper's Figure 4, for any setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from matchtir.evaluation.statistics import Gain, nested_bootstrap
from matchtir.reports.comparison import (
    HEADINGS,
    Method,
    distinct_runs,
    methods,
    setting_differences,
    task_scores,
)
from matchtir.reports.progress import COLUMNS
from matchtir.reports.runs import RunData, find_runs
from matchtir.utils.options import UserError, suggest
from matchtir.utils.run_folder import write_csv

PANELS = [*HEADINGS][: 2 * COLUMNS]


@dataclass(frozen=True, slots=True)
class Point:
    """The finished runs of one line that have one value of the parameter."""

    value: Any
    scores: Mapping[str, Gain]  # over starts, seeds and test tasks
    seeds: Mapping[str, Sequence[float]]  # means of the single runs


def lines_of(runs: Sequence[RunData], parameter: str) -> dict[str, list[Point]]:
    """A line for each method that differs from the others in more than the parameter.

    Args:
        runs: those that have come to their end count.
        parameter: a dotted key of the settings, or a config group that was chosen by override.

    Raises:
        UserError: there is no finished run, a run without the parameter, or a value that belongs to
            two methods of a line.
    """
    lines: dict[str, dict[Any, Method]] = {}
    for method in methods(distinct_runs([run for run in runs if run.after])[0]):
        value = _value(method.runs[0], parameter)
        words = [w for w in method.label.split() if not w.startswith((f"{parameter}=", "#"))]
        points = lines.setdefault(" ".join(words), {})
        if value in points:
            keys = [row["key"] for row in setting_differences([points[value], method])]
            raise UserError(f"{parameter}={value} has runs that differ in {', '.join(keys)}")
        points[value] = method
    if not lines:
        raise UserError(f"no run has come to its end: there is no curve of {parameter}")
    return {
        line: [_point(value, points[value]) for value in sorted(points, key=_order)]
        for line, points in lines.items()
    }


def _value(run: RunData, parameter: str) -> Any:
    if parameter in run.settings:
        return run.settings[parameter]
    for word in run.group.split():
        key, is_choice, value = word.partition("=")
        if key == parameter and is_choice:
            return value
    raise UserError(f"{run.folder} has no {parameter}{suggest(parameter, [*run.settings])}")


def _order(value: Any) -> tuple[bool, Any]:
    return (False, value) if _is_number(value) else (True, str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _point(value: Any, method: Method) -> Point:
    scores = task_scores(method, "after")
    gains = {measure: nested_bootstrap(runs) for measure, runs in scores.items()}
    seeds = {m: [float(np.mean(each)) for each in runs.values()] for m, runs in scores.items()}
    return Point(value, gains, seeds)


def write_curve(runs: Sequence[RunData], parameter: str, folder: Path) -> list[Path]:
    """Write `curve.png` and `curve.csv` into a folder: means with 95 % intervals, single runs.

    Raises:
        UserError: as `lines_of`.
    """
    lines = lines_of(runs, parameter)
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = folder / "curve.png", folder / "curve.csv"
    _draw(lines, parameter, picture)
    columns = ["method", parameter, "measure", "runs", "mean", "low", "high"]
    write_csv(table, columns, _rows(lines))
    return [picture, table]


def _rows(lines: Mapping[str, Sequence[Point]]) -> Iterator[list[Any]]:
    for line, points in lines.items():
        for point in points:
            for measure, gain in point.scores.items():
                runs = len(point.seeds[measure])
                yield [line, point.value, measure, runs, gain.mean, gain.low, gain.high]


def _draw(lines: Mapping[str, Sequence[Point]], parameter: str, path: Path) -> None:
    """A panel for each measure, success first; values that are no numbers stand side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # slow to import, seldom drawn

    measured = [m for m in PANELS if any(m in p.scores for each in lines.values() for p in each)]
    rows = -(-len(measured) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    numbers = all(_is_number(point.value) for points in lines.values() for point in points)
    for position, measure in enumerate(measured, start=1):
        axes = figure.add_subplot(rows, COLUMNS, position)
        for line, points in lines.items():
            places = [point.value if numbers else str(point.value) for point in points]
            gains = [point.scores[measure] for point in points]
            means = np.array([gain.mean for gain in gains])
            ends = np.abs(np.array([(gain.low, gain.high) for gain in gains]).T - means)
            drawn = axes.errorbar(places, means, ends, marker="o", capsize=3, label=line)
            for place, point in zip(places, points, strict=True):
                single = point.seeds[measure]
                axes.plot([place] * len(single), single, ".", color=drawn[0].get_color(), alpha=0.4)
        axes.set(title=HEADINGS[measure], xlabel=parameter)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


class CurveCallback(Callback):
    """Draws the curve of a sweep with `hparams_search=curve` at its end, of the finished jobs."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the picture and its numbers into the folder of the sweep."""
        folder = Path(config.hydra.sweep.dir)
        for file in write_curve(find_runs([folder]), config.curve.parameter, folder):
            print(f"curve:    {file}")
