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
from torch.func import functional_call
from transformers import PreTrainedModel

from matchtir.policy.policy import Policy

WEIGHTS_FILE = "model.safetensors"
MERGEABLE = (  # settings of peft with which the weights are those of the base and a product
    *("r", "alpha", "lora_alpha", "use_rslora", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
)
_ADAPTER = "default"  # peft's name of the only one
_BASE = ".base_layer"


def full_weights(policy: nn.Module, checked: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight, by the names of the Hugging Face model, one at a time.

    A sharded weight is put together from all processes, so that every process must iterate to the
    end. Tied weights come once for each of their names: an engine that misses one of them would
    keep its old value without a word. Adapters are merged into the weights, which are then in 32
    bits: in fewer, the small changes of early training would be lost before the receiver rounds.

    Args:
        checked: compare each merged weight with what its layer computes.

    Raises:
        TypeError: not a `Policy`.
        RuntimeError: a layer computes something else than its merged weight.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"expected a Policy, got {type(policy).__name__}")
    adapted = _adapted(policy.model)
    for name, value in policy.model.state_dict().items():
        if _is_adapter(name):
            continue
        value = full_tensor(value.detach())
        layer = adapted.get(name.removesuffix(f"{_BASE}.weight"))
        if layer is not None and name.endswith(f"{_BASE}.weight"):
            value = value.to(layer.lora_A[_ADAPTER].weight.device)  # shards may lie on the host
            if checked and not _computes_as_merged(layer, value):
                raise RuntimeError(f"{name}: the merged weight is not what was trained")
            value = _merged(layer, value)
        yield _plain(name), value


@torch.no_grad()
def _merged(layer: Any, weight: Tensor) -> Tensor:
    """The weight of a layer with its adapter, in 32 bits."""
    return weight.float() + layer.get_delta_weight(_ADAPTER)


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
        ValueError, TypeError: what peft refuses, and what cannot be merged into weights (DoRA, for
            one) or would not begin as the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("model.lora needs peft: pip install 'matchtir[lora]'") from error
    if others := ", ".join(settings.keys() - MERGEABLE):
        raise ValueError(f"model.lora: {others} cannot be merged; of {', '.join(MERGEABLE)}")
    given = {"target_modules": "all-linear", **settings}
    if "alpha" in given:
        given["lora_alpha"] = given.pop("alpha")
    embeddings = model.get_input_embeddings().weight
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(**given), model)
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    for name, layer in _adapted(model).items():
        if layer.get_base_layer().weight is embeddings:
            raise ValueError(f"model.lora: {name} shares its weight with the embeddings")


@torch.no_grad()
def _computes_as_merged(layer: Any, weight: Tensor) -> bool:
    """Whether a layer with this weight computes with its merged weight, up to rounding."""
    states = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0))
    states, training = states.to(weight), layer.training
    bias = layer.get_base_layer().bias
    base = {"weight": weight} | ({} if bias is None else {"bias": full_tensor(bias)})
    given = {f"{_BASE.strip('.')}.{name}": value for name, value in base.items()}
    found = functional_call(layer.eval(), given, states).float()
    layer.train(training)
    expected = nn.functional.linear(states.float(), _merged(layer, weight))
    if bias is not None:
        expected += base["bias"].float()
    rounding = torch.finfo(weight.dtype).eps * expected.abs().max()
    return bool((found - expected).abs().max() <= 8 * rounding + 1e-4)


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was there."""
    return bool(adapter_parameters(model))


def adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The weights of adapters, which are small: every process has all of them."""
    return {parameter for name, parameter in model.named_parameters() if _is_adapter(name)}


def adapter_dropout(model: nn.Module) -> float:
    """The largest probability with which adapters drop their inputs."""
    layers = (each for layer in _adapted(model).values() for each in layer.lora_dropout.values())
    return max((getattr(each, "p", 0.0) for each in layers), default=0.0)


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
