"""How the processes of a run share one iteration: the same numbers as one process would get.

Each process samples and scores its own groups. What depends on all of them (statistics of
advantages, which trajectories make up a mini-batch, what a loss is divided by) is agreed upon here;
tokens are never exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from matchtir.credit.advantages.batch import Advantage, RewardBatch
from matchtir.utils.processes import gathered, rank, summed, world_size

NUMBERS = ("group", "states", "actions")  # fields that name things: those of others are others
SUMMED = ("train/tokens_per_s", "train/carried", "train/replaced")


def advantages_of(advantage: Advantage, own: RewardBatch) -> Float[np.ndarray, "N T"]:
    """The advantages of a process' own trajectories among those of all processes."""
    parts = gathered(own)
    if len(parts) == 1:
        return advantage(own)
    first = sum(len(part.group) for part in parts[: rank()])
    everyone = advantage(joined(parts))
    return everyone[first : first + len(own.group), : own.turn_mask.shape[1]]


def joined(parts: Sequence[RewardBatch]) -> RewardBatch:
    """One batch of the trajectories of several, padded to the longest."""
    turns = max(part.turn_mask.shape[1] for part in parts)
    columns: dict[str, Any] = {}
    for field in fields(RewardBatch):
        values, taken = [], 0
        for part in parts:
            value = getattr(part, field.name)
            if value is None:
                break
            if field.name in NUMBERS:
                named = value >= 0
                value = np.where(named, value + taken, value)
                taken = max(taken, int(value.max(initial=-1)) + 1)
            if value.ndim == 2:
                fill = -1 if field.name in NUMBERS else 0
                missing = turns - value.shape[1]
                value = np.pad(value, ((0, 0), (0, missing)), constant_values=fill)
            values.append(value)
        columns[field.name] = np.concatenate(values) if len(values) == len(parts) else None
    return RewardBatch(**columns)


def mini_batch_rows(
    groups: Sequence[Sequence[int]], mine: int, mini_batches: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """The rows of process `mine` in each mini-batch; there may be none in one.

    Args:
        groups: for each process the number of the group of each of its rows, counted by itself.
            Group k of process r of W is group k W + r of the iteration.
        mine: a process.
        mini_batches: at most so many, of an equal number of rows each.
        seed: of the order.
    """
    places = [
        (group, process, row)
        for process, of_process in enumerate(groups)
        for row, group in enumerate(of_process)
    ]
    places.sort()
    order = np.random.default_rng(tuple(seed)).permutation(len(places))
    return [
        np.array(sorted(places[int(i)][2] for i in part if places[int(i)][1] == mine), dtype=int)
        for part in np.array_split(order, min(mini_batches, len(places)))
    ]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of processes that each hold the whole policy.

    Those of sharded weights are summed by the backward pass itself.
    """
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


def summed_metrics(totals: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sums over processes of sums; every process has the same names."""
    if world_size() == 1:
        return dict(totals)
    values: Tensor = summed(torch.tensor(list(totals.values()), dtype=torch.float64, device=device))
    return dict(zip(totals, values.tolist(), strict=True))


def metrics_of_all(own: Mapping[str, float]) -> dict[str, float]:
    """One row for all: means over those that measured, the most time and memory, summed rates."""
    rows = gathered(dict(own))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _one([row[name] for row in rows if name in row], name) for name in names}


def _one(values: Sequence[float], name: str) -> float:
    if name.startswith(("time/", "memory/")):
        return max(values)
    return float(sum(values)) if name in SUMMED else float(np.mean(values))
