"""Sweeps with the project's own callbacks, and a program that only pretends to train."""

import json
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from matchtir.utils.run_folder import keep_config, one_parameter, register_resolvers
from matchtir.utils.sweep import run_job

# What a sweep needs of configs/train.yaml, whose whole takes far longer to compose.
CONFIG = f"""
defaults: [{{paths: default}}, _self_, {{hparams_search: null}}]
hydra: {{searchpath: ["file://{Path(__file__).parents[2] / "configs"}"]}}
ckpt_path: null
seed: 1
group_size: 1
iterations: 1
identity: {{name: "group_size=${{group_size}} seed=${{seed}}"}}
trainer: {{devices: 1}}
optimizer: {{matrix_lr: 1, lr: 1}}
penalties: {{unmatched: 0}}
loss: {{kl_coefficient: 0}}
"""


class Program:
    """What it was run with; `fails`, `stops` and `unmeasured` name group sizes."""

    def __init__(self):
        self.ran, self.started_from = [], []
        self.fails, self.stops, self.unmeasured = set(), set(), set()

    def __call__(self, config):
        size, folder = config.group_size, Path(config.paths.run_dir)
        self.ran.append(size)
        self.started_from.append(config.ckpt_path)
        folder.mkdir(parents=True, exist_ok=True)
        keep_config(config, folder)
        if size in self.fails:
            raise RuntimeError(f"no luck [with] {size}")
        if size in self.stops:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "last.ckpt").touch()
            raise KeyboardInterrupt
        (folder / "result.json").write_text(json.dumps({"objective": size / 10}))
        return float("nan") if size in self.unmeasured else size / 10


@pytest.fixture
def program():
    yield Program()
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


# -- one job ---------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, program):
    """Runs a job of a sweep, always in the same folder."""
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    config = OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "sweeper": sweeper}})
    given = {"group_size": 2, "ckpt_path": None, "paths": {"run_dir": str(tmp_path)}}

    def run(**settings):
        HydraConfig.instance().cfg = config
        return run_job(program, OmegaConf.create(given | settings))

    return run


def test_a_job_starts_afresh_goes_on_or_is_finished(program, job):
    program.stops = {2}
    with pytest.raises(KeyboardInterrupt):
        job(ckpt_path="last")
    program.stops = set()
    assert [job(), job()] == [0.2, 0.2]
    assert program.started_from == [None, "last"]
    with pytest.raises(SystemExit, match=r"cannot go on: (?s:.)*group_size: 2 -> 3"):
        job(group_size=3)  # as an older version of the code would have had it


def test_a_job_may_start_from_a_checkpoint_and_is_a_failed_trial_without_a_number(program, job):
    program.unmeasured = {2}
    assert job(ckpt_path="some.ckpt") is None
    assert program.started_from == ["some.ckpt"]


def test_a_job_that_would_start_processes_of_its_own_is_refused(program, job, monkeypatch):
    with pytest.raises(SystemExit, match=r"trainer.devices=2 in a sweep"):
        job(trainer={"devices": 2})
    assert program.ran == []
    monkeypatch.setenv("SLURM_LOCALID", "0")
    assert job(trainer={"devices": 2}) == 0.2


# -- all of them -----------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, program, monkeypatch):
    """Runs a command line of the program in this process."""
    register_resolvers()
    (tmp_path / "train.yaml").write_text(CONFIG)
    main = hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="train")

    def run(*arguments):
        command = ["train.py", "-m", *arguments, f"paths.log_dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", command)
        GlobalHydra.instance().clear()
        main(lambda config: run_job(program, config))()

    return run


def sweeps(tmp_path):
    return sorted(tmp_path.glob("*/multiruns/*"))


def states(folder):
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def test_a_failed_job_is_marked_and_the_sweep_goes_on(tmp_path, program, sweep, capsys):
    program.fails = {1}
    with pytest.raises(SystemExit, match="1 of 2 jobs are not finished"):
        sweep("group_size=1,2")
    (folder,) = sweeps(tmp_path)
    assert program.ran == [1, 2]
    assert states(folder) == {"0": "failed", "1": "finished"}
    assert "no luck [with] 1" in (folder / "0" / "failed.txt").read_text()
    shown = capsys.readouterr().out
    assert "group_size=2 seed=1" in shown and "0.2000" in shown
    assert f"scripts/compare.py {folder}" in shown

    with pytest.raises(SystemExit, match="no unfinished sweep of these choices"):
        sweep("group_size=2,3", "ckpt_path=last")
    program.fails = set()
    sweep("group_size=1,2", "ckpt_path=last")
    assert program.ran == [1, 2, 1]  # finished jobs are not run again
    assert states(folder) == {"0": "finished", "1": "finished"}
    with pytest.raises(SystemExit, match="no unfinished sweep of these choices"):
        sweep("group_size=1,2", "ckpt_path=last")
    assert sweeps(tmp_path) == [folder]


@pytest.mark.filterwarnings("ignore:Callback CurveCallback")  # these jobs leave no scores to draw
def test_a_curve_sweeps_over_its_parameter_and_no_other(program, sweep, capsys):
    curve = ("hparams_search=curve", "curve.values=[1,2]")
    with pytest.raises(SystemExit):
        sweep(*curve, "curve.parameter=grupp_size")
    assert program.ran == [] and "Key 'grupp_size' is not in struct" in capsys.readouterr().err
    sweep(*curve, "curve.parameter=group_size", "seed=1")
    assert program.ran == [1, 2]
    assert one_parameter("limit", [None, 1]) == {"limit": "null,1"}


@pytest.mark.slow
def test_a_search_repeats_itself_up_to_where_it_was_stopped(tmp_path, program, sweep):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no extra `sweep`")
    fixed = ("optimizer.matrix_lr=0.1", "penalties.unmatched=0", "loss.kl_coefficient=0")
    search = ("hparams_search=optuna", *fixed, "hydra.sweeper.n_trials=5")
    space = "group_size=range(1,50)"
    sweep(*search, space)
    whole = program.ran
    assert len(whole) == 5

    program.ran, program.fails, program.stops = [], {whole[1]}, {whole[3]}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sweep(*search, space, "iterations=7")
    begun = program.ran
    assert len(begun) == 4 and begun[:2] == whole[:2]

    program.fails, program.stops = set(), set()
    with pytest.raises(SystemExit, match="1 of 5"):
        sweep(*search, space, "iterations=7", "ckpt_path=last")
    # The failed trial stays so, since what was tried after it depends on that.
    assert program.ran[4] == begun[3] and len(program.ran) == 6
    assert states(sweeps(tmp_path)[-1])["1"] == "failed"
