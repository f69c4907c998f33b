"""Muon (Jordan et al., 2024) in 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, as in `torch.optim.Muon`
STEPS = 5
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum, whose singular values are all set to about 1 (Nesterov's variant, without decay).

    `torch.optim.Muon` does this in 16 bits. On a processor without 16-bit arithmetic that was a
    third of a step of fine-tuning, and processes that share a batch agreed to two digits only.

    Args:
        params: matrices.
        lr: on the scale of AdamW's, whose updates have entries of about 0.2 (Liu et al., 2025).
        momentum: share of the earlier gradients.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group["lr"], group["momentum"])
        return loss

    def _update(self, matrix: Tensor, gradient: Tensor, lr: float, momentum: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = orthogonalized(gradient.lerp(buffer, momentum).float())
        matrix.add_(direction.to(matrix.dtype), alpha=-lr * 0.2 * sqrt(max(matrix.shape)))


def orthogonalized(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """The matrix with all singular values near 1 (0.7 to 1.2), by Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if tall else found
