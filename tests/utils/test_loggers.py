"""The table that every run has, W&B, which only looks on, and the messages that are kept out."""

import json
import logging
import os
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_module
from transformers.utils import logging as transformers_logging

from matchtir.utils.loggers import CsvLogger, WandbLogger, quiet
from matchtir.utils.run_folder import read_metrics


def write(folder, *rows, resume=None):
    logger, text = CsvLogger(folder), ""
    if resume is not None:
        logger.resume(resume)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
        text = logger.path.read_text()  # on disk at once
        assert text.endswith("\n") and f"\n{step}," in text
    return text


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        # Metrics of a step share a row, a new metric adds a column.
        ([(0, {"a": 1.5}), (1, {"a": 2.0}), (1, {"b": 3}), (2, {"a": 4.0})],
         "step,a,b\n0,1.5,\n1,2.0,3\n2,4.0,\n"),
        ([(0, {"a": 1.5, "epoch": 0})], "step,a\n0,1.5\n"),  # Lightning adds it
        # An earlier step takes nothing away.
        ([(1, {"a": 1.0}), (2, {"a": 2.0}), (1, {"b": 3.0}), (0, {"b": 4.0}), (3, {"a": 5.0})],
         "step,a,b\n0,,4.0\n1,1.0,3.0\n2,2.0,\n3,5.0,\n"),
    ],
)  # fmt: skip
def test_the_table(tmp_path, rows, text):
    assert write(tmp_path, *rows) == text


@given(st.integers(1, 12), st.integers(0, 23), st.integers(0, 11), st.integers(1, 5))
def test_a_resumed_file_equals_an_unbroken_one(tmp_path_factory, iterations, killed, back, every):
    rows = []
    for step in range(iterations):
        rows.append((step, {"train/a": step / 7}))
        rows += [(step, {"val/a": step / 3})] if step % every == 0 else []
    unbroken = write(tmp_path_factory.mktemp("unbroken"), *rows)
    folder = tmp_path_factory.mktemp("resumed")
    seen = rows[: killed + 1]
    write(folder, *seen)
    resumed_at = min(back, seen[-1][0])
    again = [row for row in rows if row[0] >= resumed_at]
    assert write(folder, *again, resume=resumed_at - 1) == unbroken


def test_a_line_cut_short_is_written_anew(tmp_path):
    write(tmp_path, (9, {"a": 1.0}), (10, {"a": 2.0}))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[: -len("0,2.0\n")])  # leaves "1" of step 10
    assert write(tmp_path, (10, {"a": 2.0})) == "step,a\n9,1.0\n10,2.0\n"


def test_curves_leave_out_blanks_and_keep_what_is_not_finite(tmp_path):
    write(tmp_path, (0, {"a": float("nan"), "b": float("inf")}), (1, {"c": 2.0}))
    curves = read_metrics(tmp_path / "metrics.csv")
    assert np.isnan(curves.pop("a")[1]).all()
    assert curves == {"b": ([0], [float("inf")]), "c": ([1], [2.0])}


def test_a_foreign_file_and_a_row_without_a_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="step"):
        CsvLogger(tmp_path).log_metrics({"a": 1.0})
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="first column must be `step`"):
        CsvLogger(tmp_path)


# -- W&B ------------------------------------------------------------------------------------------


def given_to(method):
    """The first arguments of the calls of a Mock."""
    return [call.args[0] for call in method.call_args_list]


@pytest.fixture
def begun(monkeypatch):
    """What `wandb.init` was called with, the runs under "run"; modes in FAILING are refused."""
    calls = []

    def init(**given):
        calls.append(given)
        if given["mode"] in os.environ.get("FAILING", ""):
            raise TimeoutError("90 s")
        given["run"] = Mock(id="abc", summary={})
        return given["run"]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


def test_a_network_that_fails_under_way_is_counted_and_said_once(tmp_path, begun, caplog):
    logger = WandbLogger(str(tmp_path), "p")
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=3)
    run = begun[0]["run"]
    assert given_to(run.log) == [{"train/loss": 1.0, "iteration": 3}]
    run.define_metric.assert_any_call("*", step_metric="iteration")
    run.define_metric.assert_any_call("train/*", step_metric="iteration", summary="min,max,last")
    run.log.side_effect = ConnectionError("no route to host")
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"train/loss": 2.0}, step=4)
        logger.log_metrics({"train/loss": 2.0}, step=5)
        logger.close()
    assert logger.failures == 2 and run.finish.called
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and "no route to host" in said[0] and "2 failures" in said[1]


@pytest.mark.parametrize("failing", ["online", "online offline"])
def test_without_a_network_at_the_start_it_logs_offline_or_gives_up(
    tmp_path, begun, monkeypatch, failing
):
    monkeypatch.setenv("FAILING", failing)
    logger = WandbLogger(str(tmp_path), "p")
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.close()
    assert [each["mode"] for each in begun] == ["online", "offline"]
    assert logger.failures == len(failing.split())
    logged = begun[1]["run"].log.call_count if "run" in begun[1] else 0
    assert logged == (3 if failing == "online" else 0)


def test_its_names_and_variables_are_those_of_wandb(tmp_path, begun, monkeypatch):
    for folder in ("a", "a", "b"):
        WandbLogger(str(tmp_path / folder), "p").log_metrics({"a/b": 1.0}, step=1)
    first, resumed, other = begun
    assert first["id"] == resumed["id"] != other["id"] and resumed["resume"] == "allow"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")  # by an agent of a sweep
    for group in ("g" * 128, "g" * 129, "g" * 130):
        WandbLogger(str(tmp_path / "c"), "p", group=group).log_metrics({"a/b": 1.0}, step=1)
    named = begun[3:]
    assert {each["mode"] for each in named} == {"disabled"} and named[0]["id"] == "chosen"
    groups = [each["group"] for each in named]
    assert groups[0] == "g" * 128 and len(set(groups)) == 3 and {*map(len, groups)} == {128}


@pytest.mark.parametrize("log_model", [True, False])
def test_the_end_has_gains_and_what_the_run_leaves(tmp_path, begun, log_model):
    logger = WandbLogger(str(tmp_path), "p", log_model=log_model)
    logger.log_table("samples", ["a"], [[1]], step=1)
    logger.log_table("samples", ["a"], [[2]], step=2)
    for name in ("policy", "traces"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    gain = {"success": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    (tmp_path / "result.json").write_text(json.dumps({"gain": gain}))
    logger.close()
    run = begun[0]["run"]
    assert run.finish.called and logger.failures == 0
    assert run.summary == {"gain/success": gain["success"]}
    left = {artifact.name: artifact.type for artifact in given_to(run.log_artifact)}
    assert left == ({"policy-abc": "model", "traces-abc": "traces"} if log_model else {})
    assert given_to(run.log)[1]["samples"].data == [[1], [2]]  # the second row alone is sent


@pytest.mark.slow
def test_an_offline_run_has_everything_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(str(tmp_path), "p", "g", "g seed=2", ["g"], log_model=True, code="configs")
    logger.log_hyperparams({"seed": 2, "module": {"seed": 2, "lr": 0.1}})
    logger.log_metrics({"train/reward": 1.0}, step=2)
    logger.log_histograms({"credit/rewards": [0.0, 1.0]}, 2)
    logger.log_table("samples", ["text", "reward"], [["x" * 100_000, 0.5]], step=2)
    run = logger.experiment
    assert (run.name, run.group, run.tags) == ("g seed=2", "g", ("g",))
    assert run.config["module"] == {"seed": 2, "lr": 0.1} and run.summary["iteration"] == 2
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
        for what in ("`isinstance(treespec, LeafSpec)`", "something else"):
            warnings.warn(f"{what} is deprecated", FutureWarning, stacklevel=2)
    assert transformers_logging.is_progress_bar_enabled() == watched
    transformers_logging.enable_progress_bar()
    assert [str(warning.message) for warning in heard] == ["something else is deprecated"]


def test_lightning_says_what_matters_once(caplog):
    logger = logging.getLogger("lightning")
    logger.addHandler(caplog.handler)  # as its own, beside the root's
    try:
        quiet()
        rank_zero_info("💡 Tip: For seamless cloud logging, try installing ...")
        rank_zero_module.log.warning("something is wrong")
        logging.getLogger("lightning.pytorch.callbacks.model_summary").info("0.7 M parameters")
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == ["something is wrong", "0.7 M parameters"]
