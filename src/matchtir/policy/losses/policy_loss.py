"""The clipped policy-gradient objective with its regularisers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir.policy.losses.kl import ESTIMATORS, kl_estimate
from matchtir.policy.losses.mismatch import MismatchCorrection
from matchtir.policy.losses.ratios import RATIOS, log_ratios, safe_exp
from matchtir.policy.losses.weights import AGGREGATIONS, token_weights, weight_total
from matchtir.utils.options import check_option


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Everything the loss reads, per token; entries that were not sampled are ignored."""

    logprobs: Float[Tensor, "B L"]  # of the policy in training, with gradient
    old_logprobs: Float[Tensor, "B L"]  # of the policy at the start of the iteration
    reference_logprobs: Float[Tensor, "B L"] | None
    advantages: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B L"] | None  # of the policy's distribution, with gradient
    sampled: Bool[Tensor, "B L"]
    turn_index: Int[Tensor, "B L"]
    weights: Float[Tensor, "B L"]  # from `token_weights` of the whole mini-batch
    sampler_logprobs: Float[Tensor, "B L"] | None = None  # the engine's own


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss and its metrics, all weighted sums: those of micro-batches add up."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class PolicyLoss:
    """Clipped surrogate, KL to a reference and entropy bonus over sampled tokens.

    ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta KL - alpha H``, summed with the
    weights of the tokens. A conversation's tool results are no sampled tokens: they carry no loss.

    Args:
        clip_low, clip_high: widths of the clip range; DAPO's clip-higher is ``clip_high=0.28``.
        dual_clip: the surrogate of a negative advantage is held above ``dual_clip * A``; None: not.
        ratio: importance ratio of each ``token``, or the geometric mean of its ``turn`` or
            ``sequence`` (GSPO).
        kl_coefficient, kl_estimator: beta, and ``k1``, ``k2`` or ``k3`` of `kl_estimate`.
        entropy_coefficient: alpha.
        aggregation, length: see `token_weights`.
        correction: of the mismatch between sampler and trainer; None: it is only measured.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        ratio: str = "token",
        kl_coefficient: float = 0.001,
        kl_estimator: str = "k3",
        entropy_coefficient: float = 0.001,
        aggregation: str = "seq_mean_token_mean",
        length: int | None = None,
        correction: MismatchCorrection | None = None,
    ) -> None:
        check_option("ratio", ratio, RATIOS)
        check_option("kl_estimator", kl_estimator, ESTIMATORS)
        check_option("aggregation", aggregation, AGGREGATIONS)
        if not 0 < clip_low < 1 or clip_high <= 0:
            raise ValueError(
                f"clip_low={clip_low} must lie in (0, 1), clip_high={clip_high} above 0"
            )
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"dual_clip={dual_clip} must be above 1")
        if (aggregation == "dr_grpo") != (length is not None):
            raise ValueError(f"length={length}: aggregation=dr_grpo needs one, no other takes one")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.ratio = ratio
        self.kl_coefficient = kl_coefficient
        self.kl_estimator = kl_estimator
        self.entropy_coefficient = entropy_coefficient
        self.aggregation = aggregation
        self.length = length
        self.correction = correction

    def weight_total(self, sampled: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
        """What these rows add to the number that the weights of a mini-batch are divided by."""
        return weight_total(sampled, self.aggregation)

    def token_weights(
        self,
        sampled: Bool[Tensor, "B L"],
        turn_index: Int[Tensor, "B L"],
        total: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "B L"]:
        """The weights of a mini-batch in this loss's aggregation."""
        return token_weights(sampled, turn_index, self.aggregation, self.length, total)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Loss of a mini-batch, or of a part of it.

        Raises ValueError where a coefficient is not 0 and its input is missing.
        """
        sampled, weights = inputs.sampled, inputs.weights * inputs.sampled
        surrogate, clipped = self._surrogate(inputs)
        metrics = {"clip_fraction": (weights * clipped).sum()}
        if inputs.sampler_logprobs is not None:
            difference = (inputs.old_logprobs - inputs.sampler_logprobs).where(sampled, 0.0)
            # KL(sampler || trainer) by k3 over the sampler's own tokens
            metrics["mismatch_kl"] = (weights * (safe_exp(difference) - difference - 1)).sum()
            if self.correction is not None:
                factors, changed = self.correction(difference, sampled)
                surrogate = surrogate * factors
                metrics |= {name: (weights * tokens).sum() for name, tokens in changed.items()}
        elif self.correction is not None:
            raise ValueError("a correction needs sampler_logprobs")
        loss = -(weights * surrogate).sum()
        if inputs.reference_logprobs is not None:
            # What was not sampled is masked before exp, so that its junk cannot reach the gradient.
            logprobs = inputs.logprobs.where(sampled, 0.0)
            reference = inputs.reference_logprobs.where(sampled, 0.0)
            kl = (weights * kl_estimate(logprobs, reference, self.kl_estimator)).sum()
            loss = loss + self.kl_coefficient * kl
            metrics["kl"] = kl.detach()
        elif self.kl_coefficient:
            raise ValueError(f"kl_coefficient={self.kl_coefficient} needs reference_logprobs")
        if inputs.entropy is not None:
            entropy = (weights * inputs.entropy.where(sampled, 0.0)).sum()
            loss = loss - self.entropy_coefficient * entropy
            metrics["entropy"] = entropy.detach()
        elif self.entropy_coefficient:
            raise ValueError(f"entropy_coefficient={self.entropy_coefficient} needs entropy")
        metrics["loss"] = loss.detach()
        return LossOutput(loss, metrics)

    def _surrogate(self, inputs: LossInputs) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Clipped surrogate per token, and whether the clip holds it back."""
        difference = (inputs.logprobs - inputs.old_logprobs).where(inputs.sampled, 0.0)
        ratio = safe_exp(log_ratios(difference, inputs.sampled, inputs.turn_index, self.ratio))
        advantages = inputs.advantages
        free = ratio * advantages
        held = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        surrogate = torch.minimum(free, held)
        clipped = held < free
        if self.dual_clip is not None:
            floor = self.dual_clip * advantages
            lifted = (advantages < 0) & (surrogate < floor)
            surrogate = torch.where(lifted, floor, surrogate)
            clipped = clipped | lifted
        return surrogate, clipped & inputs.sampled
