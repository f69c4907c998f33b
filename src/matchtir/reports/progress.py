"""How far a run is and how it ended: for a terminal, a log file, a picture and `result.json`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from matchtir.evaluation.statistics import Estimate, nested_difference
from matchtir.utils.run_folder import CONFIG_FILE, nan_to_null, replace_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # steps and values of each metric
Scores = Mapping[str, Mapping[str, float]]  # of each task, by metric

TRAINING = {
    "train/reward": "reward",
    "train/success": "success",
    "train/solve_f1": "Solve-F1",
    "train/answer_f1": "answer F1",
    "train/answered": "answered",
    "train/loss": "loss",
    "train/entropy": "entropy",
    "train/kl": "KL",
    "train/tokens_per_s": "tokens/s",
}
VALIDATION = {
    "val/success": "val success",
    "val/solve_f1": "val Solve-F1",
    "val/answer_f1": "val answer F1",
    "val/answered": "val answered",
}
PHASES = {
    "sync": "blue",
    "rollout": "cyan",
    "tools": "yellow",
    "credit": "magenta",
    "update": "green",
}
BARS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 48
PANELS = {
    "Success": ("train/success", "val/success"),
    "Solve-P and Solve-R": ("val/solve_p", "val/solve_r"),
    "Solve-F1": ("train/solve_f1", "val/solve_f1"),
    "Answer F1": ("train/answer_f1", "val/answer_f1"),
    "Reward": ("train/reward",),
    "Entropy": ("train/entropy",),
    "KL to the reference": ("train/kl",),
}
COLUMNS = 3  # of panels in the picture
COSTS = ("turns", "calls")  # fewer of them is neither better nor worse
SMOOTHING = 10  # iterations


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is; seconds are those since this process began to train."""

    iteration: int  # done
    total: int
    elapsed: float
    left: float

    def __str__(self) -> str:
        return f"iteration {self.iteration}/{self.total}"

    @property
    def times(self) -> str:
        """How long it has taken, and will still take."""
        return f"{clock(self.elapsed)}, {clock(self.left)} left"


# -- under way -------------------------------------------------------------------------------------


def plain_line(position: Position, metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """One line for a log: the metrics among `names`, and for training where the time went."""
    known = [(label, metrics[name]) for name, label in names.items() if name in metrics]
    parts = [str(position), *(f"{label} {number(value)}" for label, value in known)]
    if names is TRAINING:
        parts += [f"{phase} {share:.0%}" for phase, share in time_shares(metrics).items()]
        parts.append(position.times)
    return "  ".join(parts)


def panel(
    title: str,
    position: Position,
    metrics: Mapping[str, float],
    history: Mapping[str, Sequence[float]],
) -> RenderableType:
    """The live display: position, a row for each metric with its recent course, a bar of time."""
    head = Text.assemble((title, "bold"), "  " if title else "", f"{position}  {position.times}")
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim", min_width=14)
    shown = [
        (label, number(metrics[name]), sparkline(history.get(name, ())))
        for name, label in (TRAINING | VALIDATION).items()
        if name in metrics
    ]
    for first in range(0, len(shown), 2):
        table.add_row(*(cell for cells in shown[first : first + 2] for cell in cells))
    bar, legend = Text(), Text()
    for phase, share in time_shares(metrics).items():
        bar.append("█" * round(share * BAR_WIDTH), style=PHASES[phase])
        legend.append(f"  {phase} {share:.0%}", style=PHASES[phase])
    return Group(head, table, bar + legend)


def time_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The share of each phase in the time of the last iteration; empty where none was measured."""
    seconds = {phase: metrics[f"time/{phase}"] for phase in PHASES if f"time/{phase}" in metrics}
    if "rollout" in seconds and "tools" in seconds:  # calls overlap, and are part of the rollout
        seconds["tools"] = min(seconds["tools"], seconds["rollout"])
        seconds["rollout"] -= seconds["tools"]
    total = sum(seconds.values())
    return {phase: value / total for phase, value in seconds.items()} if total > 0 else {}


def sparkline(values: Sequence[float]) -> str:
    """The course of some values as a row of bars, between their minimum and their maximum."""
    halves = [value / 2 for value in values]  # the difference of two floats may be infinite
    known = [half for half in halves if math.isfinite(half)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    heights = [(half - low) / (span or 1.0) * (len(BARS) - 1) for half in halves]
    return "".join(BARS[round(each)] if math.isfinite(each) else " " for each in heights)


def number(value: float) -> str:
    """Three digits after the point, none for thousands, powers of ten for the very small."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


# -- curves --------------------------------------------------------------------------------------


def grid(titles: Sequence[str], xlabel: str) -> tuple[Figure, list[Axes]]:
    """A picture with a panel for each title."""
    from matplotlib.figure import Figure  # slow to import, seldom drawn

    rows = -(-len(titles) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, COLUMNS, n) for n in range(1, len(titles) + 1)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel=xlabel)
        axes.grid(alpha=0.3)
    return figure, panels


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw a panel for each group of metrics that was measured.

    Training metrics are drawn as measured, faint, and as the mean of the last 10 iterations.

    Args:
        curves: steps and values of each metric.
        path: of the PNG file.
    """
    measured = {name for name, (steps, _) in curves.items() if len(steps)}
    titles = [title for title, names in PANELS.items() if measured & {*names}]
    if not titles:
        return
    figure, panels = grid(titles, "iteration")
    for title, axes in zip(titles, panels, strict=True):
        for name in (name for name in PANELS[title] if name in measured):
            steps, values = curves[name]
            if name.startswith("train/"):
                (line,) = axes.plot(steps, trailing_mean(values, SMOOTHING), label=name)
                axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=name)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def trailing_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean of each value and up to `width - 1` before it, those that are finite; [n] -> [n]."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    columns = (np.where(known, array, 0.0), known)
    if not len(array):
        return array
    sums, counts = (np.convolve(each, np.ones(width))[: len(array)] for each in columns)
    with np.errstate(invalid="ignore"):  # no finite value: 0 / 0 is the honest result
        return sums / counts


# -- the end ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One metric on the same tasks before and after training."""

    metric: str
    before: float
    after: float
    gain: Estimate


def compare(before: Scores, after: Scores, seed: int) -> list[Change]:
    """Each metric's means over tasks, and the bootstrap interval of their paired difference.

    Args:
        before: scores of each task: {task id: {metric: score}}.
        after: the same, of the same tasks.
        seed: of the resampling.

    Raises:
        ValueError: there are no tasks, or the two have other tasks.
    """
    if not before or before.keys() != after.keys():
        odd = ", ".join(sorted(before.keys() ^ after.keys())[:5])
        raise ValueError(f"{len(before)} tasks before, {len(after)} after; not in both: {odd}")
    changes = []
    for metric in next(iter(before.values())):
        first = np.array([before[task][metric] for task in before])
        second = np.array([after[task][metric] for task in before])
        gain = nested_difference({("", 0): first}, {("", 0): second}, seed)
        changes.append(Change(metric, float(first.mean()), float(second.mean()), gain))
    return changes


def final_table(changes: Sequence[Change], tasks: int) -> Table:
    """A rich table of the changes; a gain of a score whose interval excludes 0 is in colour."""
    table = Table("metric", title=f"{tasks} test tasks")
    for heading in ("before", "after", "gain", "95 % interval"):
        table.add_column(heading, justify="right")
    for row in changes:
        gain, colour = row.gain, "default"
        if row.metric not in COSTS and (gain.low > 0 or gain.high < 0):
            colour = "green" if gain.low > 0 else "red"
        means = (f"{row.before:.3f}", f"{row.after:.3f}", f"[{colour}]{gain.mean:+.3f}[/]")
        table.add_row(row.metric, *means, rf"\[{gain.low:+.3f}, {gain.high:+.3f}]")
    return table


def next_commands(folder: Path) -> list[str]:
    """What one may want to type once a run has ended, each with a remark."""
    here = Path.cwd()
    run = folder.relative_to(here) if folder.is_relative_to(here) else folder
    benchmark = _benchmark_of(OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE)))
    commands = {}
    if any(folder.glob("traces/*.jsonl")):
        commands[f"python scripts/view.py {run}"] = "its attempts, turn by turn"
    commands[f"python scripts/compare.py {run.parent}"] = "with its neighbours"
    if benchmark:
        commands[f"python src/eval.py benchmark={benchmark} policy={run}"] = "on all test tasks"
    if any(folder.glob("wandb/offline-run-*")):
        commands[f"wandb sync {run}/wandb/offline-run-*"] = "to W&B"
    width = max(map(len, commands))
    return [f"{command:{width}}  # {remark}" for command, remark in commands.items()]


def _benchmark_of(config: Any) -> str:
    """The benchmark of the tasks that a run learned from, with what it needs; "" for others'."""
    from matchtir.tasks.custom import DEFAULT_SHARES  # slow to import

    data = config.get("data", {})
    package, _, name = data.get("_target_", "matchtir.tasks.synthetic").partition(".tasks.")
    name = name.partition(".")[0] if package == "matchtir" else ""
    if name == "openenv":
        return f"openenv sandbox=openenv sandbox.url={config['sandbox']['url']}"
    if name != "custom":
        return name
    usual = {"split_by": "content", "shares": DEFAULT_SHARES, "seed": 0}
    chosen = {"path": data["path"], "tools": data.get("tools")}
    chosen |= {key: data.get(key) for key, value in usual.items() if data.get(key) != value}
    given = (f"benchmark.custom.tasks.{k}={_override(v)}" for k, v in chosen.items() if v)
    return " ".join([name, *map(shlex.quote, given)])


def _override(value: Any, inside: bool = False) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_override(item, True)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_override(item, True) for item in value)}]"
    return json.dumps(value) if inside else str(value)


def write_result(path: Path, changes: Sequence[Change], **facts: Any) -> None:
    """Write `result.json`: means before and after, gains with intervals, and the facts given.

    Numbers that are not finite become null, since JSON has none.
    """
    result = {
        "before": {row.metric: row.before for row in changes},
        "after": {row.metric: row.after for row in changes},
        "gain": {row.metric: asdict(row.gain) for row in changes},
        **facts,
    }
    replace_text(path, json.dumps(nan_to_null(result), indent=2, allow_nan=False) + "\n")
