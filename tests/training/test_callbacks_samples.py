"""What loggers are given beside numbers."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboardX import SummaryWriter

from matchtir.training.callbacks.traces import COLUMNS, Samples
from matchtir.utils.loggers import CsvLogger
from matchtir.utils.run_folder import read_metrics
from tests.training import training_parts as parts


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


def test_the_scores_of_every_test_task(tmp_path: Path) -> None:
    logger = Tables(tmp_path / "tables")
    module = parts.policy_gradient()
    trainer = parts.fit(module, tmp_path, callbacks=[Samples()], loggers=[logger])
    trainer.test(module, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    name, columns, rows, _ = logger.tables[-1]
    assert name == "test/scores_after" and columns[:2] == ["task", "success"]
    assert {row[0]: row[columns.index("solve_f1")] for row in rows} == {
        task: scores["solve_f1"] for task, scores in module.test_scores.items()
    }


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


def test_intervals_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every_n_iterations=0"):
        Samples(every_n_iterations=0)


class Watcher(Callback):
    """Logs as any callback may: by the optimizer's steps, which Lightning counts from 0."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.log("watched/batch", 1.0)


def test_what_a_callback_logs_stands_beside_what_training_logs(tmp_path: Path) -> None:
    module = parts.policy_gradient()
    parts.fit(module, tmp_path, iterations=4, callbacks=[Watcher(), DeviceStatsMonitor(True)])
    curves = read_metrics(tmp_path / "metrics.csv")
    assert curves["train/reward"][0] == [1, 2, 3, 4]
    assert len(curves["watched/batch"][0]) == 4
    assert any(name.startswith("DeviceStatsMonitor.") for name in curves)
