"""Low-rank adapters (LoRA, 2106.09685) beside the frozen weights of a model, by way of `peft`.

They are put into the model itself, which stays the architecture that it was: log-probabilities,
sampling and sharding do not know of them. What leaves the process (an engine, a file) gets merged
weights under the names of the plain architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ADAPTER = "default"  # peft's name of the only one
_BASE = ".base_layer"


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
        raise ImportError("model.lora needs peft: pip install 'matchtir[lora]'") from error
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


def plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight of the plain architecture, adapters merged, DTensors as such.

    A model without adapters gives its state dict.
    """
    adapted = _adapted(model)
    for name, value in model.state_dict().items():
        if _is_adapter(name):
            continue
        layer = adapted.get(name.removesuffix(f"{_BASE}.weight"))
        if layer is not None and name.endswith(f"{_BASE}.weight"):
            with torch.no_grad():
                change = layer.get_delta_weight(_ADAPTER)
                value = (value + change).to(value.dtype)
        yield name.replace(f"{_BASE}.", "."), value


def plain_targets(model: nn.Module) -> dict[str, Tensor]:
    """The frozen weights under the names of the plain architecture, to be written to.

    The adapters are set to zero: what is written is what the model computes with.
    """
    targets = {}
    for name, value in model.state_dict().items():
        if _is_adapter(name):
            value.zero_()
        else:
            targets[name.replace(f"{_BASE}.", ".")] = value
    return targets


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_magnitude_vector")
    }
