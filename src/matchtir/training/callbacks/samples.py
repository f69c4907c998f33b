"""Shows loggers what single numbers hide: sampled trajectories, and how credit is distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from matchtir.credit.advantages.batch import AdvantageParts, parts_of
from matchtir.training.base import PolicyModule
from matchtir.training.policy_gradient import PolicyGradientModule, ScoredRollout

TABLE = "samples"
COLUMNS = (
    *("task", "attempt", "turn", "text", "reward", "return", "A_g", "A_l", "A"),
    *("outcome", "total", "stop_reason"),
)


@runtime_checkable
class TableLogger(Protocol):
    """A logger that takes more than numbers."""

    def log_histograms(self, histograms: Mapping[str, Sequence[float]], step: int) -> None: ...

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
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
        if every_n_iterations < 1 or groups < 1:
            raise ValueError(
                f"every_n_iterations={every_n_iterations} and groups={groups} must be 1 or more"
            )
        self.every_n_iterations = every_n_iterations
        self.groups = groups

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the iteration's samples and distributions."""
        if not isinstance(pl_module, PolicyGradientModule):
            return
        iteration, scored = pl_module.iteration, pl_module.last_rollout
        if iteration % self.every_n_iterations:
            return
        values = distributions(scored)
        rows = sample_rows(pl_module, self.groups)
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                logger.log_histograms(values, iteration)
                logger.log_table(TABLE, COLUMNS, rows, iteration)
            elif isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, numbers in values.items():
                    logger.experiment.add_histogram(name, np.array(numbers), iteration)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the score of each test task."""
        assert isinstance(pl_module, PolicyModule)
        scores = pl_module.test_scores
        when = "before" if pl_module.iteration == 0 else "after"
        measures = list(next(iter(scores.values()), {}))
        rows: list[list[Any]] = [[task, *values.values()] for task, values in scores.items()]
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                name = f"test/scores_{when}"
                logger.log_table(name, ["task", *measures], rows, pl_module.iteration)


def distributions(scored: ScoredRollout) -> dict[str, list[float]]:
    """Rewards of trajectories and turns, and advantages of turns."""
    mask = scored.rewards.turn_mask
    return {
        "credit/rewards": scored.rewards.total.tolist(),
        "credit/turn_rewards": scored.rewards.turn_rewards[mask].tolist(),
        "credit/advantages": scored.advantages[mask].tolist(),
    }


def sample_rows(module: PolicyGradientModule, groups: int) -> list[list[Any]]:
    """The turns of the first groups, as `COLUMNS`; None where the advantage has no such part."""
    scored = module.last_rollout
    parts = parts_of(module.advantage, scored.rewards)
    columns = [getattr(parts, field.name) for field in fields(AdvantageParts)]
    _, numbers = np.unique(scored.rewards.group, return_inverse=True)
    rows: list[list[Any]] = []
    for index in np.flatnonzero(numbers < groups):
        trajectory, credit = scored.trajectories[index], scored.credits[index]
        attempt = int((numbers[:index] == numbers[index]).sum())
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
