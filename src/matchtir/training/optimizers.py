"""Optimizers with their learning-rate schedules, as the modules take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from matchtir.training.muon import Muon
from matchtir.utils.options import check_option


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
        self.settings: dict[str, Any] = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
        }

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
