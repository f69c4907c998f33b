"""What separates the policy that sampled from the policy that is trained, and its correction.

Both have the same weights, but not the same arithmetic: the sampler's log-probabilities differ
from the trainer's, so that the gradient is off-policy before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from matchtir.policy.losses.ratios import safe_exp


class MismatchCorrection:
    """Importance weights ``pi_old / pi_sampler`` of the trained policy against its sampler.

    Args:
        cap: token weights are truncated to it (truncated importance sampling, Yao et al. 2025);
            None: no weights.
        sequence_range: (low, high): a sequence whose geometric mean weight lies outside is taken
            out of the surrogate; None: none is.
    """

    def __init__(
        self, cap: float | None = 2.0, sequence_range: Sequence[float] | None = None
    ) -> None:
        if cap is not None and cap < 1:
            raise ValueError(f"cap={cap} must be at least 1")
        if sequence_range is not None and not 0 < sequence_range[0] < 1 < sequence_range[1]:
            raise ValueError(f"sequence_range={tuple(sequence_range)} must enclose 1")
        self.cap = cap
        self.sequence_range = sequence_range

    def __call__(
        self, difference: Float[Tensor, "B L"], sampled: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L"], dict[str, Bool[Tensor, "B L"]]]:
        """Factors of the surrogate from ``log pi_old - log pi_sampler``, and what they changed."""
        factors = torch.ones_like(difference)
        changed: dict[str, Bool[Tensor, "B L"]] = {}
        if self.cap is not None:
            ratio = safe_exp(difference)
            factors = ratio.clamp(max=self.cap)
            changed["mismatch_truncated"] = sampled & (ratio > self.cap)
        if self.sequence_range is not None:
            low, high = self.sequence_range
            tokens = sampled.sum(dim=1, keepdim=True).clamp(min=1)
            mean = safe_exp((difference * sampled).sum(dim=1, keepdim=True) / tokens)
            outside = (mean < low) | (mean > high)
            factors = factors.masked_fill(outside, 0.0)
            changed["mismatch_masked"] = sampled & outside
        return factors, changed
