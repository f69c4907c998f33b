"""Writes rollouts down, so that one can read what the policy did and what it earned."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from matchtir.credit.advantages.batch import AdvantageParts, parts_of
from matchtir.reports.trace import TurnTokens, trace_record, write_traces
from matchtir.training.policy_gradient import PolicyGradientModule
from matchtir.types import Turn

# Fields of AdvantageParts, as traces call them.
PART_NAMES = {"returns": "return", "trajectory": "trajectory_advantage", "turn": "turn_advantage"}
assert PART_NAMES.keys() == {field.name for field in fields(AdvantageParts)}


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
        if every_n_iterations < 1 or (groups is not None and groups < 1):
            raise ValueError(
                f"every_n_iterations={every_n_iterations} and groups={groups} must be 1 or more"
            )
        self.folder = Path(folder)
        self.every_n_iterations = every_n_iterations
        self.groups = groups

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the iteration's rollouts where it is one that is traced."""
        iteration = trainer.fit_loop.total_batch_idx + 1
        if iteration != 1 and iteration % self.every_n_iterations:
            return
        assert isinstance(pl_module, PolicyGradientModule)
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        write_traces(
            self.folder / f"iteration_{iteration:06d}{rank}.jsonl",
            rollout_records(pl_module, self.groups),
        )


def rollout_records(module: PolicyGradientModule, groups: int | None = None) -> list[dict]:
    """The trace of every attempt of the first `groups` groups of the module's last rollout."""
    scored = module.last_rollout
    _, numbers = np.unique(scored.rewards.group, return_inverse=True)
    shown = scored.trajectories[: None if groups is None else int((numbers < groups).sum())]
    parts = parts_of(module.advantage, scored.rewards)
    named = {PART_NAMES[field.name]: getattr(parts, field.name) for field in fields(parts)}
    ratios = module.log_ratios(shown)
    attempts: dict[int, int] = {}
    records = []
    for row, trajectory in enumerate(shown):
        group, turns = int(numbers[row]), len(trajectory.turns)
        attempts[group] = attempts.get(group, -1) + 1
        records.append(
            trace_record(
                trajectory,
                scored.credits[row],
                scored.advantages[row, :turns],
                group=module.global_rank * len(numbers) + group,
                attempt=attempts[group],
                parts={n: v[row] for n, v in named.items() if v is not None},
                tokens=[
                    _tokens(module, *each)
                    for each in zip(trajectory.turns, ratios[row], strict=True)
                ],
            )
        )
    return records


def _tokens(module: PolicyGradientModule, turn: Turn, log_ratios: list[float]) -> TurnTokens:
    return TurnTokens(module.renderer.pieces(turn.token_ids), log_ratios)
