"""How large a model is: its parameters, and what the backward pass keeps of its layers.

Activations are what autograd keeps of one decoder layer of the Qwen3 and Llama families with fused
attention. The coefficients were measured (tests/scale/test_plan.py repeats the measurement).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

# By bytes of a computed number: bytes per token for each unit of hidden, query, key-value and
# feed-forward width.
SINGLE_LAYER = {4: (24, 16, 16, 16), 2: (26, 10, 10, 8)}


class ModelSize(NamedTuple):
    """Numbers of parameters, and the widths that memory and time depend on."""

    parameters: int
    layer_parameters: int  # of one decoder layer
    layers: int
    hidden: int
    query: int  # heads times head dimension
    key_value: int
    feed_forward: int
    vocabulary: int

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank beside every linear layer of the decoder."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (attention + 3 * (self.hidden + self.feed_forward))


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


def model_size(config: PreTrainedConfig) -> ModelSize:
    """The size of the causal language model that transformers builds from `config`."""
    with torch.device("meta"):  # tensors have shapes and no memory
        model = AutoModelForCausalLM.from_config(config)
    layers, text = model.base_model.layers, config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        sum(each.numel() for each in model.parameters()),  # tied ones once
        sum(each.numel() for each in layers[0].parameters()),
        len(layers),
        text.hidden_size,
        text.num_attention_heads * width,
        text.num_key_value_heads * width,
        text.intermediate_size,
        text.vocab_size,
    )


def activation_bytes(
    size: ModelSize, tokens: int, number_bytes: int, checkpointing: bool, sharded: bool = False
) -> int:
    """What the backward pass of one micro-batch needs of its decoder layers."""
    widths = size.hidden, size.query, size.key_value, size.feed_forward
    layer = sum(n * width for n, width in zip(SINGLE_LAYER[number_bytes], widths, strict=True))
    if checkpointing:
        # The input of each layer: in 32 bits under autocast, while shards are gathered as 16.
        number = number_bytes if sharded else 4
        return tokens * (size.layers * number * size.hidden + layer)
    return tokens * size.layers * layer
