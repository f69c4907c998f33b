"""Clip-Cov and KL-Cov: the few tokens that take most of the entropy are held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from matchtir.utils.options import UserError
from matchtir.utils.processes import all_gather, rank


@dataclass(frozen=True)
class CovarianceControl:
    """Chooses a `share` of the sampled tokens of a mini-batch by their covariance (2505.22617).

    Entropy falls by the covariance of log-probabilities and advantages, and few tokens make up
    most of it: ``cov_l = (log pi_l - mean log pi) (A_l - mean A)``, means over these tokens.

    * Clip-Cov: at random among those whose covariance is within `bounds`; they leave the surrogate.
    * KL-Cov: those of the largest covariance; each pays ``coefficient |log pi / pi_old|``, which is
      what the authors' code has for KL(pi_old, pi). It is 0 before the first step of an iteration.

    log pi is the sampler's, which is known before the mini-batch is cut into micro-batches; the
    source takes the policy's, and leaves tokens out of Clip-Cov that are clipped anyway.

    Args:
        share: of the tokens; at least one is chosen.
        bounds, coefficient: the one that is given says which of the two it is.

    Raises:
        UserError: options out of range.
    """

    share: float = 2e-4
    bounds: Sequence[float] | None = None
    coefficient: float | None = None

    def __post_init__(self) -> None:
        low, high = self.bounds or (0.0, 1.0)
        price = 1.0 if self.coefficient is None else self.coefficient
        if (self.bounds is None) == (self.coefficient is None):
            raise UserError("covariance: either bounds (Clip-Cov) or a coefficient (KL-Cov)")
        if not 0 < self.share <= 1 or low >= high or price <= 0:
            raise UserError(f"{self}: 0 < share <= 1, bounds rise, the coefficient is positive")

    def choose(
        self,
        logprobs: Float[Tensor, "B L"],
        advantages: Float[Tensor, "B L"],
        sampled: Bool[Tensor, "B L"],
        seed: int,
    ) -> Bool[Tensor, "B L"]:
        """The tokens held back, among those of all processes; each must call this with its own."""
        parts = all_gather((logprobs[sampled].cpu(), advantages[sampled].cpu()))
        centred = [each - each.mean() for each in map(torch.cat, zip(*parts, strict=True))]
        covariances = centred[0] * centred[1]
        count = min(max(1, int(self.share * len(covariances))), len(covariances))
        if self.bounds is None:
            places = covariances.topk(count).indices
        else:
            low, high = self.bounds
            # In an order that does not depend on which process has which tokens.
            order = covariances.argsort(stable=True)
            within = order[(covariances[order] >= low) & (covariances[order] <= high)]
            generator = torch.Generator().manual_seed(seed)
            places = within[torch.randperm(len(within), generator=generator)[:count]]
        chosen = torch.zeros(len(covariances), dtype=torch.bool)
        chosen[places] = True
        own = chosen.split([len(each) for each, _ in parts])[rank()]
        return torch.zeros_like(sampled).masked_scatter(sampled, own.to(sampled.device))

    def held_back(
        self,
        surrogate: Float[Tensor, "B L"],
        difference: Float[Tensor, "B L"],  # log pi / pi_old
        chosen: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        """The surrogate without the chosen tokens, or less what they pay by `difference`."""
        if self.coefficient is None:
            return surrogate.masked_fill(chosen, 0.0)
        return surrogate - self.coefficient * difference.abs() * chosen
