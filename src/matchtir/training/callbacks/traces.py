"""Shows what single numbers hide: attempts with their credit, in files and in loggers' tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from matchtir.credit.advantages import PARTS
from matchtir.evaluation.traces import TurnTokens, trace_record, write_traces
from matchtir.training.module import PolicyGradientModule
from matchtir.utils.options import check_at_least

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


TAKERS = (TableLogger, TensorBoardLogger)


class Samples(Callback):
    """Gives tables and histograms to the loggers that take them (W&B; TensorBoard: histograms).

    `samples`: the turns of the first groups of an iteration, one row each, with their credit.
    `credit/rewards`, `credit/turn_rewards`, `credit/advantages`: histograms over the iteration.

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
            return  # fine-tuning has no rollout
        iteration, scored = pl_module.iteration, pl_module.last_rollout
        takers = [each for each in trainer.loggers if isinstance(each, TAKERS)]
        if iteration % self.every_n_iterations or not takers:
            return
        mask = scored.rewards.turn_mask
        values = {
            "credit/rewards": scored.rewards.total.tolist(),
            "credit/turn_rewards": scored.rewards.turn_rewards[mask].tolist(),
            "credit/advantages": scored.advantages[mask].tolist(),
        }
        rows = sample_rows(pl_module, self.groups)
        for logger in takers:
            if isinstance(logger, TableLogger):
                logger.log_histograms(values, iteration)
                logger.log_table(TABLE, list(COLUMNS), rows, step=iteration)
            elif trainer.is_global_zero:
                for name, numbers in values.items():
                    logger.experiment.add_histogram(name, np.array(numbers), iteration)


def rollout_records(
    module: PolicyGradientModule, groups: int | None = None, tokens: bool = True
) -> list[dict[str, Any]]:
    """The trace of every attempt of the first `groups` groups of the module's last rollout.

    Without `tokens` there are no log-ratios in it, and no forward pass is made.
    """
    scored = module.last_rollout
    _, numbers = np.unique(scored.rewards.group, return_inverse=True)
    shown = scored.trajectories[: None if groups is None else int((numbers < groups).sum())]
    ratios = module.log_ratios(shown) if tokens else []
    of_calls = scored.call_advantages
    attempts: Counter[int] = Counter()
    records = []
    for row, trajectory in enumerate(shown):
        group, turns = int(numbers[row]), trajectory.turns
        records.append(
            trace_record(
                trajectory,
                scored.credits[row],
                scored.advantages[row, : len(turns)],
                group=module.global_rank * len(numbers) + group,
                attempt=attempts[group],
                parts={name: values[row] for name, values in scored.parts.items()},
                tokens=[
                    TurnTokens(module.renderer.pieces(turn.token_ids), log_ratios)
                    for turn, log_ratios in zip(turns, ratios[row], strict=True)
                ]
                if tokens
                else None,
                call_advantages=None if of_calls is None else of_calls[row].tolist(),
            )
        )
        attempts[group] += 1
    return records


def sample_rows(module: PolicyGradientModule, groups: int) -> list[list[Any]]:
    """The turns of the first groups, as `COLUMNS`; None where the advantage has no such part."""
    return [
        [
            *(record["task"], record["attempt"], number, turn["text"], turn["reward"]),
            *(turn.get(name) for name in PARTS.values()),
            *(turn["advantage"], record["outcome"], record["total"], record["stop_reason"]),
        ]
        for record in rollout_records(module, groups, tokens=False)
        for number, turn in enumerate(record["turns"], start=1)
    ]
