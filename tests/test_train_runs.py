"""Whole runs of src/train.py: what they leave behind, and how they fail and go on."""

import json
import re
import subprocess
import sys

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from matchtir.policy.loading import load_policy, load_pretrained
from matchtir.training import steps as run_parts
from matchtir.utils.config_check import ConfigError
from tests.scale.whole_runs import COPYING, ROOT, SMALL_MODEL, SMALL_RUN, composed, rows, run_here
from tests.training.token_reward import PAID

RANDOM = (*SMALL_MODEL, "model.layers=1")
SWA = "lightning.pytorch.callbacks.StochasticWeightAveraging"
AVERAGING = f"+callbacks.swa={{_target_: {SWA}, swa_lrs: 0.001}}"
FEW_TASKS = "data.sizes={train: 8, validation: 2, test: 2}"


def words(*overrides):
    """A command line with few tasks and a small model."""
    data = [] if "data=ftrl" in overrides else [FEW_TASKS]
    model = [] if any(each.startswith("model.folder=") for each in overrides) else RANDOM
    return [*SMALL_RUN, *model, *data, *overrides]


def run(folder, *overrides):
    """Such a command line in this process; gives its objective."""
    return run_here(folder, *words(*overrides))


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


# -- what a run leaves behind --------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The smoke experiment, with something to learn."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder, PAID) == result(folder)["objective"]
    return folder


def test_the_smoke_experiment_leaves_everything_behind(whole):
    traces = sorted(path.name for path in (whole / "traces").iterdir())
    assert traces == [f"iteration_00000{number}.jsonl" for number in (1, 2, 3)]
    records = (whole / "traces" / traces[0]).read_text(encoding="utf-8").splitlines()
    assert len(records) == 2 * 4 and all(json.loads(record)["turns"] for record in records)

    checkpoints = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert checkpoints == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "_target_: matchtir" in (whole / "config.yaml").read_text(encoding="utf-8")

    found, facts = rows(whole), result(whole)
    assert [row["step"] for row in found if "train/reward" in row] == [1, 2, 3]
    (validated,) = [row for row in found if "val/solve_f1" in row]
    assert (validated["step"], validated["val/solve_f1"]) == (2, facts["objective"])
    assert (facts["iterations"], facts["seed"], facts["tasks"]) == (3, 1, 2)
    assert facts["before"].keys() == facts["after"].keys() == facts["gain"].keys()


def test_the_policy_of_a_run_loads_as_a_hugging_face_model(whole):
    trained = load_pretrained(str(whole / "policy")).policy.state_dict()
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"policy.{name}" for name in trained} == set(last)
    assert all(torch.equal(weight, last[f"policy.{name}"]) for name, weight in trained.items())


class Interrupted(BaseException):
    """Stands for a kill."""


def test_a_run_interrupted_in_its_last_test_ends_like_an_unbroken_one(tmp_path, whole, monkeypatch):
    scores = run_parts.test_scores

    def interrupt(trainer, *others):
        if trainer.global_step:
            raise Interrupted
        return scores(trainer, *others)

    with monkeypatch.context() as patch:
        patch.setattr(run_parts, "test_scores", interrupt)
        with pytest.raises(Interrupted):
            run(tmp_path / "broken", PAID)
    assert run(tmp_path / "broken", PAID, "ckpt_path=last") == result(whole)["objective"]
    assert rows(tmp_path / "broken") == rows(whole)


# -- other choices ---------------------------------------------------------------------------------


def test_another_matching_runs_and_what_it_measures_is_documented(tmp_path):
    run(tmp_path / "run", "iterations=1", "trainer.val_check_interval=1", "assignment=soft")
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = [re.sub(r"<\w+>", "[^/]+", name) for name in re.findall(r"`([^` ]+/[^` ]+)`", text)]
    columns = set().union(*rows(tmp_path / "run"))
    assert {"train/loss", "val/solve_f1", "test/solve_f1"} <= columns
    assert {c for c in columns if not any(re.fullmatch(name, c) for name in names)} == {"step"}


OPTIONS = [
    f"{group}={path.stem}"
    for group in ("assignment", "reward", "advantage", "loss")
    for path in sorted((ROOT / "configs" / group).glob("*.yaml"))
]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_method_runs(tmp_path, option):
    run(tmp_path / "run", "iterations=2", "mini_batches=2", option)
    row = rows(tmp_path / "run")[-2]
    assert all(abs(row[f"train/{name}"]) < 1e6 for name in ("loss", "grad_norm", "reward"))


def test_fine_tuning_is_an_experiment_of_its_own(tmp_path):
    run(tmp_path / "run", "experiment=sft", f"datamodule.stages=[{COPYING}]")
    assert [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row] == [1, 2]
    assert result(tmp_path / "run")["iterations"] == 2


@pytest.mark.slow
def test_both_stages_of_the_starting_weights_train_them(tmp_path):
    skill, habits = tmp_path / "skill", tmp_path / "habits"
    stages = [f"datamodule.stages.{stage}.iterations=2" for stage in (0, 1)]
    run(skill, "experiment=skill", *stages)
    run(habits, "experiment=habits", f"model.folder={skill}/policy", stages[0])
    for folder, iterations in ((skill, 4), (habits, 2)):
        trained = [row for row in rows(folder) if "train/loss" in row]
        assert len(trained) == result(folder)["iterations"] == iterations
    first, second = (load_policy(str(folder)).policy.state_dict() for folder in (skill, habits))
    assert any(not first[name].equal(second[name]) for name in first)


def test_a_warm_start_is_made_once_and_only_as_a_whole(tmp_path):
    warm = ("warm_start=gold", f"warm_start.datamodule.stages=[{COPYING}]", "iterations=1")
    folder, cache = tmp_path / "run", tmp_path / "warm_starts"
    run(folder, *warm)
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    # The fine-tuning leaves no checkpoint of its own.
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    for others in (
        ["group_size=2", "data.sizes.test=3"],
        # A training that is cut short does not cut its warm start: it would begin with raw weights.
        ["trainer.limit_train_batches=1"],
        ["trainer.limit_val_batches=2"],  # where a run goes on does not make other weights
    ):
        config = composed(tmp_path / "other", *words(*warm, *others))
        run_parts.start_warm(config, instantiate(config.model), instantiate(config.sandbox))
        HydraConfig.instance().cfg = None
        assert [*cache.iterdir()] == [file] and file.stat().st_mtime_ns == made


@pytest.mark.slow
def test_weights_and_biases_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "run", "iterations=1", "logger=wandb", "logger.wandb.offline=true")
    assert [*(tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")]
    assert len(rows(tmp_path / "run")) == 2  # beside the table


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [
        (["+advantage.gama=0.5"], ConfigError, "advantage.gama: .* did you mean gamma"),
        (["data=ftrl"], FileNotFoundError, "no/such/ftrl/train.parquet"),
        (["data.sizes.test=0"], ValueError, "no test tasks"),
        (["ckpt_path=last"], FileNotFoundError, "ckpt_path=last: no interrupted run"),
        (["ckpt_path=no/such.ckpt"], FileNotFoundError, "there is no no/such.ckpt"),
        ([AVERAGING], ValueError, "StochasticWeightAveraging: it averages over epochs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_a_model_is_loaded(
    tmp_path, monkeypatch, overrides, error, named
):
    def load(**_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("matchtir.policy.tiny.model.load_tiny", load)
    monkeypatch.setenv("MATCHTIR_DATA", "no/such")
    with pytest.raises(Exception, match=named) as caught:
        run(tmp_path / "run", *overrides)
    causes = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert any(isinstance(cause, error) for cause in causes)
    assert not (tmp_path / "run" / "result.json").exists()


# -- the command line itself -----------------------------------------------------------------------


def swept(log_dir, *arguments):
    """The results of a sweep's jobs by their number."""
    program = [sys.executable, str(ROOT / "src" / "train.py"), "-m", "iterations=1", *arguments]
    command = [*program, *SMALL_RUN, *RANDOM, FEW_TASKS, f"paths.log_dir={log_dir}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "GPU available" not in said.stdout + said.stderr  # nor any other tip of Lightning's
    folders = [file.parent for file in log_dir.glob("smoke/multiruns/*/*/result.json")]
    return {folder.name: result(folder) for folder in sorted(folders)}


@pytest.mark.slow
def test_a_sweep_over_the_methods_choices(tmp_path):
    results = swept(tmp_path, "assignment=hard,soft", "advantage=dual,trajectory")
    assert [*results] == ["0", "1", "2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "processes"])
def test_jobs_in_processes_of_their_own(tmp_path, launcher):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="no extra `sweep`")
    results = swept(tmp_path, f"hydra/launcher={launcher}", "seed=1,2")
    assert [each["seed"] for each in results.values()] == [1, 2]
