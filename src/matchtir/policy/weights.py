"""The weights of a policy as whole tensors, wherever its parameters live, adapters merged.

Beside frozen weights there may be low-rank adapters (LoRA, 2106.09685), by way of `peft`. They are
put into the model itself, which stays the architecture that it was: log-probabilities, sampling and
sharding do not know of them. What leaves the process (an engine, a file) gets merged weights under
the names of the plain architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from matchtir.policy.policy import Policy

WEIGHTS_FILE = "model.safetensors"
_ADAPTER = "default"  # peft's name of the only one
_BASE = ".base_layer"


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
    adapted = _adapted(policy.model)
    for name, value in policy.model.state_dict().items():
        if _is_adapter(name):
            continue
        layer = adapted.get(name.removesuffix(f"{_BASE}.weight"))
        if layer is not None and name.endswith(f"{_BASE}.weight"):
            with torch.no_grad():
                value = (value + layer.get_delta_weight(_ADAPTER)).to(value.dtype)
        yield _plain(name), full_tensor(value.detach())


def full_tensor(value: Tensor) -> Tensor:
    """A tensor put together from all processes, each of which must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def load_full_weights(policy: Policy, source: nn.Module) -> None:
    """Copy the weights of `source`, sharded or not, into the whole model of `policy`.

    Its adapters are set to zero: what is written is what the model computes with.
    """
    own: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in policy.model.state_dict().items():
            if _is_adapter(name):
                value.zero_()
            else:
                own[_plain(name)] = value
        for name, value in full_weights(source):
            own[name].copy_(value)


def save_full_weights(policy: nn.Module, folder: Path) -> Path:
    """Write all weights, tied ones under each of their names, as one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    # Tied tensors share memory, which the format refuses: each name gets values of its own.
    weights = {name: value.cpu().contiguous().clone() for name, value in full_weights(policy)}
    save_file(weights, folder / WEIGHTS_FILE)
    return folder


# -- adapters ----------------------------------------------------------------------------------


def add_adapters(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Freeze the model and put adapters beside its linear layers, those of the head excepted.

    They begin at zero, so that the policy is the model at first. They are kept in 32 bits, since
    their updates are small, whatever the precision of the frozen weights.

    Args:
        settings: `r` (rank), `alpha` (their sum is scaled by alpha / r), and what else
            `peft.LoraConfig` takes, such as `target_modules`.

    Raises:
        ImportError: peft is not installed.
        ValueError, TypeError: what peft refuses.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("model.lora needs peft: pip install -e '.[lora]'") from error
    given = {"target_modules": "all-linear", **settings}
    if "alpha" in given:
        given["lora_alpha"] = given.pop("alpha")
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(**given), model)
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was there."""
    return any(_is_adapter(name) for name, _ in model.named_parameters())


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before training, for as long."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _plain(name: str) -> str:
    """Of a weight, in the architecture without adapters."""
    return name.replace(f"{_BASE}.", ".")


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_magnitude_vector")
    }
