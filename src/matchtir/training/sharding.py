"""A policy whose weights, gradients and optimizer are shared out over processes (FSDP2)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from matchtir.policy.policy import Policy

PATIENCE = timedelta(minutes=60)


class ShardedStrategy(ModelParallelStrategy):
    """Each process holds its share of every weight; a layer is whole only while it computes.

    Gradients are summed over processes, not averaged: losses are already divided by the number of
    tokens of all of them. A checkpoint in one file is that of an unsharded run, so that any number
    of processes, with or without sharding, can go on with it.

    Args:
        data_parallel_size: processes that share the weights; all processes of the run.
        tensor_parallel_size: 1. Single matrices are not split in the computation.
        cpu_offload: keep shares and optimizer in host memory; slower, for models that do not fit.
        save_distributed_checkpoint: each process writes its share, into a folder, which any number
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
        timeout: timedelta = PATIENCE,
    ) -> None:
        if tensor_parallel_size != 1:
            raise ValueError(
                f"tensor_parallel_size={tensor_parallel_size}: only weights are shared out "
                "(data_parallel_size), no matrix product is split"
            )
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
            timeout,
        )
        self.cpu_offload = cpu_offload

    def shard(self, policy: Policy) -> None:
        """Share out the weights of a policy, each decoder layer for itself; once.

        Raises:
            ValueError: weights of several precisions, which cannot be shared out together.
        """
        if isinstance(policy, FSDPModule):
            return
        precisions = {str(parameter.dtype) for parameter in policy.parameters()}
        if len(precisions) > 1:
            raise ValueError(
                f"weights of several precisions ({', '.join(sorted(precisions))}) cannot be shared "
                "out: adapters beside them need model.dtype=float32"
            )
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
        layers: Any = policy.model.base_model.layers
        for layer in layers:
            fully_shard(layer, **settings)
        fully_shard(policy, **settings)
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # what gloo can do

    def model_to_device(self) -> None:
        """Everything to the device, but shares that are to stay in host memory."""
        if not self.cpu_offload:
            super().model_to_device()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as an unsharded optimizer has it; only the first process keeps the values."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        keep = self.global_rank == 0
        return tree_map(lambda value: _whole(value, keep), optimizer.state_dict())

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Take shares out of a checkpoint: one file, or a folder of shares."""
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
        for optimizer, state in zip(
            self.optimizers, checkpoint.get("optimizer_states", ()), strict=False
        ):
            optimizer.load_state_dict(_shared_out(state, optimizer))
        return checkpoint


def _whole(value: Any, keep: bool) -> Any:
    """A value of all processes put together; nothing where it is not kept."""
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    return value


def _shared_out(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state of an unsharded optimizer, with what belongs to a weight shared out as it is."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]

    def share(value: Any, parameter: Tensor) -> Any:
        fits = isinstance(value, Tensor) and value.shape == parameter.shape
        if not (fits and isinstance(parameter, DTensor)):
            return value
        place = parameter.device_mesh
        return distribute_tensor(value.to(parameter.device), place, parameter.placements)

    shared = {
        index: {name: share(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": shared}
