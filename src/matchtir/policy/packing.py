"""Packing: the sequences of a batch in a single row, without padding and each prompt once."""

from __future__ import annotations

from collections import Counter
from functools import partial
from importlib import import_module
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


class Prefixes(NamedTuple):
    """What each sequence of a batch has in common with others, before its first scored token."""

    number: Int[Tensor, " B"]  # the same for sequences that begin alike
    length: Int[Tensor, " B"]  # tokens; 0 where no other sequence begins so


def shared_prefixes(input_ids: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Prefixes:
    """Find them by their tokens; a sequence without scored tokens shares nothing."""
    lengths = scored.int().argmax(dim=1).tolist()
    begins = [
        ids[:length].tobytes() for ids, length in zip(input_ids.cpu().numpy(), lengths, strict=True)
    ]
    counts = Counter(begins)
    numbers = {begin: number for number, begin in enumerate(counts)}
    shared = [
        length if counts[begin] > 1 else 0 for begin, length in zip(begins, lengths, strict=True)
    ]
    return Prefixes(torch.tensor([numbers[begin] for begin in begins]), torch.tensor(shared))


class Segments(NamedTuple):
    """Arguments of varlen attention; a segment is a sequence, a prompt, or what follows on it."""

    keys: Int[Tensor, " K"]  # positions that each segment sees: its prompt's and its own
    lengths_q: list[int]  # tokens of each segment
    lengths_k: list[int]  # keys of each segment
    cu_seqlens_q: Int[Tensor, " S+1"]  # cumulated, from 0 on, in 32 bits
    cu_seqlens_k: Int[Tensor, " S+1"]


class Layout(NamedTuple):
    """Where the N computed tokens come from, and where each token of the batch is computed."""

    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]
    positions: Int[Tensor, "B L"]  # of each token in the row; 0 for padding
    segments: Segments


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    package: str | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each segment to its prompt and itself; without segments that of "sdpa".

    Without segments there may be a cache (K > N), as where the model samples; with them K is N.
    A mask over the whole row would do the work of all pairs of tokens, and take its memory. On a
    GPU one kernel does all segments, elsewhere each has its own call.

    Args:
        package: of FlashAttention, on a GPU; None: PyTorch's own.
    """
    given = {"scale": settings.get("scaling"), "dropout_p": settings.get("dropout", 0.0)}
    if segments is None:
        if attention_mask is not None and key.shape[1] < query.shape[1]:
            return grouped_attention(query, key, value, attention_mask, **given), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    key, value = (states.index_select(2, segments.keys) for states in (key, value))
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    # Norms compute in 32 bits, and a causal bias keeps autocast from its work.
    query, key, value = (states.to(dtype) for states in (query, key, value))
    if can_use_flash(query, dtype, given["dropout_p"]):
        query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
        return flash(query, key, value, segments, given["scale"], package)[None], None
    # Split, not sliced: the gradient of every slice would be as long as the row.
    parts = zip(
        query.split(segments.lengths_q, dim=2),
        *(states.split(segments.lengths_k, dim=2) for states in (key, value)),
        strict=True,
    )
    outputs = []
    for own, keys, values in parts:
        causal = causal_lower_right(own.shape[2], keys.shape[2])
        outputs.append(
            scaled_dot_product_attention(own, keys, values, causal, **given, enable_gqa=True)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def can_use_flash(query: Tensor, dtype: torch.dtype, dropout: float) -> bool:
    """Whether attention can be FlashAttention's: on a GPU, in half precision, without dropout."""
    return query.is_cuda and dtype != torch.float32 and not dropout


def flash(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "K G D"],
    value: Float[Tensor, "K G D"],
    segments: Segments,
    scale: float | None,
    package: str | None,
) -> Float[Tensor, "N H D"]:
    """Causal attention of all segments, which lie one after the other, aligned at their ends."""
    longest = max(segments.lengths_q), max(segments.lengths_k)
    sizes = segments.cu_seqlens_q, segments.cu_seqlens_k, *longest
    if package is None:
        options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0), "enable_gqa": True}
        output: Any = varlen_attn(query, key, value, *sizes, **options)
    else:
        function = import_module(package).flash_attn_varlen_func
        output = function(query, key, value, *sizes, softmax_scale=scale, causal=True)
    return output


def grouped_attention(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    mask: Tensor,
    **settings: Any,
) -> Float[Tensor, "B N H D"]:
    """Attention with a mask, where several query heads share one key head.

    The heads that share it stand one after the other as queries of one head, so that no key is
    copied: transformers writes every key once per query head as soon as there is a mask, which for
    a cache is more work than the attention itself.

    Args:
        mask: added or boolean, [B, 1, N, K].
        settings: of `scaled_dot_product_attention`.
    """
    batch, heads, length, dimension = query.shape
    groups = key.shape[1]
    output = scaled_dot_product_attention(
        query.reshape(batch, groups, -1, dimension),
        key,
        value,
        attn_mask=mask.repeat(1, 1, heads // groups, 1),
        **settings,
    )
    return output.view(batch, heads, length, dimension).transpose(1, 2)


# Names of transformers' attention functions, and what packs in their place.
PACKED = {
    "sdpa": "packed_sdpa",
    "flash_attention_2": "packed_fa2",
    "flash_attention_3": "packed_fa3",
}
PACKAGES = {"packed_sdpa": None, "packed_fa2": "flash_attn", "packed_fa3": "flash_attn_interface"}
for name, package in PACKAGES.items():
    AttentionInterface.register(name, partial(packed_attention, package=package))
    AttentionMaskInterface.register(name, sdpa_mask)


def use_packed_attention(model: PreTrainedModel, who: str) -> None:
    """Make a model use `packed_attention`.

    Raises:
        ValueError: it has other layers than those of full attention, or other kernels than
            PyTorch's and those of FlashAttention 2 and 3; `who` needs these.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    window = None if kinds else getattr(config, "sliding_window", None)
    if kinds - {"full_attention"} or window:
        found = sorted(kinds) or [f"sliding_window={window}"]
        raise ValueError(f"{who} needs full attention in every layer, found {found}")
    given = config._attn_implementation
    if given not in PACKED and given not in PACKAGES:
        raise ValueError(f"{who} needs attn_implementation={' or '.join(PACKED)}, not {given}")
    model.set_attn_implementation(PACKED.get(given, given))


def layout(
    input_ids: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
) -> Layout:
    """The row: sequence after sequence, a prompt that several have before the first of them."""
    numbers, shared = (column.tolist() for column in shared_prefixes(input_ids, scored))
    positions = torch.zeros(input_ids.shape, dtype=torch.int64)
    prompts: dict[int, Tensor] = {}  # places by number
    sources: list[tuple[int, int, int]] = []  # row and columns of each segment
    keys: list[Tensor] = []
    end = 0
    for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
        common, number = shared[row], numbers[row]
        if common and number not in prompts:
            prompts[number] = torch.arange(end, end + common)
            sources.append((row, 0, common))
            keys.append(prompts[number])
            end += common
        own = torch.arange(end, end + length - common)
        seen = torch.cat((prompts[number], own)) if common else own
        positions[row, :length] = seen
        if len(own):
            sources.append((row, common, length))
            keys.append(seen)
            end += len(own)
    queries, seen_by = [last - first for _, first, last in sources], [len(each) for each in keys]
    rows = torch.cat([torch.full((last - first,), row) for row, first, last in sources])
    columns = torch.cat([torch.arange(first, last) for _, first, last in sources])
    device = input_ids.device

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    segments = Segments(torch.cat(keys).to(device), queries, seen_by, ends(queries), ends(seen_by))
    return Layout(rows.to(device), columns.to(device), positions.to(device), segments)


def packed_states(
    model: nn.Module, input_ids: Int[Tensor, "B L"], tokens: Layout
) -> Float[Tensor, "N H"]:
    """Last hidden states of the tokens of a layout.

    Args:
        model: the base model, prepared by `use_packed_attention`.
    """
    return model(
        input_ids=input_ids[tokens.rows, tokens.columns][None],
        position_ids=tokens.columns[None],
        # Four dimensions: a mask that is ready, which keeps transformers from building one.
        attention_mask=input_ids.new_zeros(1, 1, 1, 1),
        segments=tokens.segments,
        use_cache=False,
    ).last_hidden_state[0]
