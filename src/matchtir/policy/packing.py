"""Packing: the sequences of a batch one behind the other in a single row, without padding."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "packed_sdpa"  # its name among the attention functions of transformers


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G N D"],
    value: Float[Tensor, "B G N D"],
    attention_mask: Tensor | None,
    sequence_lengths: list[int] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence to itself; without `sequence_lengths` that of "sdpa".

    A block-diagonal mask would do the work of all pairs of tokens, and take its memory. Sequence by
    sequence the kernels without a mask apply.
    """
    if sequence_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    of_sequences = (states.split(sequence_lengths, dim=2) for states in (query, key, value))
    outputs = [
        sdpa_attention_forward(module, own_query, own_key, own_value, None, **settings)[0]
        for own_query, own_key, own_value in zip(*of_sequences, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def require_full_attention(model: PreTrainedModel, who: str) -> None:
    """Raise ValueError for a model with other layers, or with other attention than PyTorch's."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    window = None if kinds else getattr(config, "sliding_window", None)
    if kinds - {"full_attention"} or window:
        found = sorted(kinds) or [f"sliding_window={window}"]
        raise ValueError(f"{who} needs full attention in every layer, found {found}")
    if config._attn_implementation not in ("sdpa", ATTENTION):
        raise ValueError(f"{who} needs attn_implementation=sdpa, not {config._attn_implementation}")


def prepare_packing(model: PreTrainedModel) -> None:
    """Make the model use `packed_attention`; raises as `require_full_attention`."""
    require_full_attention(model, "packing")
    model.set_attn_implementation(ATTENTION)


def packed_states(
    model: nn.Module, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "N H"]:
    """Last hidden states of the N real tokens, row by row.

    Args:
        model: the base model, prepared by `prepare_packing`.
        attention_mask: real tokens; the rest, on the right, is left out.
    """
    lengths = attention_mask.sum(dim=1)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return model(
        input_ids=input_ids[attention_mask][None],
        position_ids=positions[attention_mask][None],
        # Four dimensions: a mask that is ready, which keeps transformers from building one.
        attention_mask=input_ids.new_zeros(1, 1, 1, 1),
        sequence_lengths=[length for length in lengths.tolist() if length],
        use_cache=False,
    ).last_hidden_state[0]
