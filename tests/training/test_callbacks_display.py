"""Progress, curves and traces, driven by a real Trainer."""

import io
import json
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from matchtir.training.callbacks.display import Curves, Progress
from matchtir.training.callbacks.traces import Traces
from matchtir.utils.loggers import CsvLogger
from tests.training import training_parts as parts

BATCHES = 5


class Toy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("train/reward", float(batch_idx))
        self.log_dict({"time/rollout": 3.0, "time/update": 1.0})

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/solve_f1", 0.25)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(BATCHES, 1))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1, 1))


def fit(folder: Path, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        val_check_interval=2,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=CsvLogger(folder),
        callbacks=list(callbacks),
    )
    trainer.fit(Toy())
    return trainer


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=20)  # lines are never wrapped
    fit(tmp_path, Progress(every_n_iterations=3, console=console))
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "iteration 2/5  val Solve-F1 0.250",
        "iteration 3/5  reward 2.000  rollout 75%  update 25%",
        "iteration 4/5  val Solve-F1 0.250",
        "iteration 5/5  reward 4.000  rollout 75%  update 25%",
    ]


def test_in_a_terminal_progress_is_a_live_display(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    fit(tmp_path, Progress("a run", console=console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a run  iteration 5/5" in shown
    assert "reward" in shown and "4.000" in shown and "val Solve-F1" in shown
    assert "rollout 75%" in shown


def test_the_display_is_closed_when_training_fails(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise RuntimeError("out of luck")

    console = Console(file=io.StringIO(), force_terminal=True)
    progress = Progress(console=console)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path, progress, Fail())
    assert progress._live is None


def test_curves_are_drawn_during_and_at_the_end(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            if (tmp_path / "curves.png").exists():
                drawn.append(trainer.fit_loop.total_batch_idx)

    fit(tmp_path, Curves(str(tmp_path), every_n_iterations=3), Look())
    assert drawn == [3, 4]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_traces_of_the_first_and_every_nth_iteration(tmp_path: Path) -> None:
    traces = Traces(str(tmp_path / "traces"), every_n_iterations=2, groups=1)
    parts.fit(parts.policy_gradient(), tmp_path, iterations=5, callbacks=[traces])
    files = sorted(path.name for path in (tmp_path / "traces").iterdir())
    assert files == [f"iteration_00000{number}.jsonl" for number in (1, 2, 4)]
    lines = (tmp_path / "traces" / "iteration_000004.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["policy_version"] for record in records] == [4] * 4
    assert records[0]["total"] == 2.0
    assert records[0]["turns"][0]["calls"][0]["gold"] == 0


@pytest.mark.parametrize("make", [Progress, lambda **k: Curves("f", **k), Traces])
def test_intervals_must_be_positive(make: type) -> None:
    arguments = {"folder": "f"} if make is Traces else {}
    with pytest.raises(ValueError, match="every_n_iterations=0"):
        make(**arguments, every_n_iterations=0)
