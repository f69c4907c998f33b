"""Final scores against the values of one parameter: the paper's Figure 4, for any setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from matchtir.evaluation.statistics import Estimate, nested_bootstrap
from matchtir.reports.comparison import (
    HEADINGS,
    Method,
    distinct_runs,
    methods,
    setting_differences,
    task_scores,
)
from matchtir.reports.progress import COLUMNS, grid
from matchtir.reports.runs import RunData, find_runs
from matchtir.utils.options import UserError, suggest
from matchtir.utils.run_folder import write_csv

PANELS = [*HEADINGS][: 2 * COLUMNS]


@dataclass(frozen=True, slots=True)
class Point:
    """One measure of the finished runs of one line that have one value of the parameter."""

    line: str
    value: Any
    measure: str
    score: Estimate  # over starts, seeds and test tasks
    runs: Sequence[float]  # means of the single ones


def curve_points(runs: Sequence[RunData], parameter: str) -> list[Point]:
    """The points of every line, by line and value.

    There is a line for each method that differs from the others in more than the parameter.

    Args:
        runs: those that have come to their end count.
        parameter: a dotted key of the settings, or a config group that was chosen by override.

    Raises:
        UserError: there is no finished run, a run without the parameter, or a value that belongs to
            two methods of a line.
    """
    found: dict[tuple[str, Any], Method] = {}
    for method in methods(distinct_runs([run for run in runs if run.after])[0]):
        value = _value(method.runs[0], parameter)
        words = [w for w in method.label.split() if not w.startswith((f"{parameter}=", "#"))]
        place = " ".join(words), value
        if place in found:
            keys = [row["key"] for row in setting_differences([found[place], method])]
            raise UserError(f"{parameter}={value} has runs that differ in {', '.join(keys)}")
        found[place] = method
    if not found:
        raise UserError(f"no run has come to its end: there is no curve of {parameter}")
    return [
        Point(
            line,
            value,
            measure,
            nested_bootstrap(scores),
            [float(np.mean(each)) for each in scores.values()],
        )
        for line, value in sorted(found, key=lambda place: (place[0], *_order(place[1])))
        for measure, scores in task_scores(found[line, value], "after").items()
    ]


def _value(run: RunData, parameter: str) -> Any:
    if parameter in run.settings:
        value = run.settings[parameter]
        return str(value) if isinstance(value, list | dict) else value
    for word in run.group.split():
        key, is_choice, value = word.partition("=")
        if key == parameter and is_choice:
            return value
    raise UserError(f"{run.folder} has no {parameter}{suggest(parameter, [*run.settings])}")


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by their size, before all else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_number, value if is_number else str(value)


def write_curve(runs: Sequence[RunData], parameter: str, folder: Path) -> list[Path]:
    """Write `curve.png` and `curve.csv` into a folder: means with 95 % intervals, single runs.

    Raises:
        UserError: as `curve_points`.
    """
    points = curve_points(runs, parameter)
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = folder / "curve.png", folder / "curve.csv"
    _draw(points, parameter, picture)
    rows = ([p.line, p.value, p.measure, len(p.runs), *astuple(p.score)] for p in points)
    write_csv(table, ["method", parameter, "measure", "runs", "mean", "low", "high"], rows)
    return [picture, table]


def _draw(points: Sequence[Point], parameter: str, path: Path) -> None:
    """A panel for each measure, success first; values that are no numbers stand side by side."""
    measured = [measure for measure in PANELS if any(p.measure == measure for p in points)]
    figure, panels = grid([HEADINGS[measure] for measure in measured], parameter)
    words = any(_order(point.value)[0] for point in points)
    for measure, axes in zip(measured, panels, strict=True):
        here = [point for point in points if point.measure == measure]
        for line, of_line in groupby(here, attrgetter("line")):
            drawn = [*of_line]
            places = [str(p.value) if words else p.value for p in drawn]
            means = np.array([p.score.mean for p in drawn])
            ends = np.abs(np.array([(p.score.low, p.score.high) for p in drawn]).T - means)
            bars = axes.errorbar(places, means, ends, marker="o", capsize=3, label=line)
            for place, p in zip(places, drawn, strict=True):
                colour = bars[0].get_color()
                axes.plot([place] * len(p.runs), p.runs, ".", color=colour, alpha=0.4)
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


class CurveCallback(Callback):
    """Draws the curve of a sweep with `hparams_search=curve` at its end, of the finished jobs."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the picture and its numbers into the folder of the sweep."""
        folder = Path(config.hydra.sweep.dir)
        for file in write_curve(find_runs([folder]), config.curve.parameter, folder):
            print(f"curve:    {file}")
