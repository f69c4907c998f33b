"""W&B only looks on: what fails there is counted, and does not reach the run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import wandb

from matchtir.reports.wandb_runs import offline_runs
from matchtir.utils import wandb_logger
from matchtir.utils.wandb_logger import WandbLogger


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")


class Run:
    """A run of W&B that breaks when it is told to."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        if self.broken:
            raise ConnectionError("no route to host")
        self.logged.append(values)

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def finish(self) -> None:
        self.finished = True


def test_a_network_that_fails_under_way_is_counted_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run()
    monkeypatch.setattr(wandb_logger.wandb, "init", lambda **_: run)
    logger = WandbLogger(str(tmp_path), "p")
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=3)
    assert run.logged == [{"train/loss": 1.0, "iteration": 3}]
    run.broken = True
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"train/loss": 2.0}, step=4)
        logger.log_table("t", ["a"], [[1]], 4)
        logger.close()
    assert logger.failures == 2 and run.finished
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and "no route to host" in said[0] and "2 failures" in said[1]


def test_without_a_network_at_the_start_it_logs_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def init(mode: str, **_: Any) -> Run:
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("90 s")
        return Run()

    monkeypatch.setattr(wandb_logger.wandb, "init", init)
    logger = WandbLogger(str(tmp_path), "p")
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert modes == ["online", "offline"] and logger.failures == 1


def test_where_it_cannot_begin_at_all_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def init(**_: Any) -> Run:
        tried.append(1)
        raise RuntimeError("broken installation")

    monkeypatch.setattr(wandb_logger.wandb, "init", init)
    logger = WandbLogger(str(tmp_path), "p")
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.close()
    assert len(tried) == 2  # online and offline, once each


def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    monkeypatch.setattr(wandb_logger.wandb, "init", lambda **made: ids.append(made["id"]) or Run())
    for _ in range(2):
        WandbLogger(str(tmp_path), "p").log_metrics({"a/b": 1.0}, step=1)
    WandbLogger(str(tmp_path / "other"), "p").log_metrics({"a/b": 1.0}, step=1)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.slow
def test_an_offline_run_is_read_back(tmp_path: Path) -> None:
    logger = WandbLogger(str(tmp_path), "p", group="g", name="g seed=2", tags=["g"], offline=True)
    logger.log_hyperparams({"seed": 2, "module": {"seed": 2, "lr": 0.1}, "paths": {"x": "y"}})
    for step in (1, 2):
        logger.log_metrics({"train/reward": step / 2}, step=step)
        logger.log_histograms({"credit/rewards": [0.0, 1.0]}, step)
    text = "x" * 100_000  # a record of several blocks
    logger.log_table("samples", ["text"], [[text]], 2)
    logger.log_hyperparams({"note": text})
    for when in ("before", "after"):
        logger.log_table(f"test/scores_{when}", ["task", "solve_f1"], [["t1", 0.5]], 2)
    logger.close()
    wandb.teardown()  # as at the end of a process: only then is everything on disk
    assert logger.failures == 0

    (run,) = offline_runs([tmp_path])
    assert (run.name, run.group, run.seed) == ("g seed=2", "g", 2)
    assert run.settings == {"module.lr": 0.1, "note": text}
    assert run.curves == {"train/reward": ([1, 2], [0.5, 1.0])}
    assert run.before == run.after == {"t1": {"solve_f1": 0.5}}

    # killed while it wrote: read as far as it goes
    (file,) = tmp_path.rglob("run-*.wandb")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (run,) = offline_runs([tmp_path])
    assert run.curves["train/reward"] == ([1, 2], [0.5, 1.0]) and run.after is None


def test_where_there_is_no_run_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run of W&B"):
        offline_runs([tmp_path])
    file = tmp_path / "offline-run-1" / "run-1.wandb"
    file.parent.mkdir()
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match="not a file of W&B"):
        offline_runs([tmp_path])
