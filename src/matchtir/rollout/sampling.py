"""Drawing one token per row from logits, each row with its own settings and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matchtir.rollout.engine import SamplingParams


def sample_tokens(
    logits: Float[Tensor, "R V"], params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Tokens and their log-probabilities under the distribution that they were drawn from.

    Row r inverts its cumulative distribution at `uniforms[r]`, so that a row's token depends on
    nothing but its own logits and number. Greedy rows take the argmax and report its
    log-probability at temperature 1.
    """
    temperature = torch.tensor([p.temperature or 1.0 for p in params], device=logits.device)
    scores = logits.float() / temperature[:, None]
    if any(p.top_k or p.top_p < 1 for p in params):
        scores = _truncate(scores, params)
    logprobs = scores.log_softmax(dim=-1)
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    mass = cumulative[:, -1:]
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * mass
    tokens = torch.searchsorted(cumulative, points, right=True)
    # The last token with any mass bounds the draw where rounding leaves the point at the very end.
    tokens = torch.minimum(tokens, torch.searchsorted(cumulative, mass.contiguous())).squeeze(-1)
    greedy = [p.temperature == 0 for p in params]
    if any(greedy):
        likeliest = logits.argmax(dim=-1)
        tokens = torch.where(torch.tensor(greedy, device=logits.device), likeliest, tokens)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def _truncate(scores: Float[Tensor, "R V"], params: Sequence[SamplingParams]) -> Tensor:
    """Scores with everything outside top-k and the top-p nucleus at minus infinity."""
    vocabulary = scores.shape[1]
    top_k = torch.tensor([p.top_k or vocabulary for p in params], device=scores.device)[:, None]
    top_p = torch.tensor([p.top_p for p in params], device=scores.device)[:, None]
    ordered, order = scores.sort(dim=-1, descending=True)
    rank = torch.arange(vocabulary, device=scores.device)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    # Rounding takes `before` to 1 in the tail: a row with top_p = 1 keeps it all the same.
    outside = (before >= top_p) & (top_p < 1) & (rank > 0)
    dropped = (rank >= top_k) | outside
    return ordered.masked_fill(dropped, -torch.inf).gather(-1, order.argsort(dim=-1))
