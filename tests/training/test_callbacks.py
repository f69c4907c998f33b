"""Progress, curves, traces, and what loggers are given beside numbers, by a real Trainer."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader

from matchtir.training.callbacks.display import Curves, Progress
from matchtir.training.callbacks.traces import COLUMNS, Samples, Traces
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


def fit(folder: Path, *callbacks: Callback) -> None:
    settings = {"val_check_interval": 2, "logger": CsvLogger(folder)}
    parts.trainer(folder, callbacks=list(callbacks), **settings).fit(Toy())


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=20)  # lines are never wrapped
    fit(tmp_path, Progress(every_n_iterations=3, console=console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.sub(r"\d:\d\d:\d\d", "TIME", shown).splitlines() == [
        "iteration 2/5  val Solve-F1 0.250",
        "iteration 3/5  reward 2.000  rollout 75%  update 25%  TIME, TIME left",
        "iteration 4/5  val Solve-F1 0.250",
        "iteration 5/5  reward 4.000  rollout 75%  update 25%  TIME, TIME left",
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


class Tables(CsvLogger):
    """Keeps what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.histograms: list[tuple[int, dict[str, list[float]]]] = []
        self.tables: list[tuple[str, Any, Any, int]] = []

    def log_histograms(self, histograms: Any, step: int) -> None:
        self.histograms.append((step, histograms))

    def log_table(self, name: str, columns: Any, rows: Any, step: int) -> None:
        self.tables.append((name, columns, rows, step))


def test_tables_and_histograms_of_an_iteration(tmp_path: Path) -> None:
    logger = Tables(tmp_path / "tables")
    module = parts.policy_gradient()
    parts.fit(module, tmp_path, iterations=4, callbacks=[Samples(2)], loggers=[logger])
    assert [step for step, _ in logger.histograms] == [2, 4]
    scored = module.last_rollout
    _, values = logger.histograms[-1]
    assert values["credit/rewards"] == scored.rewards.total.tolist()
    assert len(values["credit/advantages"]) == scored.rewards.turn_mask.sum()

    name, columns, rows, step = logger.tables[-1]
    assert (name, columns, step) == ("samples", list(COLUMNS), 4)
    group = scored.trajectories[: len(parts.ATTEMPTS)]
    assert len(rows) == sum(len(trajectory.turns) for trajectory in group)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["text"] == group[0].turns[0].text and first["turn"] == 1
    assert first["A"] == pytest.approx(first["A_g"] + first["A_l"])
    assert {row[1] for row in rows} == set(range(len(parts.ATTEMPTS)))


def test_tensorboard_gets_the_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(SummaryWriter, "add_histogram", lambda _, *what: given.append(what[::2]))
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    monkeypatch.setattr(TensorBoardLogger, "experiment", SummaryWriter(str(tmp_path)))
    parts.fit(parts.policy_gradient(), tmp_path, callbacks=[Samples()], loggers=[logger])
    assert [name for name, _ in given] == [
        "credit/rewards",
        "credit/turn_rewards",
        "credit/advantages",
    ]
