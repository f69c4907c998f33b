"""Shows what single numbers hide: attempts with their credit, in files and in loggers' tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from matchtir.credit.advantages import AdvantageParts, parts_of
from matchtir.reports.traces import TurnTokens, trace_record, write_traces
from matchtir.training.base import PolicyModule
from matchtir.training.groups import ScoredRollout
from matchtir.training.module import PolicyGradientModule
from matchtir.utils.options import check_at_least

# Fields of AdvantageParts, as traces call them.
PART_NAMES = {"returns": "return", "trajectory": "trajectory_advantage", "turn": "turn_advantage"}
assert PART_NAMES.keys() == {field.name for field in fields(AdvantageParts)}
TABLE = "samples"
COLUMNS = (
    *("task", "attempt", "turn", "text", "reward", "return", "A_g", "A_l", "A"),
    *("outcome", "total", "stop_reason"),
)


class Traces(Callback):
    """Writes rollouts of an iteration to `<folder>/iteration_000123.jsonl`, one per line.

    Works with `PolicyGradientModule`, whose `last_rollout` it reads. The log-ratios cost one
    forward pass over what is written. With several processes each writes its own rollouts.

    Args:
        folder: of the files.
        every_n_iterations: between two of them; the first iteration always has one.
        groups: at most so many groups of an iteration are written, all their attempts; null: all.
    """

    def __init__(
        self, folder: str, every_n_iterations: int = 50, groups: int | None = None
    ) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        if groups is not None:
            check_at_least(1, groups=groups)
        self.folder = Path(folder)
        self.every_n_iterations = every_n_iterations
        self.groups = groups

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the iteration's rollouts where it is one that is traced."""
        assert isinstance(pl_module, PolicyGradientModule)
        iteration = pl_module.iteration
        if iteration != 1 and iteration % self.every_n_iterations:
            return
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        write_traces(
            self.folder / f"iteration_{iteration:06d}{rank}.jsonl",
            rollout_records(pl_module, self.groups),
        )


@runtime_checkable
class TableLogger(Protocol):
    """A logger that takes more than numbers."""

    def log_histograms(self, histograms: Mapping[str, Sequence[float]], step: int) -> None: ...

    def log_table(
        self, key: str, columns: list[str], data: list[list[Any]], *, step: int
    ) -> None: ...


class Samples(Callback):
    """Gives tables and histograms to the loggers that take them (W&B; TensorBoard: histograms).

    `samples`: the turns of the first groups of an iteration, one row each, with their credit.
    `credit/rewards`, `credit/turn_rewards`, `credit/advantages`: histograms over the iteration.
    `test/scores_before`, `test/scores_after`: each test task, which paired comparisons need.

    Args:
        every_n_iterations: between two tables.
        groups: tasks in a table, with all their attempts.
    """

    def __init__(self, every_n_iterations: int = 1, groups: int = 1) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations, groups=groups)
        self.every_n_iterations = every_n_iterations
        self.groups = groups

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the iteration's samples and distributions."""
        if not isinstance(pl_module, PolicyGradientModule):
            return
        iteration, scored = pl_module.iteration, pl_module.last_rollout
        if iteration % self.every_n_iterations:
            return
        mask = scored.rewards.turn_mask
        values = {
            "credit/rewards": scored.rewards.total.tolist(),
            "credit/turn_rewards": scored.rewards.turn_rewards[mask].tolist(),
            "credit/advantages": scored.advantages[mask].tolist(),
        }
        rows = sample_rows(pl_module, self.groups)
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                logger.log_histograms(values, iteration)
                logger.log_table(TABLE, list(COLUMNS), rows, step=iteration)
            elif isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, numbers in values.items():
                    logger.experiment.add_histogram(name, np.array(numbers), iteration)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the score of each test task."""
        assert isinstance(pl_module, PolicyModule)
        scores, iteration = pl_module.test_scores, pl_module.iteration
        measures = list(next(iter(scores.values()), {}))
        rows: list[list[Any]] = [[task, *values.values()] for task, values in scores.items()]
        name = f"test/scores_{'before' if iteration == 0 else 'after'}"
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                logger.log_table(name, ["task", *measures], rows, step=iteration)


def rollout_records(module: PolicyGradientModule, groups: int | None = None) -> list[dict]:
    """The trace of every attempt of the first `groups` groups of the module's last rollout."""
    scored = module.last_rollout
    parts = parts_of(module.advantage, scored.rewards)
    named = {PART_NAMES[field.name]: getattr(parts, field.name) for field in fields(parts)}
    places = _attempts(scored, groups)
    trajectories = [scored.trajectories[row] for row, *_ in places]
    ratios = module.log_ratios(trajectories)
    return [
        trace_record(
            trajectory,
            scored.credits[row],
            scored.advantages[row, : len(trajectory.turns)],
            group=module.global_rank * len(scored.trajectories) + group,
            attempt=attempt,
            parts={name: values[row] for name, values in named.items() if values is not None},
            tokens=[
                TurnTokens(module.renderer.pieces(turn.token_ids), of_turn)
                for turn, of_turn in zip(trajectory.turns, of_turns, strict=True)
            ],
        )
        for (row, group, attempt), trajectory, of_turns in zip(
            places, trajectories, ratios, strict=True
        )
    ]


def sample_rows(module: PolicyGradientModule, groups: int) -> list[list[Any]]:
    """The turns of the first groups, as `COLUMNS`; None where the advantage has no such part."""
    scored = module.last_rollout
    parts = parts_of(module.advantage, scored.rewards)
    columns = [getattr(parts, field.name) for field in fields(parts)]
    rows: list[list[Any]] = []
    for index, _, attempt in _attempts(scored, groups):
        trajectory, credit = scored.trajectories[index], scored.credits[index]
        for turn, made in enumerate(trajectory.turns):
            shown = [None if part is None else float(part[index, turn]) for part in columns]
            rows.append(
                [
                    *(trajectory.task.task_id, attempt, turn + 1, made.text),
                    *(float(credit.turn_rewards[turn]), *shown),
                    *(float(scored.advantages[index, turn]), credit.outcome, credit.total),
                    str(trajectory.stop_reason),
                ]
            )
    return rows


def _attempts(scored: ScoredRollout, groups: int | None) -> list[tuple[int, int, int]]:
    """Row, group and attempt of each trajectory of the first `groups` groups, each from 0 on."""
    _, numbers = np.unique(scored.rewards.group, return_inverse=True)
    seen: Counter[int] = Counter()
    places = []
    for row, group in enumerate(numbers.tolist()):
        if groups is None or group < groups:
            places.append((row, group, seen[group]))
            seen[group] += 1
    return places
