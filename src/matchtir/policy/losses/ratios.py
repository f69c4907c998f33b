"""Importance ratios between two policies: per token, turn or sequence."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir.policy.losses.weights import spread_turns, turn_sums
from matchtir.utils.options import check_option

RATIOS = ("token", "turn", "sequence")
_LARGEST_EXPONENT = 20.0  # e^20 is far outside any clip range and far inside float32


def safe_exp(exponent: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """exp, held to e^±20 so that one absurd token cannot turn the loss into inf or nan."""
    return exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp()


def log_ratios(
    difference: Float[Tensor, "B L"],
    sampled: Bool[Tensor, "B L"],
    turn_index: Int[Tensor, "B L"],
    level: str,
) -> Float[Tensor, "B L"]:
    """Log-ratio at every sampled token, 0 elsewhere, from ``log pi - log pi_old`` per token.

    ``token``: its own; ``turn`` and ``sequence``: the mean over the sampled tokens of its turn or
    sequence, a geometric mean of ratios (GSPO, 2507.18071).
    """
    check_option("ratio", level, RATIOS)
    difference = difference * sampled
    if level == "token":
        return difference
    if level == "turn":
        tokens = turn_sums(sampled.to(difference.dtype), turn_index).clamp(min=1)
        return spread_turns(turn_sums(difference, turn_index) / tokens, turn_index)
    tokens = sampled.sum(dim=1, keepdim=True).clamp(min=1)
    return difference.sum(dim=1, keepdim=True) / tokens * sampled
