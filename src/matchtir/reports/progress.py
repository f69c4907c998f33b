"""How far a run is, for a terminal and for a log file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

TRAINING = {
    "train/reward": "reward",
    "train/solve_f1": "Solve-F1",
    "train/answer_f1": "answer F1",
    "train/answered": "answered",
    "train/loss": "loss",
    "train/entropy": "entropy",
    "train/kl": "KL",
    "train/tokens_per_s": "tokens/s",
}
VALIDATION = {
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


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is; `total` and `left` are None where the end is not known."""

    iteration: int  # done
    total: int | None
    elapsed: float  # seconds, since this process began to train
    left: float | None  # seconds

    def __str__(self) -> str:
        end = "" if self.total is None else f"/{self.total}"
        return f"iteration {self.iteration}{end}"


def plain_line(position: Position, metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """One line for a log: the metrics among `names`, and for training where the time went."""
    parts = [str(position)]
    parts += [
        f"{label} {number(metrics[name])}" for name, label in names.items() if name in metrics
    ]
    if names is TRAINING:
        parts += [f"{phase} {share:.0%}" for phase, share in time_shares(metrics).items()]
    return "  ".join(parts)


def panel(
    title: str,
    position: Position,
    metrics: Mapping[str, float],
    history: Mapping[str, Sequence[float]],
) -> RenderableType:
    """The live display: position, a row for each metric with its recent course, a bar of time."""
    head = Text.assemble((title, "bold"), "  " if title else "", str(position))
    head.append(f"  {clock(position.elapsed)}")
    if position.left is not None:
        head.append(f", {clock(position.left)} left")
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim", min_width=14)
    shown = [item for item in (TRAINING | VALIDATION).items() if item[0] in metrics]
    for first in range(0, len(shown), 2):
        cells: list[str] = []
        for name, label in shown[first : first + 2]:
            cells += [label, number(metrics[name]), sparkline(history.get(name, ()))]
        table.add_row(*cells)
    return Group(head, table, _time_bar(metrics))


def _time_bar(metrics: Mapping[str, float]) -> Text:
    bar = Text()
    legend = Text()
    for phase, share in time_shares(metrics).items():
        bar.append("█" * round(share * BAR_WIDTH), style=PHASES[phase])
        legend.append(f"  {phase} {share:.0%}", style=PHASES[phase])
    return bar + legend


def time_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The share of each phase in the time of the last iteration; empty where none was measured."""
    seconds = {phase: metrics[f"time/{phase}"] for phase in PHASES if f"time/{phase}" in metrics}
    if "rollout" in seconds and "tools" in seconds:  # tools run while the rollout goes on
        seconds["rollout"] = max(0.0, seconds["rollout"] - seconds["tools"])
    total = sum(seconds.values())
    return {phase: value / total for phase, value in seconds.items()} if total > 0 else {}


def sparkline(values: Sequence[float]) -> str:
    """The course of some values as a row of bars, between their minimum and their maximum."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low = min(finite) / 2  # halves: the difference of two floats may be infinite
    span = max(finite) / 2 - low
    steps = len(BARS) - 1
    return "".join(
        " "
        if not math.isfinite(value)
        else BARS[round((value / 2 - low) / span * steps) if span > 0 else 0]
        for value in values
    )


def number(value: float) -> str:
    """Three digits after the point, none for thousands, powers of ten for the very small."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
