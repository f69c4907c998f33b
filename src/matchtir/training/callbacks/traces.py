"""Writes rollouts down, so that one can read what the policy did and what it earned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from matchtir.reports.trace import trace_record, write_traces


class Traces(Callback):
    """Writes all rollouts of an iteration to `<folder>/iteration_000123.jsonl`.

    Reads `last_rollout` of the module: for each trajectory, itself, its credit, and the advantages
    of its turns. With several processes each writes its own rollouts.

    Args:
        folder: of the files.
        every_n_iterations: between two of them; the first iteration always has one.
    """

    def __init__(self, folder: str, every_n_iterations: int = 50) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations={every_n_iterations} must be 1 or more")
        self.folder = Path(folder)
        self.every_n_iterations = every_n_iterations

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the iteration's rollouts where it is one that is traced."""
        iteration = trainer.fit_loop.total_batch_idx + 1
        if iteration != 1 and iteration % self.every_n_iterations:
            return
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        rollout: Any = pl_module.last_rollout
        write_traces(
            self.folder / f"iteration_{iteration:06d}{rank}.jsonl",
            [trace_record(*attempt) for attempt in rollout],
        )
