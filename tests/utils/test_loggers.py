"""The table that every run has, W&B, which only looks on, and the messages that are kept out."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

from matchtir.utils.loggers import CsvLogger, WandbLogger, quiet
from matchtir.utils.run_folder import read_metrics


def write(folder: Path, *rows: tuple[int, dict[str, float]], resume: int | None = None) -> str:
    logger = CsvLogger(folder)
    if resume is not None:
        logger.resume(resume)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    return logger.path.read_text()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        # Metrics of a step share a row, a new metric adds a column.
        (
            [(0, {"a": 1.5}), (1, {"a": 2.0}), (1, {"b": 3}), (2, {"a": 4.0})],
            "step,a,b\n0,1.5,\n1,2.0,3\n2,4.0,\n",
        ),
        ([(0, {"a": 1.5, "epoch": 0})], "step,a\n0,1.5\n"),  # Lightning adds it
        (
            [(0, {"a": 1.0, "b": 0.123456789}), (0, {"b": 1.0}), (1, {"a": 2.0})],
            "step,a,b\n0,1.0,1.0\n1,2.0,\n",
        ),
        # An earlier step takes nothing away.
        (
            [(1, {"a": 1.0}), (2, {"a": 2.0}), (1, {"b": 3.0}), (0, {"b": 4.0}), (3, {"a": 5.0})],
            "step,a,b\n0,,4.0\n1,1.0,3.0\n2,2.0,\n3,5.0,\n",
        ),
    ],
)  # fmt: skip
def test_the_table(tmp_path: Path, rows: list[tuple[int, dict[str, float]]], text: str) -> None:
    assert write(tmp_path, *rows) == text


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": float(step)}, step)
        assert len(logger.path.read_text().splitlines()) == step + 2


@given(
    iterations=st.integers(1, 12),
    killed_after=st.integers(0, 11),
    back_to=st.integers(0, 11),
    validate_every=st.integers(1, 5),
)
def test_a_resumed_file_equals_an_unbroken_one(
    tmp_path_factory: pytest.TempPathFactory,
    iterations: int,
    killed_after: int,
    back_to: int,
    validate_every: int,
) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    for step in range(iterations):
        rows.append((step, {"train/a": step / 7}))
        if step % validate_every == 0:
            rows.append((step, {"val/a": step / 3}))
    unbroken = write(tmp_path_factory.mktemp("unbroken"), *rows)
    folder = tmp_path_factory.mktemp("resumed")
    seen = rows[: killed_after + 1]
    write(folder, *seen)
    resumed_at = min(back_to, seen[-1][0])
    again = [row for row in rows if row[0] >= resumed_at]
    assert write(folder, *again, resume=resumed_at - 1) == unbroken


def test_the_last_row_of_a_file_gets_what_it_lacks(tmp_path: Path) -> None:
    write(tmp_path, (1, {"a": 1.0}), (2, {"a": 2.0}))
    assert write(tmp_path, (2, {"test": 3.0})) == "step,a,test\n1,1.0,\n2,2.0,3.0\n"


def test_a_line_cut_short_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path, (9, {"a": 1.0}), (10, {"a": 2.0}))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[: -len("0,2.0\n")])  # leaves "1" of step 10
    assert write(tmp_path, (10, {"a": 2.0})) == "step,a\n9,1.0\n10,2.0\n"


def test_curves_leave_out_blanks_and_keep_what_is_not_finite(tmp_path: Path) -> None:
    write(tmp_path, (0, {"a": float("nan"), "b": float("inf")}), (1, {"c": 2.0}))
    curves = read_metrics(tmp_path / "metrics.csv")
    assert np.isnan(curves.pop("a")[1]).all()
    assert curves == {"b": ([0], [float("inf")]), "c": ([1], [2.0])}


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="first column must be `step`"):
        CsvLogger(tmp_path)


def test_a_row_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        CsvLogger(tmp_path).log_metrics({"a": 1.0})


# -- W&B ------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    logger = WandbLogger(str(tmp_path), "p")
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=3)
    assert run.logged == [{"train/loss": 1.0, "iteration": 3}]
    run.broken = True
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"train/loss": 2.0}, step=4)
        logger.log_table("t", ["a"], [[1]], step=4)
        logger.close()
    assert logger.failures == 2 and run.finished
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and "no route to host" in said[0] and "2 failures" in said[1]


@pytest.mark.parametrize("failing", [["online"], ["online", "offline"]])
def test_without_a_network_at_the_start_it_logs_offline_or_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: list[str]
) -> None:
    run, modes = Run(), []

    def init(mode: str, **_: Any) -> Run:
        modes.append(mode)
        if mode in failing:
            raise TimeoutError("90 s")
        return run

    monkeypatch.setattr(wandb, "init", init)
    logger = WandbLogger(str(tmp_path), "p")
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.close()
    assert modes == ["online", "offline"] and logger.failures == len(failing)
    assert len(run.logged) == (3 if failing == ["online"] else 0)


def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    monkeypatch.setattr(wandb, "init", lambda **made: ids.append(made["id"]) or Run())
    for _ in range(2):
        WandbLogger(str(tmp_path), "p").log_metrics({"a/b": 1.0}, step=1)
    WandbLogger(str(tmp_path / "other"), "p").log_metrics({"a/b": 1.0}, step=1)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.slow
def test_an_offline_run_has_everything_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(str(tmp_path), "p", group="g", name="g seed=2", tags=["g"], offline=True)
    logger.log_hyperparams({"seed": 2, "module": {"seed": 2, "lr": 0.1}, "paths": {"x": "y"}})
    for step in (1, 2):
        logger.log_metrics({"train/reward": step / 2}, step=step)
        logger.log_histograms({"credit/rewards": [0.0, 1.0]}, step)
    logger.log_table("samples", ["text", "reward"], [["x" * 100_000, 0.5]], step=2)
    run = logger.experiment
    assert (run.name, run.group, run.tags) == ("g seed=2", "g", ("g",))
    assert run.config["module"] == {"seed": 2, "lr": 0.1}
    assert run.summary["train/reward"] == 1.0 and run.summary["iteration"] == 2
    logger.close()
    wandb.teardown()  # as at the end of a process: only then is everything on disk
    assert logger.failures == 0
    assert len([*tmp_path.glob("wandb/offline-run-*/run-*.wandb")]) == 1
    (table,) = tmp_path.rglob("media/table/samples_*.table.json")
    assert json.loads(table.read_text())["data"] == [["x" * 100_000, 0.5]]


# -- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [True, False])
def test_listed_messages_are_silent_and_bars_are_for_terminals(monkeypatch, watched):
    transformers_logging.enable_progress_bar()
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched, raising=False)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        warnings.warn(
            "`isinstance(treespec, LeafSpec)` is deprecated, use ...", FutureWarning, stacklevel=2
        )
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=2)
    assert transformers_logging.is_progress_bar_enabled() == watched
    transformers_logging.enable_progress_bar()
    assert [str(warning.message) for warning in heard] == ["something else is deprecated"]
