"""What each sampled token counts, and numbers per turn given to tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir.utils.options import check_option

AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "dr_grpo", "turn_mean")


def spread_turns(
    values: Float[Tensor, "B T"], turn_index: Int[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """The value of its turn for every token; 0 where `turn_index` is -1.

    Raises IndexError where a token belongs to a turn that `values` does not have.
    """
    last = int(turn_index.max()) if turn_index.numel() else -1
    if last >= values.shape[1]:
        raise IndexError(f"turn {last} of {values.shape[1]}")
    # A column of zeros in front is turn -1.
    return torch.nn.functional.pad(values, (1, 0)).gather(1, turn_index + 1)


def turn_sums(values: Float[Tensor, "B L"], turn_index: Int[Tensor, "B L"]) -> Float[Tensor, "B T"]:
    """Sums of the token values of each turn; tokens of turn -1 are left out."""
    turns = int(turn_index.max()) + 1 if turn_index.numel() else 0
    sums = values.new_zeros(len(values), max(turns, 1))
    return sums.scatter_add(1, turn_index.clamp(min=0), values * (turn_index >= 0))


def weight_total(sampled: Bool[Tensor, "B L"], aggregation: str) -> Float[Tensor, ""]:
    """What `token_weights` divides by: sampled tokens, or sequences that have any.

    Several processes sum it over all of them, so that every token of the global mini-batch
    counts the same wherever it lies.
    """
    check_option("aggregation", aggregation, AGGREGATIONS)
    counted = sampled if aggregation == "token_mean" else sampled.any(dim=1)
    return counted.sum().float()


def token_weights(
    sampled: Bool[Tensor, "B L"],
    turn_index: Int[Tensor, "B L"],
    aggregation: str,
    length: int | None = None,
    total: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "B L"]:
    """Weight of every token in the loss of a mini-batch, 0 where not sampled.

    Computed once per mini-batch: the loss of any part of it is ``(weights * per_token).sum()``,
    and the parts add up exactly. The weights sum to 1, except with ``dr_grpo``.

    Args:
        sampled: tokens that the policy drew.
        turn_index: turn of every sampled token, -1 elsewhere.
        aggregation: ``token_mean``: all tokens alike; ``seq_mean_token_mean``: the mean over
            sequences of their token means (paper); ``dr_grpo``: sums over tokens, divided by the
            number of sequences and by `length`; ``turn_mean``: the mean over sequences of the mean
            over turns of their token means.
        length: the constant of ``dr_grpo`` (Dr. GRPO, 2503.20783), which alone needs it.
        total: `weight_total` of the global mini-batch; that of these tensors if None.
    """
    if total is None:
        total = weight_total(sampled, aggregation)
    mask = sampled.float()
    if aggregation == "token_mean":
        return mask / total.clamp(min=1)
    if aggregation == "dr_grpo":
        if length is None or length < 1:
            raise ValueError(f"aggregation=dr_grpo needs a positive length, not {length}")
        return mask / (total.clamp(min=1) * length)
    if aggregation == "seq_mean_token_mean":
        tokens = mask.sum(dim=1, keepdim=True)
    else:
        tokens_of_turn = turn_sums(mask, turn_index)
        turns = (tokens_of_turn > 0).sum(dim=1, keepdim=True)
        tokens = spread_turns(tokens_of_turn, turn_index) * turns
    return mask / (total.clamp(min=1) * tokens.clamp(min=1))
