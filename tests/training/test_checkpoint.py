"""A run killed anywhere and resumed from last.ckpt ends like an unbroken one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from matchtir.training.callbacks.checkpoint import LastCheckpoint
from matchtir.utils.loggers import CsvLogger
from tests.training.training_parts import trainer

EPOCHS, BATCHES, VALIDATE_EVERY = 2, 6, 3


class Batches:
    """A loader that resumes inside an epoch."""

    def __init__(self) -> None:
        self.next_batch = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in range(self.next_batch % BATCHES, BATCHES):
            self.next_batch = batch + 1
            yield torch.full((4, 2), float(self.next_batch))

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]


class Toy(LightningModule):
    """Two optimiser steps an iteration, by hand; its score goes up, then down."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)
        self.register_buffer("iterations", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(2):
            loss = (self.layer(batch) - 1.0).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.iterations += 1
        self.log("train/loss", loss)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/score", -(self.iterations - 7.0).abs())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Batches:
        return Batches()

    def val_dataloader(self) -> list[torch.Tensor]:
        return [torch.zeros(1)]


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


class Kill(Checkpoint):  # Lightning runs checkpoint callbacks last: the kill comes after the save
    def __init__(self, hook: str, iterations: int) -> None:
        def kill(trainer: Trainer, *_: Any) -> None:
            if trainer.lightning_module.iterations.item() == iterations:
                raise Killed

        setattr(self, hook, kill)


def run(folder: Path, every_n_iterations: int, kill: Callback | None, resume: bool) -> Trainer:
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=checkpoints,
            filename="best",
            monitor="val/score",
            mode="max",
            enable_version_counter=False,
        ),
        LastCheckpoint(str(checkpoints), every_n_iterations),
    ]
    running = trainer(
        folder,
        max_epochs=EPOCHS,
        val_check_interval=VALIDATE_EVERY,
        enable_checkpointing=True,
        logger=CsvLogger(folder),
        callbacks=callbacks + ([kill] if kill else []),
    )
    last = checkpoints / "last.ckpt"
    running.fit(Toy(), ckpt_path=last if resume and last.exists() else None, weights_only=True)
    return running


Outcome = tuple[str, int, float, list[float]]


def outcome(folder: Path, trainer: Trainer) -> Outcome:
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return (
        (folder / "metrics.csv").read_text(),
        int(best["state_dict"]["iterations"]),
        trainer.checkpoint_callbacks[0].best_model_score.item(),
        trainer.lightning_module.layer.weight.flatten().tolist(),
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("unbroken")
    return outcome(folder, run(folder, 2, kill=None, resume=False))


def test_the_unbroken_run_is_what_the_others_are_held_against(unbroken: Outcome) -> None:
    table, best_iteration, best_score, _ = unbroken
    assert [line.split(",")[0] for line in table.splitlines()[1:]] == [str(i) for i in range(12)]
    assert (best_iteration, best_score) == (6, -1.0)


KILLS = [
    (hook, iterations)
    for hook in ("on_train_batch_start", "on_train_batch_end", "on_validation_start")
    for iterations in (2, 3, 6, 8, 9, 12)
    if hook != "on_validation_start" or iterations % VALIDATE_EVERY == 0
    if hook != "on_train_batch_start" or iterations < EPOCHS * BATCHES
] + [("on_validation_end", 6), ("on_validation_end", 12), ("on_train_end", 12)]


@pytest.mark.parametrize("every_n_iterations", [1, 2])
@pytest.mark.parametrize(("hook", "iterations"), KILLS)
def test_a_killed_and_resumed_run_ends_like_an_unbroken_one(
    tmp_path: Path, unbroken: Outcome, hook: str, iterations: int, every_n_iterations: int
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, every_n_iterations, Kill(hook, iterations), resume=False)
    assert outcome(tmp_path, run(tmp_path, every_n_iterations, None, resume=True)) == unbroken


def test_a_checkpoint_that_another_process_left_unfinished_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, 4, Kill("on_train_batch_end", 4), resume=False)
    new = tmp_path / "checkpoints" / "new.ckpt"
    assert new.exists()
    with pytest.raises(Killed):
        run(tmp_path, 4, Kill("on_train_batch_end", 2), resume=False)
    assert not new.exists()
