"""Packing: the sequences of a batch in a single row, without padding and each prompt once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "packed_sdpa"  # its name among the attention functions of transformers


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


class Segment(NamedTuple):
    """Tokens that stand together in the row: a sequence, a shared prompt, or what follows on it."""

    row: int  # of the batch
    first: int
    end: int  # its tokens are columns first to end - 1
    prompt: int | None  # the number of the segment that it follows on

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.end - self.first


class Layout(NamedTuple):
    """Where the N computed tokens come from, and where each token of the batch is computed."""

    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]
    places: Int[Tensor, "B L"]  # in the row; 0 for padding
    segments: list[Segment]


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    attention_mask: Tensor | None,
    segments: Sequence[Segment] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each segment to its prompt and itself; without segments that of "sdpa".

    Without segments there may be a cache (K > N), as where the model samples; with them K is N.
    A mask over the whole row would do the work of all pairs of tokens, and take its memory. Segment
    by segment it is small, and where there is no prompt the kernels without a mask apply.
    """
    given = {"scale": settings.get("scaling"), "dropout_p": settings.get("dropout", 0.0)}
    if segments is None:
        if attention_mask is not None and key.shape[1] < query.shape[1]:
            return grouped_attention(query, key, value, attention_mask, **given), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    lengths = [segment.length for segment in segments]
    # Split, not sliced: the gradient of every slice would be as long as the row.
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    outputs = []
    for number, segment in enumerate(segments):
        own_key, own_value = keys[number], values[number]
        if segment.prompt is None:
            output, _ = sdpa_attention_forward(
                module, queries[number], own_key, own_value, None, **settings
            )
        else:
            own_key = torch.cat((keys[segment.prompt], own_key), dim=2)
            own_value = torch.cat((values[segment.prompt], own_value), dim=2)
            shape = (1, 1, segment.length, own_key.shape[2])
            mask = query.new_ones(shape, dtype=torch.bool).tril(lengths[segment.prompt])
            output = grouped_attention(queries[number], own_key, own_value, mask, **given)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def grouped_attention(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    mask: Tensor,
    **settings: Any,
) -> Float[Tensor, "B N H D"]:
    """Attention with a mask, where several query heads share one key head.

    The heads that share it stand one behind the other as queries of one head, so that no key is
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


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_packed_attention(model: PreTrainedModel, who: str) -> None:
    """Make a model use `packed_attention`.

    Raises:
        ValueError: it has other layers than those of full attention, or other kernels than
            PyTorch's; `who` needs these.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    window = None if kinds else getattr(config, "sliding_window", None)
    if kinds - {"full_attention"} or window:
        found = sorted(kinds) or [f"sliding_window={window}"]
        raise ValueError(f"{who} needs full attention in every layer, found {found}")
    if config._attn_implementation not in ("sdpa", ATTENTION):
        raise ValueError(f"{who} needs attn_implementation=sdpa, not {config._attn_implementation}")
    model.set_attn_implementation(ATTENTION)


def layout(
    input_ids: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
) -> Layout:
    """The row: sequence after sequence, a prompt that several have before the first of them."""
    numbers, shared = (column.tolist() for column in shared_prefixes(input_ids, scored))
    segments: list[Segment] = []
    prompts: dict[int, int] = {}  # segments by their number among the shared ones
    for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
        common, number = shared[row], numbers[row]
        if common and number not in prompts:
            prompts[number] = len(segments)
            segments.append(Segment(row, 0, common, None))
        if length > common:
            segments.append(Segment(row, common, length, prompts[number] if common else None))
    rows = torch.cat([torch.full((segment.length,), segment.row) for segment in segments])
    columns = torch.cat([torch.arange(segment.first, segment.end) for segment in segments])
    places = torch.zeros(input_ids.shape, dtype=torch.int64)
    places[rows, columns] = torch.arange(len(rows))
    for row, common in enumerate(shared):
        if common:
            places[row, :common] = places[segments[prompts[numbers[row]]].row, :common]
    device = input_ids.device
    return Layout(rows.to(device), columns.to(device), places.to(device), segments)


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
