"""How the processes of a run share one iteration: the same numbers as one process would get.

Each process samples and scores its own groups. What depends on all of them (statistics of
advantages, which trajectories make up a mini-batch, what a loss is divided by) is agreed upon here;
tokens are never exchanged. `ShardedStrategy` shards the weights over them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from matchtir.credit.advantages import Advantage, RewardBatch, parts_of
from matchtir.policy.policy import Policy
from matchtir.policy.weights import adapter_parameters
from matchtir.utils.processes import all_gather, rank, world_size
from matchtir.utils.run_folder import keep_checksums

ID_FIELDS = ("group", "states", "actions")  # ids of one process: shifted when joined
SUMMED = (
    *("train/tokens_per_s", "train/partial_groups", "train/replaced", "train/dropped"),
    *("train/hindsight_sequences", "train/hindsight_tokens"),
)


def over_all_processes(
    advantage: Advantage, own: RewardBatch
) -> tuple[Float[np.ndarray, "N T"], dict[str, Float[np.ndarray, "N T"]]]:
    """The advantages of a process' own trajectories among those of all processes; their parts."""
    batches = all_gather(own)
    everyone = concatenated(batches) if len(batches) > 1 else own
    first = sum(len(batch.group) for batch in batches[: rank()])
    here = slice(first, first + len(own.group)), slice(own.turn_mask.shape[1])
    parts = parts_of(advantage, everyone)
    return advantage(everyone)[here], {name: part[here] for name, part in parts.items()}


def concatenated(parts: Sequence[RewardBatch]) -> RewardBatch:
    """One batch of the trajectories of several, padded to the longest."""
    turns = max(part.turn_mask.shape[1] for part in parts)
    columns: dict[str, Any] = {}
    for field in fields(RewardBatch):
        values, taken = [], 0
        for value in (getattr(part, field.name) for part in parts):
            if value is not None and field.name in ID_FIELDS:
                value = np.where(value >= 0, value + taken, value)
                taken = max(taken, int(value.max(initial=-1)) + 1)
            if value is not None and value.ndim == 2:
                missing = (0, 0), (0, turns - value.shape[1])
                value = np.pad(value, missing, constant_values=-(field.name in ID_FIELDS))
            values.append(value)
        known = all(value is not None for value in values)
        columns[field.name] = np.concatenate(values) if known else None
    return RewardBatch(**columns)


def mini_batch_rows(
    groups: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]], mine: int, mini_batches: int
) -> list[np.ndarray]:
    """The rows of process `mine` in each mini-batch; there may be none in one.

    Groups stay whole, so that their prompt is computed once. They are dealt out, the longest
    first, so that each of 8 stripes of an iteration's tasks (fewer, where there are few groups)
    has as many groups and tokens in one mini-batch as in another. With 2, 4 or 8 processes each
    has whole stripes, so that none waits long for the others; whatever their number, the
    mini-batches are the same.

    Args:
        groups: for each process the number of the group of each of its rows, counted by itself.
            Group k of process r of W is group k W + r of the iteration.
        lengths: for each process the tokens of each of its rows.
        mine: a process.
        mini_batches: at most so many.
    """
    numbers = [np.array(own, dtype=int) * len(groups) + r for r, own in enumerate(groups)]
    tokens: dict[int, int] = defaultdict(int)
    for number, length in zip(chain(*numbers), chain(*lengths), strict=True):
        tokens[int(number)] += length
    count = min(mini_batches, len(tokens))
    stripes = next(n for n in (8, 4, 2, 1) if n * count <= len(tokens))
    parts: list[list[int]] = [[] for _ in range(count)]
    for stripe in range(stripes):
        own = [number for number in tokens if number % stripes == stripe]
        dealt = [(0, 0)] * count  # groups and tokens of this stripe
        for number in sorted(own, key=lambda each: (-tokens[each], each)):
            best = min(range(count), key=lambda m: (dealt[m][0], len(parts[m]), dealt[m][1]))
            parts[best].append(number)
            dealt[best] = dealt[best][0] + 1, dealt[best][1] + tokens[number]
    return [np.flatnonzero(np.isin(numbers[mine], part)) for part in parts]


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


def all_reduce_metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Sums over processes of sums; every process has the same names."""
    rows = all_gather(dict(totals))
    return {name: sum(row[name] for row in rows) for name in totals}


def reduced_metrics(own: Mapping[str, float]) -> dict[str, float]:
    """One row for all: means over those that measured, the most time and memory, summed rates."""
    rows = all_gather(dict(own))
    joint = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if name.startswith(("time/", "memory/")):
            joint[name] = max(values)
        else:
            joint[name] = float(sum(values) if name in SUMMED else np.mean(values))
    return joint


def frozen_copy(policy: Policy, weights: bool) -> Policy:
    """A reference policy; without weights, for a strategy that gives it those of the policy."""
    empty = [] if weights else policy.parameters()
    memo = {id(each): nn.Parameter(torch.empty_like(each, device="meta")) for each in empty}
    return deepcopy(policy, memo).eval().requires_grad_(False)


@torch.no_grad()
def copy_weights(policy: Policy, weights: Sequence[Tensor]) -> None:
    """Give a policy, sharded or not, these weights: whole, or sharded as its own are."""
    for own, new in zip(policy.parameters(), weights, strict=True):
        own.copy_(_sharded_as(own, new))


class ShardedStrategy(ModelParallelStrategy):
    """Each process holds a shard of every weight; a layer is whole only while it computes (FSDP2).

    Gradients are summed over processes, not averaged: losses are already divided by the number of
    tokens of all of them. A checkpoint in one file is that of an unsharded run, so that any number
    of processes, with or without sharding, can go on with it.

    Args:
        data_parallel_size: processes that the weights are sharded over; all processes of the run.
        tensor_parallel_size: 1. Single matrices are not split in the computation.
        cpu_offload: keep shards and optimizer in host memory; slower, for models that do not fit.
        save_distributed_checkpoint: each process writes its shards, into a folder, which any number
            of sharded processes can load; for models that the first process cannot hold.
        process_group_backend: None: nccl on GPUs, gloo on CPUs. With `cpu_offload` on GPUs both are
            needed: "cpu:gloo,cuda:nccl".
        timeout: how long a process waits for the others before it gives up with an error; longer
            than the slowest rollout.

    Raises:
        ValueError: another `tensor_parallel_size`.
    """

    def __init__(
        self,
        data_parallel_size: int,
        tensor_parallel_size: int = 1,
        cpu_offload: bool = False,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=60),
    ) -> None:
        if tensor_parallel_size != 1:
            raise ValueError(
                f"tensor_parallel_size={tensor_parallel_size}: only weights are sharded "
                "(data_parallel_size), no matrix product is split"
            )
        super().__init__(
            data_parallel_size, 1, save_distributed_checkpoint, process_group_backend, timeout
        )
        self.cpu_offload = cpu_offload

    def shard(self, policies: Sequence[Policy]) -> None:
        """Shard the weights of a policy and of copies of it, layer by layer; once.

        Adapters stay whole in every process: they are small, and of another precision.

        All get the weights that the first policy has in the first process, so that the others may
        come without any, on the meta device: only one whole model is ever in memory.

        Raises:
            ValueError: weights of several precisions, which cannot be sharded together.
        """
        policy = policies[0]
        if isinstance(policy, FSDPModule):
            return
        sharded = {*policy.parameters()} - adapter_parameters(policy)
        precisions = {str(each.dtype) for each in sharded}
        if len(precisions) > 1:
            found = ", ".join(sorted(precisions))
            raise ValueError(f"weights of several precisions ({found}) cannot be sharded")
        settings: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            # Also the outermost part: left whole by a pass without gradient, it would be stale
            # after the next optimizer step.
            "reshard_after_forward": True,
        }
        if self.precision_plugin.precision == "bf16-mixed":
            settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        if self.cpu_offload:
            settings["offload_policy"] = CPUOffloadPolicy(self.root_device.type == "cuda")
        layers: list[Any] = [each.model.base_model.layers for each in policies]
        for same in [*zip(*layers, strict=True), policies]:
            _broadcast_weights(same, self.root_device)
            for module in same:
                fully_shard(module, ignored_params=adapter_parameters(module), **settings)
        for each in policies:
            for module in each.modules():
                if isinstance(module, FSDPModule):
                    module.set_gradient_divide_factor(1.0)
                    module.set_force_sum_reduction_for_comms(True)  # what gloo can do

    def model_to_device(self) -> None:
        """Everything to the device, but shards that are to stay in host memory."""
        if not self.cpu_offload:
            super().model_to_device()
        elif self.lightning_module is not None:
            self.lightning_module._device = self.root_device  # batches go where layers compute

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as an unsharded optimizer has it; only the first process keeps the values."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)

        def whole(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            value = value.full_tensor()  # by every process
            return value.cpu() if self.global_rank == 0 else None

        return tree_map(whole, optimizer.state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save; in a folder of shards each process keeps the checksums of its own."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        if path.is_dir():
            keep_checksums(path, self.global_rank)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Take shards out of a checkpoint: one file, or a folder of shards."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        assert self.lightning_module is not None
        set_model_state_dict(
            self.lightning_module,
            checkpoint["state_dict"],
            options=StateDictOptions(full_state_dict=True),
        )
        states = checkpoint.get("optimizer_states", ())
        for optimizer, state in zip(self.optimizers, states, strict=False):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            sharded = {
                index: {name: _sharded_as(parameters[index], each) for name, each in own.items()}
                for index, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})
        return checkpoint


def _broadcast_weights(same: Sequence[nn.Module], device: torch.device) -> None:
    """Give modules of one structure the weights of the first one in the first process.

    What is sharded already stays; tied weights stay tied.
    """
    taken: dict[int, tuple[Tensor, list[Tensor]]] = {}  # by what they replace, kept for its id
    for parts in zip(*(module.modules() for module in same), strict=True):
        for kind in ("_parameters", "_buffers"):
            for name, old in [*getattr(parts[0], kind).items()]:
                if old is None or isinstance(old, DTensor):
                    continue
                if id(old) not in taken:
                    mine = [getattr(part, kind)[name] for part in parts]
                    taken[id(old)] = old, _received(mine, device)
                for part, new in zip(parts, taken[id(old)][1], strict=True):
                    getattr(part, kind)[name] = new


def _received(mine: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The value of the first tensor in the first process, for each of these."""
    first = mine[0].detach()
    value = torch.empty_like(first, device=device) if first.is_meta else first.to(device)
    if world_size() > 1:
        distributed.broadcast(value, src=0)
    values = [value, *(value.clone() for _ in mine[1:])]
    return [
        nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        for old, new in zip(mine, values, strict=True)
    ]


def _sharded_as(parameter: Tensor, value: Any) -> Any:
    """A value of the shape of a sharded parameter sharded as that is; any other as it is."""
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    if not (fits and isinstance(parameter, DTensor)) or isinstance(value, DTensor):
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(parameter.device), mesh, parameter.placements)
