"""Estimators of KL(policy || reference) from sampled tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from matchtir.policy.losses.ratios import safe_exp
from matchtir.utils.options import check_option

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(
    logprobs: Float[Tensor, "B L"], reference: Float[Tensor, "B L"], estimator: str
) -> Float[Tensor, "B L"]:
    """Per-token estimate with ``d = log pi - log pi_ref`` (Schulman 2020).

    k1: ``d``, unbiased, of any sign; k2: ``d^2 / 2``, biased; k3: ``exp(-d) + d - 1``, unbiased
    and never negative.
    """
    check_option("kl_estimator", estimator, ESTIMATORS)
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return safe_exp(-difference) + difference - 1
