"""Optimizers with their learning-rate schedules, as the modules take them; Muon in 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from matchtir.utils.options import check_option

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, as in `torch.optim.Muon`
STEPS = 5
EPSILON = 1e-7


class Scheduled(NamedTuple):
    """An optimizer and the schedule that steps once per iteration."""

    optimizer: torch.optim.Optimizer
    schedule: LambdaLR


OptimizerFactory = Callable[[nn.Module, int], list[Scheduled]]  # (policy, iterations of the run)


class AdamW:
    """AdamW on every trained parameter.

    Args:
        lr, betas, weight_decay: as in `torch.optim.AdamW`.
        warmup: iterations of linear warm-up.
        decay: ``constant``, or ``linear`` to 0 at the end of the run.
    """

    def __init__(
        self,
        lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        warmup: int = 0,
        decay: str = "constant",
    ) -> None:
        self.factor = _Factor(warmup, decay)
        self.settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.settings["betas"] = tuple(betas)

    def __call__(self, policy: nn.Module, iterations: int) -> list[Scheduled]:
        """The optimizer of `policy` for a run of so many iterations."""
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        return [self.factor.schedule(torch.optim.AdamW(trained, **self.settings), iterations)]


class MuonAdamW:
    """Muon on the weight matrices of the layers, AdamW on embeddings and norms.

    With AdamW alone the tiny policy stays on the plateau where it has learned the form of a call
    but not yet to copy names into it; Muon leaves the plateau within a few dozen steps.

    Args:
        matrix_lr: of Muon, on the scale of AdamW's learning rates.
        lr: of AdamW.
        warmup, decay: as in `AdamW`.
    """

    def __init__(
        self, matrix_lr: float, lr: float, warmup: int = 0, decay: str = "constant"
    ) -> None:
        self.factor = _Factor(warmup, decay)
        self.matrix_lr = matrix_lr
        self.lr = lr

    def __call__(self, policy: nn.Module, iterations: int) -> list[Scheduled]:
        """The two optimizers of `policy`."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        trained = [each for each in policy.named_parameters() if each[1].requires_grad]
        for name, parameter in trained:
            is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if is_matrix else others).append(parameter)
        optimizers: list[torch.optim.Optimizer] = [Muon(matrices, self.matrix_lr)]
        if others:  # adapters are matrices alone
            optimizers.append(
                torch.optim.AdamW(others, lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)
            )
        return [self.factor.schedule(optimizer, iterations) for optimizer in optimizers]


class _Factor:
    """The factor on the learning rate at an iteration."""

    def __init__(self, warmup: int, decay: str) -> None:
        check_option("decay", decay, ("constant", "linear"))
        if warmup < 0:
            raise ValueError(f"warmup={warmup} must not be negative")
        self.warmup = warmup
        self.linear = decay == "linear"

    def schedule(self, optimizer: torch.optim.Optimizer, iterations: int) -> Scheduled:
        def factor(iteration: int) -> float:
            rise = min(1.0, (iteration + 1) / (self.warmup + 1))
            fall = max(0.0, 1 - iteration / iterations) if self.linear else 1.0
            return rise * fall

        return Scheduled(optimizer, LambdaLR(optimizer, factor))


class Muon(torch.optim.Optimizer):
    """Momentum, whose singular values are all set to about 1 (Jordan et al., 2024).

    Nesterov's variant, without decay.

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
