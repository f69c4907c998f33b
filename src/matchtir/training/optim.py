"""Optimizers with their learning-rate schedules, as the modules take them; Muon in 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from matchtir.utils.options import check_at_least, check_option

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, as in `torch.optim.Muon`; 5 steps of it


class Scheduled(NamedTuple):
    """An optimizer and the schedule that steps once per iteration."""

    optimizer: torch.optim.Optimizer
    schedule: LambdaLR


OptimizerFactory = Callable[[nn.Module, int], list[Scheduled]]  # (policy, iterations of the run)


class AdamW:
    """AdamW on every trained parameter, made for a policy and a run of so many iterations.

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
        self.schedule = Schedule(warmup, decay)
        self.settings: Any = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}

    def __call__(self, policy: nn.Module, iterations: int) -> list[Scheduled]:
        """The optimizer of `policy` for a run of so many iterations."""
        trained = [each for each in policy.parameters() if each.requires_grad]
        return [self.schedule(torch.optim.AdamW(trained, **self.settings), iterations)]


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
        self.schedule = Schedule(warmup, decay)
        self.matrix_lr = matrix_lr
        self.lr = lr

    def __call__(self, policy: nn.Module, iterations: int) -> list[Scheduled]:
        """The optimizers of `policy`; adapters are matrices alone, and have Muon alone."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in policy.named_parameters():
            is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            if parameter.requires_grad:
                (matrices if is_matrix else others).append(parameter)
        optimizers: list[torch.optim.Optimizer] = [Muon(matrices, self.matrix_lr)]
        if others:
            settings: Any = {"betas": (0.9, 0.95), "weight_decay": 0.0}
            optimizers.append(torch.optim.AdamW(others, lr=self.lr, **settings))
        return [self.schedule(optimizer, iterations) for optimizer in optimizers]


class Schedule:
    """The learning rate over the iterations of a run; see `AdamW`."""

    def __init__(self, warmup: int, decay: str) -> None:
        check_option("decay", decay, ("constant", "linear"))
        check_at_least(0, warmup=warmup)
        self.warmup = warmup
        self.linear = decay == "linear"

    def __call__(self, optimizer: torch.optim.Optimizer, iterations: int) -> Scheduled:
        """The optimizer with its schedule."""

        def factor(iteration: int) -> float:
            rise = min(1.0, (iteration + 1) / (self.warmup + 1))
            return rise * max(0.0, 1 - iteration / iterations) if self.linear else rise

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

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every matrix that has a gradient; the closure, if given, computes them."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group["lr"], group["momentum"])
        return loss

    @torch.no_grad()
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
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if tall else found
