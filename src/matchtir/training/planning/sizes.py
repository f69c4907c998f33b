"""How large a model is, read off its architecture: no weights are made or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of parameters, and the widths that memory and time depend on."""

    parameters: int
    layer_parameters: int  # of one decoder layer
    layers: int
    hidden: int
    query_width: int  # heads times head dimension
    key_value_width: int  # the same of the key-value heads
    feed_forward: int
    vocabulary: int

    @property
    def outer_parameters(self) -> int:
        """Everything outside the decoder layers: embeddings, output layer, last norm."""
        return self.parameters - self.layers * self.layer_parameters


def model_size(config: PreTrainedConfig) -> ModelSize:
    """The size of the causal language model that transformers builds from `config`.

    It is built on the meta device, where tensors have shapes and no memory.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = model.base_model.layers
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=_count(model),
        layer_parameters=_count(layers[0]),
        layers=len(layers),
        hidden=text.hidden_size,
        query_width=text.num_attention_heads * head_dim,
        key_value_width=text.num_key_value_heads * head_dim,
        feed_forward=text.intermediate_size,
        vocabulary=text.vocab_size,
    )


def architecture(name_or_path: str, table: Mapping[str, Mapping[str, Any]]) -> PreTrainedConfig:
    """The config of a model: that in its folder, else that of the table under its name.

    Raises:
        ValueError: there is neither; nothing is looked up in a network.
    """
    if Path(name_or_path, "config.json").is_file():
        return AutoConfig.from_pretrained(name_or_path)
    if name_or_path not in table:
        raise ValueError(
            f"the size of {name_or_path} is not known: it is no folder with a config.json, and "
            f"plan.models has only {', '.join(table)}"
        )
    return AutoConfig.for_model(**table[name_or_path])


def _count(module: torch.nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
