"""Whole runs of src/train.py: what they leave behind, and how they fail and go on."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from matchtir.policy.loading import load_policy, load_pretrained
from matchtir.training import run as run_parts
from matchtir.utils.config_check import ConfigError
from tests.scale.whole_runs import COPYING, NOT_REPEATED, ROOT, SMALL_MODEL, SMALL_RUN, run_here
from tests.training.token_reward import PAID

CONFIGS = ROOT / "configs"
RANDOM = (*SMALL_MODEL, "model.layers=1")
FEW_TASKS = "data.sizes={train: 8, validation: 2, test: 2}"


def run(folder: Path, *overrides: str) -> float:
    """A command line in this process, with few tasks and a small model; gives its objective."""
    data = [] if "data=ftrl" in overrides else [FEW_TASKS]
    model = [] if any(each.startswith("model.folder=") for each in overrides) else RANDOM
    return run_here(folder, *SMALL_RUN, *model, *data, *overrides)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what differs between any two runs."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [
            {name: cell for name, cell in row.items() if not name.startswith(NOT_REPEATED)}
            for row in csv.DictReader(file)
        ]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


# -- what a run leaves behind --------------------------------------------------------------------


def test_the_smoke_experiment_leaves_everything_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    objective = run(folder)

    traces = sorted(path.name for path in (folder / "traces").iterdir())
    assert traces == [f"iteration_00000{number}.jsonl" for number in (1, 2, 3)]
    records = (folder / "traces" / traces[0]).read_text(encoding="utf-8").splitlines()
    assert len(records) == 2 * 4 and all(json.loads(record)["turns"] for record in records)

    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "_target_: matchtir" in (folder / "config.yaml").read_text(encoding="utf-8")

    rows = table(folder)
    trained = [row["step"] for row in rows if row["train/reward"]]
    assert trained == ["1", "2", "3"]
    validated = [row["step"] for row in rows if row["val/solve_f1"]]
    assert validated == ["2"]
    assert float(rows[int(validated[0])]["val/solve_f1"]) == objective

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = [re.sub(r"<\w+>", "[^/]+", name) for name in re.findall(r"`([^` ]+/[^` ]+)`", text)]
    assert [name for name in rows[0] if not documented(name, names)] == ["step"]

    facts = result(folder)
    assert (facts["iterations"], facts["seed"], facts["tasks"]) == (3, 1, 2)
    assert facts["objective"] == objective
    assert facts["before"].keys() == facts["after"].keys() == facts["gain"].keys()


def documented(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def test_the_policy_of_a_run_loads_as_a_hugging_face_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, "iterations=1")
    loaded = load_pretrained(str(folder / "policy"))
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    trained = loaded.policy.state_dict()
    assert {f"policy.{name}" for name in trained} == set(last)
    assert all(torch.equal(weight, last[f"policy.{name}"]) for name, weight in trained.items())


# -- interrupted runs ------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Stands for a kill."""


def test_a_run_interrupted_in_its_last_test_ends_like_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = run(tmp_path / "whole", PAID)

    scores = run_parts.test_scores

    def interrupt(trainer: Any, *others: Any) -> Any:
        if trainer.global_step:
            raise Interrupted
        return scores(trainer, *others)

    with monkeypatch.context() as patch:
        patch.setattr(run_parts, "test_scores", interrupt)
        with pytest.raises(Interrupted):
            run(tmp_path / "broken", PAID)
    assert run(tmp_path / "broken", PAID, "ckpt_path=last") == objective
    assert table(tmp_path / "broken") == table(tmp_path / "whole")


# -- other choices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",  # beside the default ones, hard and dual
    [("assignment=soft", "advantage=trajectory"), ("assignment=greedy", "advantage=turn")],
)
def test_the_methods_choices_run(tmp_path: Path, choices: Sequence[str]) -> None:
    run(tmp_path / "run", "iterations=1", *choices)
    assert result(tmp_path / "run")["iterations"] == 1


OPTIONS = [
    f"{group}={path.stem}"
    for group in ("assignment", "reward", "advantage", "loss")
    for path in sorted((CONFIGS / group).glob("*.yaml"))
]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_method_runs(tmp_path: Path, option: str) -> None:
    run(tmp_path / "run", "iterations=2", "mini_batches=2", option)
    row = table(tmp_path / "run")[-2]
    assert all(abs(float(row[f"train/{name}"])) < 1e6 for name in ("loss", "grad_norm", "reward"))


def test_fine_tuning_is_an_experiment_of_its_own(tmp_path: Path) -> None:
    run(tmp_path / "run", "experiment=sft", f"datamodule.stages=[{COPYING}]")
    rows = table(tmp_path / "run")
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2"]
    assert result(tmp_path / "run")["iterations"] == 2


def test_both_stages_of_the_starting_weights_train_them(tmp_path: Path) -> None:
    skill, habits = tmp_path / "skill", tmp_path / "habits"
    stages = [f"datamodule.stages.{stage}.iterations=2" for stage in (0, 1)]
    run(skill, "experiment=skill", *stages)
    run(habits, "experiment=habits", f"model.folder={skill}/policy", stages[0])
    for folder, iterations in ((skill, 4), (habits, 2)):
        rows = [row for row in table(folder) if row["train/loss"]]
        assert len(rows) == result(folder)["iterations"] == iterations
    first, second = (load_policy(str(folder)).policy.state_dict() for folder in (skill, habits))
    assert any(not first[name].equal(second[name]) for name in first)


def test_a_warm_start_is_made_once_and_only_as_a_whole(tmp_path: Path) -> None:
    warm = ("warm_start=gold", f"warm_start.datamodule.stages=[{COPYING}]", "iterations=1")
    cache = tmp_path / "warm_starts"
    run(tmp_path / "first", *warm)
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    run(tmp_path / "second", *warm, "group_size=2", "data.sizes.test=3")
    assert [*cache.iterdir()] == [file] and file.stat().st_mtime_ns == made
    # A training that is cut short does not cut its warm start: it would begin with raw weights.
    run(tmp_path / "third", *warm, "trainer.limit_train_batches=1")
    assert [*cache.iterdir()] == [file] and file.stat().st_mtime_ns == made
    # Where a run goes on does not make other weights.
    run(tmp_path / "fourth", *warm, "trainer.limit_val_batches=2")
    assert [*cache.iterdir()] == [file]
    # The fine-tuning leaves no checkpoint of its own.
    assert [path.name for path in (tmp_path / "first" / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_weights_and_biases_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "run", "iterations=1", "logger=wandb", "logger.wandb.offline=true")
    assert [*(tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")]
    assert len(table(tmp_path / "run")) == 2  # beside the table


# -- bad input: said before a model is loaded ------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [
        (["+advantage.gama=0.5"], ConfigError, "advantage.gama: .* did you mean gamma"),
        (["data=ftrl"], FileNotFoundError, "no/such/ftrl/train.parquet"),
        (["data.sizes.test=0"], ValueError, "no test tasks"),
        (["ckpt_path=last"], FileNotFoundError, "ckpt_path=last: no interrupted run"),
        (["ckpt_path=no/such.ckpt"], FileNotFoundError, "there is no no/such.ckpt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: Sequence[str],
    error: type[Exception],
    named: str,
) -> None:
    def load(**_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("matchtir.policy.tiny.model.load_tiny", load)
    monkeypatch.setenv("MATCHTIR_DATA", "no/such")
    with pytest.raises(Exception, match=named) as caught:
        run(tmp_path / "run", *overrides)
    causes = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert any(isinstance(cause, error) for cause in causes)
    assert not (tmp_path / "run" / "result.json").exists()


# -- the command line itself -----------------------------------------------------------------------


def command_line(log_dir: Path, *arguments: str) -> list[str]:
    program = [sys.executable, str(ROOT / "src" / "train.py")]
    return [*program, *arguments, *SMALL_RUN, *RANDOM, FEW_TASKS, f"paths.log_dir={log_dir}"]


@pytest.mark.slow
def test_a_sweep_over_the_methods_choices(tmp_path: Path) -> None:
    sweep = ("-m", "iterations=1", "assignment=hard,soft", "advantage=dual,trajectory")
    subprocess.run(command_line(tmp_path, *sweep), check=True, stdout=subprocess.DEVNULL)
    results = sorted(tmp_path.glob("smoke/multiruns/*/*/result.json"))
    assert [path.parent.name for path in results] == ["0", "1", "2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "processes"])
def test_jobs_in_processes_of_their_own(tmp_path: Path, launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="no extra `sweep`")
    sweep = ("-m", f"hydra/launcher={launcher}", "iterations=1", "seed=1,2")
    subprocess.run(command_line(tmp_path, *sweep), check=True, stdout=subprocess.DEVNULL)
    results = sorted(tmp_path.glob("smoke/multiruns/*/*/result.json"))
    assert [json.loads(path.read_text())["seed"] for path in results] == [1, 2]
