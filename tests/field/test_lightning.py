"""What Lightning's users are used to: it works, or it is refused by name (docs/lightning.md)."""

import json
import warnings

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from matchtir.reports.progress import next_commands
from matchtir.training.base import check_trainer
from matchtir.utils.loggers import quiet
from matchtir.utils.run_folder import read_metrics
from tests.scale.whole_runs import SMALL_MODEL, SMALL_RUN, composed, run_here

SHORT = (*SMALL_RUN, *SMALL_MODEL, "model.layers=1")
SIZES = "data.sizes={train: 8, validation: 2, test: 2}"
CALLBACKS = "lightning.pytorch.callbacks"


class Watcher(Callback):
    """Logs as callbacks do, and asks the logger for what is behind it."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.log("watched/batch", 2.0)
        assert trainer.logger.experiment is not None


def test_what_callbacks_log_stands_beside_the_iteration_in_which_they_log(tmp_path):
    callbacks = {
        "rates": f"{{_target_: {CALLBACKS}.LearningRateMonitor}}",
        "device_stats": f"{{_target_: {CALLBACKS}.DeviceStatsMonitor, cpu_stats: true}}",
        "timer": f"{{_target_: {CALLBACKS}.Timer, duration: '00:01:00:00'}}",
        "summary": f"{{_target_: {CALLBACKS}.ModelSummary}}",
        "own": f"{{_target_: {__name__}.Watcher}}",
    }
    given = [f"+callbacks.{name}={node}" for name, node in callbacks.items()]
    run_here(tmp_path / "run", *SHORT, SIZES, "iterations=3", "tags=[dev]", *given)
    curves = read_metrics(tmp_path / "run" / "metrics.csv")
    device = [name for name in curves if name.startswith("DeviceStatsMonitor.on_train_batch_end")]
    for name in ("train/reward", "lr-AdamW", "watched/batch", *device[:3]):
        assert curves[name][0] == [1, 2, 3], name
    assert curves["DeviceStatsMonitor.on_test_batch_end/cpu_percent"][0] == [0, 3]
    assert device and curves["test/success"][0] == [0, 3] and curves["val/success"][0] == [2]


def test_early_stopping_ends_a_run(tmp_path):
    stopping = f"{{_target_: {CALLBACKS}.EarlyStopping, monitor: val/calls, patience: 1}}"
    often = ("iterations=6", "trainer.val_check_interval=1", f"+callbacks.stopping={stopping}")
    run_here(tmp_path / "run", *SHORT, SIZES, "optimizer.lr=0", *often)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["iterations"] == 2
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("what", ["debug=fdr", "logger=none"])
def test_a_run_may_leave_nothing_but_its_result(tmp_path, what):
    nothing = ["callbacks=none", "iterations=1"] if what == "logger=none" else []
    folder = tmp_path / "run"
    run_here(folder, *SHORT, SIZES, what, *nothing)
    assert json.loads((folder / "result.json").read_text())["iterations"] == 1
    assert not (folder / "metrics.csv").exists() and not (folder / "checkpoints").exists()


def test_overfitting_repeats_the_tasks_of_the_first_iteration(tmp_path):
    run_here(tmp_path / "run", *SHORT, SIZES, "debug=overfit", "data.sizes.train=100")
    of_iterations = [
        {json.loads(line)["task"] for line in file.read_text().splitlines()}
        for file in sorted((tmp_path / "run" / "traces").iterdir())
    ]
    assert len(of_iterations) == 3 and len(set.union(*of_iterations)) == 2


def test_the_profiler_says_where_the_time_goes(tmp_path):
    run_here(tmp_path / "run", *SHORT, SIZES, "debug=profiler")
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


@pytest.mark.parametrize("debug", ["fdr", "limit", "overfit", "profiler"])
def test_debugging_has_no_warm_start(tmp_path, debug):
    data = ("data=custom", "data.path=x")
    assert composed(tmp_path, "experiment=matchtir_soft", *data).warm_start
    assert not composed(tmp_path, *data, f"debug={debug}").get("warm_start")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_epochs": 2}, "max_epochs=2: .*iterations"),
        ({"max_steps": 8}, "max_steps=8: .*iterations"),
        ({"overfit_batches": 1}, "overfit_batches=1: .*debug=overfit"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0: module.max_grad_norm"),
        ({"accumulate_grad_batches": 4}, "accumulate_grad_batches=4: .*micro_batch_tokens"),
        ({"callbacks": [StochasticWeightAveraging(1e-3)]}, "callback StochasticWeightAveraging"),
        ({"callbacks": [EMAWeightAveraging()]}, "callback EMAWeightAveraging"),
        ({"callbacks": [BatchSizeFinder()]}, "callback BatchSizeFinder: tasks_per_iteration"),
        ({"callbacks": [LearningRateFinder()]}, "callback LearningRateFinder: .*optimizer.lr"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_would_do_nothing_or_harm_is_refused(settings, named):
    given = {"accelerator": "cpu", "logger": False, "max_epochs": 1} | settings
    with pytest.raises(ValueError, match=named):
        check_trainer(Trainer(**given))


def test_the_config_may_be_shown_as_a_tree(tmp_path, capsys):
    with pytest.raises(Exception, match="no such file"):
        run_here(tmp_path / "run", *SHORT, "extras.print_config=true", "data=ftrl", "model=tiny")
    shown = capsys.readouterr().out
    assert shown.startswith("run folder: ") and "├── optimizer" in shown


def test_a_schedule_may_begin_with_an_iteration_that_learns_nothing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet()
        schedule.step()
    assert not said


@pytest.mark.parametrize(
    ("data", "benchmark"),
    [
        ({"_target_": "matchtir.tasks.ftrl.FtrlTasks"}, "benchmark=ftrl policy="),
        ({"_target_": "matchtir.tasks.custom.CustomTasks", "path": "a.jsonl", "tools": "b.py"},
         "=custom benchmark.custom.tasks.path=a.jsonl benchmark.custom.tasks.tools=b.py policy="),
        ({"_target_": "matchtir.tasks.custom.CustomTasks", "path": "a.jsonl", "split_by": "tools",
          "tools": [{"module": "b.py", "network": True}]},
         " 'benchmark.custom.tasks.tools=[{module:\"b.py\",network:true}]' "
         "benchmark.custom.tasks.split_by=tools policy="),  # on no training task
        ({"_target_": "mine.Tasks"}, "python scripts/compare.py"),  # no benchmark has these
    ],
)  # fmt: skip
def test_hints_at_the_end_are_of_the_tasks_that_were_learned(tmp_path, data, benchmark):
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data}))
    assert any(benchmark in command for command in next_commands(tmp_path))
