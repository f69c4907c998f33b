"""Policy-gradient losses over sampled tokens: the clipped objective with its regularisers.

A loss is a weighted sum over tokens, so that micro-batches add up to their mini-batch exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir.policy.covariance import CovarianceControl
from matchtir.utils.options import UserError, check_option

AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "dr_grpo", "turn_mean")
PER_TOKEN = ("clip_fraction", "mismatch_kl", "entropy")  # of the metrics: also summed by turn
_LARGEST_EXPONENT = 20.0  # e^20 is far outside any clip range and far inside float32


# -- numbers per turn, and what each token counts --------------------------------------------------


def turns_to_tokens(
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
        tokens = turns_to_tokens(tokens_of_turn, turn_index) * turns
    return mask / (total.clamp(min=1) * tokens.clamp(min=1))


# -- between two policies --------------------------------------------------------------------------


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
    difference = difference * sampled
    if level == "token":
        return difference
    if level == "turn":
        tokens = turn_sums(sampled.to(difference.dtype), turn_index).clamp(min=1)
        return turns_to_tokens(turn_sums(difference, turn_index) / tokens, turn_index)
    tokens = sampled.sum(dim=1, keepdim=True).clamp(min=1)
    return difference.sum(dim=1, keepdim=True) / tokens * sampled


def kl_estimate(
    logprobs: Float[Tensor, "B L"], reference: Float[Tensor, "B L"], estimator: str
) -> Float[Tensor, "B L"]:
    """Per-token estimate with ``d = log pi - log pi_ref`` (Schulman 2020).

    k1: ``d``, unbiased, of any sign; k2: ``d^2 / 2``, biased; k3: ``exp(-d) + d - 1``, unbiased
    and never negative.
    """
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return safe_exp(-difference) + difference - 1


@dataclass(frozen=True)
class MismatchCorrection:
    """Importance weights ``pi_old / pi_sampler`` of the trained policy against its sampler.

    Both have the same weights, but not the same arithmetic: the sampler's log-probabilities differ
    from the trainer's, so that the gradient is off-policy before the first step. What is masked
    leaves the surrogate, not the KL and the entropy.

    Args:
        cap: token weights are truncated to it (truncated importance sampling, Yao et al. 2025);
            None: no weights.
        sequence_range: (low, high): a sequence whose weight lies outside is masked; None: none is.
        sequence_ratio: the weight of a sequence: the ``geometric`` mean of those of its tokens, or
            their ``product``, whose spread grows with the length (Liu et al. 2025).
        token_range: (alpha, beta): a token whose weight lies outside is masked, the others keep
            their weight as it is (IcePop, Ant Group 2025: [0.5, 5]); None: none is.

    Raises:
        UserError: options out of range, or that exclude one another.
    """

    cap: float | None = 2.0
    sequence_range: Sequence[float] | None = None
    sequence_ratio: str = "geometric"
    token_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_option("sequence_ratio", self.sequence_ratio, ("geometric", "product"))
        if self.cap is not None and self.cap < 1:
            raise UserError(f"cap={self.cap} must be at least 1")
        for name in ("token_range", "sequence_range"):
            held = getattr(self, name)
            if held is not None and not 0 < held[0] < 1 < held[1]:
                raise UserError(f"{name}={tuple(held)} must enclose 1")
        if self.cap is not None and self.token_range is not None:
            raise UserError(
                f"cap={self.cap}, token_range={tuple(self.token_range)}: a weight out of range is "
                "either truncated or masked; set one of them to null"
            )
        if self.sequence_range is None and self.sequence_ratio != "geometric":
            raise UserError(f"sequence_ratio={self.sequence_ratio} needs a sequence_range")

    def __call__(
        self, difference: Float[Tensor, "B L"], sampled: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L"], dict[str, Bool[Tensor, "B L"]]]:
        """Factors of the surrogate from ``log pi_old - log pi_sampler``, and what they changed."""
        factors = torch.ones_like(difference)
        changed: dict[str, Bool[Tensor, "B L"]] = {}
        ratio = safe_exp(difference)
        if self.cap is not None:
            factors = ratio.clamp(max=self.cap)
            changed["mismatch_truncated"] = sampled & (ratio > self.cap)
        if self.token_range is not None:
            low, high = self.token_range
            outside = (ratio < low) | (ratio > high)
            factors = ratio.masked_fill(outside, 0.0)
            changed["mismatch_tokens_masked"] = sampled & outside
        if self.sequence_range is not None:
            level = (difference * sampled).sum(dim=1, keepdim=True)
            if self.sequence_ratio == "geometric":
                level = level / sampled.sum(dim=1, keepdim=True).clamp(min=1)
            low, high = map(math.log, self.sequence_range)
            outside = (level < low) | (level > high)
            factors = factors.masked_fill(outside, 0.0)
            changed["mismatch_masked"] = sampled & outside
        return factors, changed


# -- the objective ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Everything the loss reads, per token; entries that were not sampled are ignored."""

    logprobs: Float[Tensor, "B L"]  # of the policy in training, with gradient
    old_logprobs: Float[Tensor, "B L"]  # of the policy at the start of the iteration
    advantages: Float[Tensor, "B L"]
    entropy: Float[Tensor, "B L"] | None  # of the policy's distribution, with gradient
    sampled: Bool[Tensor, "B L"]
    turn_index: Int[Tensor, "B L"]
    weights: Float[Tensor, "B L"]  # from `token_weights` of the whole mini-batch
    reference_logprobs: Float[Tensor, "B L"] | None = None
    sampler_logprobs: Float[Tensor, "B L"] | None = None  # the engine's own
    chosen: Bool[Tensor, "B L"] | None = None  # by `CovarianceControl`


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss and its metrics, all weighted sums: those of micro-batches add up."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]
    per_token: dict[str, Float[Tensor, "B L"]] = field(
        default_factory=dict
    )  # of the metrics in `PER_TOKEN`


@dataclass(frozen=True)
class PolicyLoss:
    """Clipped surrogate, KL to a reference and entropy bonus over sampled tokens.

    ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta KL - alpha H``, summed with the
    weights of the tokens. A conversation's tool results are no sampled tokens: they carry no loss.

    Args:
        clip_low, clip_high: widths of the clip range; DAPO's clip-higher is ``clip_high=0.28``.
            ``clip_low=1``: no lower bound.
        surrogate: ``clip``, as above; ``cispo`` (MiniMax-M1, 2506.13585, eq. 4):
            ``sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi``, sg stopping the gradient: the
            weight is clipped, and every token keeps its gradient.
        dual_clip: the surrogate of a negative advantage is held above ``dual_clip * A``; None: not.
        ratio: importance ratio of each ``token``, or the geometric mean of its ``turn`` or
            ``sequence`` (GSPO).
        kl_coefficient, kl_estimator: beta, and ``k1``, ``k2`` or ``k3`` of `kl_estimate`.
        kl_in: the ``loss``; or the ``reward``, where the module takes beta KL from that of the turn
            (InstructGPT, 2203.02155, eq. 2), and this class has no KL.
        entropy_coefficient: alpha.
        aggregation, length: see `token_weights`.
        correction: of the mismatch between sampler and trainer; None: it is only measured.
        covariance: holds back tokens that take the entropy; None: none.

    Raises:
        UserError: options out of range, or that exclude one another.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio: str = "token"
    kl_coefficient: float = 0.001
    kl_estimator: str = "k3"
    entropy_coefficient: float = 0.001
    aggregation: str = "seq_mean_token_mean"
    length: int | None = None
    correction: MismatchCorrection | None = None
    surrogate: str = "clip"
    kl_in: str = "loss"
    covariance: CovarianceControl | None = None

    def __post_init__(self) -> None:
        check_option("ratio", self.ratio, ("token", "turn", "sequence"))
        check_option("kl_estimator", self.kl_estimator, ("k1", "k2", "k3"))
        check_option("aggregation", self.aggregation, AGGREGATIONS)
        check_option("surrogate", self.surrogate, ("clip", "cispo"))
        check_option("kl_in", self.kl_in, ("loss", "reward"))
        low, high, length = self.clip_low, self.clip_high, self.length
        if not 0 < low <= 1 or high <= 0:
            raise UserError(f"clip_low={low} must lie in (0, 1], clip_high={high} above 0")
        if self.dual_clip is not None and (self.dual_clip <= 1 or self.surrogate != "clip"):
            raise UserError(f"dual_clip={self.dual_clip} must be above 1, with surrogate=clip")
        if (self.aggregation == "dr_grpo") != (length is not None):
            raise UserError(f"length={length}: aggregation=dr_grpo needs one, no other takes one")
        if self.kl_in == "reward" and not self.kl_coefficient:
            raise UserError("kl_in=reward needs a kl_coefficient other than 0")

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Loss of a mini-batch, or of a part of it.

        Raises ValueError where a coefficient is not 0 and its input is missing.
        """
        sampled, weights = inputs.sampled, inputs.weights * inputs.sampled
        surrogate, clipped = self._surrogate(inputs)
        measured: dict[str, Tensor] = {"clip_fraction": clipped.float()}  # per token
        if inputs.sampler_logprobs is not None:
            difference = (inputs.old_logprobs - inputs.sampler_logprobs).where(sampled, 0.0)
            # KL(sampler || trainer) by k3 over the sampler's own tokens
            measured["mismatch_kl"] = safe_exp(difference) - difference - 1
            if self.correction is not None:
                factors, changed = self.correction(difference, sampled)
                surrogate = surrogate * factors
                measured |= changed
        elif self.correction is not None:
            raise ValueError("a correction needs sampler_logprobs")
        if self.covariance is not None:
            if inputs.chosen is None:
                raise ValueError("covariance needs the chosen tokens")
            difference = (inputs.logprobs - inputs.old_logprobs).where(sampled, 0.0)
            surrogate = self.covariance.held_back(surrogate, difference, inputs.chosen)
            measured["covariance_held"] = inputs.chosen
        if inputs.reference_logprobs is not None:
            # What was not sampled is masked before exp, so that its junk cannot reach the gradient.
            logprobs = inputs.logprobs.where(sampled, 0.0)
            reference = inputs.reference_logprobs.where(sampled, 0.0)
            measured["kl"] = kl_estimate(logprobs, reference, self.kl_estimator)
        elif self.kl_coefficient and self.kl_in == "loss":
            raise ValueError(f"kl_coefficient={self.kl_coefficient} needs reference_logprobs")
        if inputs.entropy is not None:
            measured["entropy"] = inputs.entropy.where(sampled, 0.0)
        elif self.entropy_coefficient:
            raise ValueError(f"entropy_coefficient={self.entropy_coefficient} needs entropy")
        sums = {name: (weights * each).sum() for name, each in measured.items()}
        loss = -(weights * surrogate).sum()
        if "kl" in sums:
            loss = loss + self.kl_coefficient * sums["kl"]
        if "entropy" in sums:
            loss = loss - self.entropy_coefficient * sums["entropy"]
        metrics = {name: each.detach() for name, each in {**sums, "loss": loss}.items()}
        per_token = {name: measured[name].detach() for name in PER_TOKEN if name in measured}
        return LossOutput(loss, metrics, per_token)

    def _surrogate(self, inputs: LossInputs) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Surrogate per token, and whether the clip holds it, or its weight, back."""
        difference = (inputs.logprobs - inputs.old_logprobs).where(inputs.sampled, 0.0)
        ratio = safe_exp(log_ratios(difference, inputs.sampled, inputs.turn_index, self.ratio))
        advantages = inputs.advantages
        if self.surrogate == "cispo":
            weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            score = advantages * inputs.logprobs.where(inputs.sampled, 0.0)
            return weight.detach() * score, (weight != ratio) & inputs.sampled
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
