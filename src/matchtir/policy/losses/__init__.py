"""Policy-gradient losses over sampled tokens."""

from matchtir.policy.losses.mismatch import MismatchCorrection
from matchtir.policy.losses.policy_loss import LossInputs, LossOutput, PolicyLoss
from matchtir.policy.losses.weights import spread_turns, token_weights, weight_total

__all__ = [
    "LossInputs",
    "LossOutput",
    "MismatchCorrection",
    "PolicyLoss",
    "spread_turns",
    "token_weights",
    "weight_total",
]
