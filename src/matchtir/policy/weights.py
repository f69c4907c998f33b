"""The weights of a policy as whole tensors, wherever its parameters live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from matchtir.policy.adapters import plain_targets, plain_weights
from matchtir.policy.policy import Policy

WEIGHTS_FILE = "model.safetensors"


def full_weights(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight, by the names of the Hugging Face model, one at a time.

    A sharded weight is put together from all processes, so that every process must iterate to the
    end. Tied weights come once for each of their names: an engine that misses one of them would
    keep its old value without a word. Adapters are merged into the weights.

    Raises:
        TypeError: not a `Policy`.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"expected a Policy, got {type(policy).__name__}")
    for name, value in plain_weights(policy.model):
        yield name, whole(value.detach())


def whole(value: Tensor) -> Tensor:
    """A tensor put together from all processes, each of which must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def load_full_weights(policy: Policy, source: nn.Module) -> None:
    """Copy the weights of `source`, sharded or not, into the whole model of `policy`."""
    with torch.no_grad():
        own = plain_targets(policy.model)
        for name, value in full_weights(source):
            own[name].copy_(value)


def save_full_weights(policy: nn.Module, folder: Path) -> Path:
    """Write all weights, tied ones under each of their names, as one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    # Tied tensors share memory, which the format refuses: each name gets values of its own.
    weights = {name: value.cpu().contiguous().clone() for name, value in full_weights(policy)}
    save_file(weights, folder / WEIGHTS_FILE)
    return folder
