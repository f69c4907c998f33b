"""Progress, curves, traces, and what loggers are given beside numbers, by a real Trainer."""

import io
import json
import re

import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader

from matchtir.training.callbacks.display import Curves, Progress
from matchtir.training.callbacks.traces import COLUMNS, Samples, Traces
from matchtir.utils.loggers import CsvLogger
from tests.training import training_parts as parts


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.log("train/reward", float(batch_idx))
        self.log_dict({"time/rollout": 3.0, "time/update": 1.0})

    def validation_step(self, batch, batch_idx):
        self.log("val/solve_f1", 0.25)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *callbacks):
    settings = {"val_check_interval": 2, "logger": CsvLogger(folder)}
    batches = [DataLoader(torch.zeros(count, 1)) for count in (5, 1)]  # to train and validate on
    parts.trainer(folder, callbacks=list(callbacks), **settings).fit(Toy(), *batches)


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path):
    console = Console(file=io.StringIO(), width=20)  # lines are never wrapped
    fit(tmp_path, Progress(every_n_iterations=3, console=console))
    shown = console.file.getvalue()
    assert re.sub(r"\d:\d\d:\d\d", "TIME", shown).splitlines() == [
        "iteration 2/5  val Solve-F1 0.250",
        "iteration 3/5  reward 2.000  rollout 75%  update 25%  TIME, TIME left",
        "iteration 4/5  val Solve-F1 0.250",
        "iteration 5/5  reward 4.000  rollout 75%  update 25%  TIME, TIME left",
    ]


def test_in_a_terminal_progress_is_a_live_display(tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    fit(tmp_path, Progress("a run", console=console))
    for words in ("a run  iteration 5/5", "reward", "4.000", "val Solve-F1", "rollout 75%"):
        assert words in console.file.getvalue()


def test_the_display_is_closed_when_training_fails(tmp_path):
    class Fail(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("out of luck")

    console = Console(file=io.StringIO(), force_terminal=True)
    progress = Progress(console=console)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path, progress, Fail())
    assert progress._live is None


def test_curves_are_drawn_during_and_at_the_end(tmp_path):
    drawn = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            if (tmp_path / "curves.png").exists():
                drawn.append(trainer.fit_loop.total_batch_idx)

    fit(tmp_path, Curves(str(tmp_path), every_n_iterations=3), Look())
    assert drawn == [3, 4]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_traces_of_the_first_and_every_nth_iteration(tmp_path):
    traces = Traces(str(tmp_path / "traces"), every_n_iterations=2, groups=1)
    parts.fit(parts.policy_gradient(), tmp_path, iterations=5, callbacks=[traces])
    files = sorted(path.name for path in (tmp_path / "traces").iterdir())
    assert files == [f"iteration_00000{number}.jsonl" for number in (1, 2, 4)]
    lines = (tmp_path / "traces" / "iteration_000004.jsonl").read_text().splitlines()
    assert [json.loads(line)["policy_version"] for line in lines] == [4] * 4


def test_tables_and_histograms_of_an_iteration(tmp_path, monkeypatch):
    board, given = TensorBoardLogger(str(tmp_path), name="", version=""), []
    monkeypatch.setattr(TensorBoardLogger, "experiment", SummaryWriter(str(tmp_path)))
    monkeypatch.setattr(SummaryWriter, "add_histogram", lambda _, *what: given.append(what[0]))
    logger, histograms, tables = CsvLogger(tmp_path / "tables"), [], []
    logger.log_histograms = lambda values, step: histograms.append((step, values))
    logger.log_table = lambda name, columns, rows, step: tables.append((name, columns, rows, step))
    module = parts.policy_gradient()
    parts.fit(module, tmp_path, iterations=4, callbacks=[Samples(2)], loggers=[logger, board])
    assert [step for step, _ in histograms] == [2, 4]
    scored = module.last_rollout
    _, values = histograms[-1]
    assert values["credit/rewards"] == scored.rewards.total.tolist()
    assert len(values["credit/advantages"]) == scored.rewards.turn_mask.sum()
    assert given == 2 * ["credit/rewards", "credit/turn_rewards", "credit/advantages"]

    name, columns, rows, step = tables[-1]
    assert (name, columns, step) == ("samples", list(COLUMNS), 4)
    group = scored.trajectories[: len(parts.ATTEMPTS)]
    assert len(rows) == sum(len(trajectory.turns) for trajectory in group)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["text"] == group[0].turns[0].text and first["turn"] == 1
    assert first["A"] == pytest.approx(first["A_g"] + first["A_l"])
    assert {row[1] for row in rows} == set(range(len(parts.ATTEMPTS)))
