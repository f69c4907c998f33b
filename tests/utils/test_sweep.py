"""Sweeps with the project's own callbacks, and a program that only pretends to train."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from matchtir.utils.run_folder import keep_config, register_resolvers
from matchtir.utils.sweep import run_job

# What a sweep needs of configs/train.yaml, whose whole takes ten times as long to compose.
CONFIG = f"""
defaults: [{{paths: default}}, _self_, {{hparams_search: null}}]
hydra: {{searchpath: ["file://{Path(__file__).parents[2] / "configs"}"]}}
ckpt_path: null
seed: 1
group_size: 1
mini_batches: 1
iterations: 1
identity: {{name: "group_size=${{group_size}} seed=${{seed}}"}}
trainer: {{devices: 1}}
optimizer: {{matrix_lr: 1, lr: 1}}
penalties: {{unmatched: 0}}
loss: {{kl_coefficient: 0}}
"""


class Program:
    """What it was run with; `fails`, `stops` and `unmeasured` name group sizes."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.started_from: list[str | None] = []
        self.fails: set[int] = set()
        self.stops: set[int] = set()
        self.unmeasured: set[int] = set()
        self.returned: list[float | None] = []

    def __call__(self, config: DictConfig) -> float:
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

    def job(self, config: DictConfig) -> float | None:
        self.returned.append(run_job(self, config))
        return self.returned[-1]


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def sweep(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Runs a command line of the program in this process."""
    register_resolvers()
    (tmp_path / "train.yaml").write_text(CONFIG)
    main = hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="train")

    def run(*arguments: str) -> None:
        command = ["train.py", "-m", *arguments, f"paths.log_dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", command)
        GlobalHydra.instance().clear()
        main(program.job)()

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def sweeps(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("*/multiruns/*"))


def states(folder: Path) -> dict[str, str]:
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def test_a_failed_job_is_marked_and_the_sweep_goes_on(
    tmp_path: Path, program: Program, sweep: Callable[..., None], capsys: Any
) -> None:
    program.fails = {2}
    with pytest.raises(SystemExit, match="1 of 3 jobs are not finished"):
        sweep("group_size=1,2,3")
    (folder,) = sweeps(tmp_path)
    assert program.ran == [1, 2, 3]
    assert states(folder) == {"0": "finished", "1": "failed", "2": "finished"}
    assert "no luck [with] 2" in (folder / "1" / "failed.txt").read_text()
    shown = capsys.readouterr().out
    assert "group_size=3 seed=1" in shown and "0.3000" in shown
    assert f"scripts/compare.py {folder}" in shown

    program.fails = set()
    sweep("group_size=1,2,3", "ckpt_path=last")
    assert program.ran == [1, 2, 3, 2]  # finished jobs are not run again
    assert states(folder) == {"0": "finished", "1": "finished", "2": "finished"}
    assert sweeps(tmp_path) == [folder]

    with pytest.raises(SystemExit, match="no unfinished sweep of these choices"):
        sweep("group_size=1,2,3", "ckpt_path=last")


def test_an_interrupted_sweep_goes_on_where_it_was(
    tmp_path: Path, program: Program, sweep: Callable[..., None]
) -> None:
    program.stops = {2}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sweep("group_size=1,2,3")
    assert program.ran == [1, 2]
    program.stops = set()
    sweep("group_size=1,2,3", "ckpt_path=last")
    assert program.ran == [1, 2, 2, 3]
    assert program.started_from == [None, None, "last", None]
    assert len(sweeps(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore:Callback CurveCallback")  # these jobs leave no scores to draw
def test_a_curve_sweeps_over_its_parameter_and_no_other(
    program: Program, sweep: Callable[..., None], capsys: Any
) -> None:
    curve = ("hparams_search=curve", "curve.values=[1,2]")
    with pytest.raises(SystemExit):
        sweep(*curve, "curve.parameter=grupp_size")
    assert program.ran == [] and "Key 'grupp_size' is not in struct" in capsys.readouterr().err
    sweep(*curve, "curve.parameter=group_size", "seed=1,2")
    assert program.ran == [1, 1, 2, 2]


def test_jobs_may_start_from_a_checkpoint_and_one_without_a_number_is_a_failed_trial(
    program: Program, sweep: Callable[..., None]
) -> None:
    program.unmeasured = {2}
    sweep("group_size=1,2", "ckpt_path=some.ckpt")
    assert program.returned == [0.1, None]
    assert program.started_from == ["some.ckpt"] * 2


def test_another_sweep_is_not_gone_on_with(
    tmp_path: Path, program: Program, sweep: Callable[..., None]
) -> None:
    program.fails = {2}
    with pytest.raises(SystemExit):
        sweep("group_size=1,2")
    with pytest.raises(SystemExit, match="no unfinished sweep of these choices"):
        sweep("group_size=2,3", "ckpt_path=last")
    (kept,) = sweeps(tmp_path)[0].glob("0/config.yaml")
    kept.write_text(kept.read_text().replace("mini_batches: 1", "mini_batches: 4"))  # older code
    with pytest.raises(SystemExit, match=r"cannot go on: (?s:.)*mini_batches: 4 -> 1"):
        sweep("group_size=1,2", "ckpt_path=last")
    assert program.ran == [1, 2]
    with pytest.raises(SystemExit, match="1 of 2"):
        sweep("group_size=1,2")  # a new one
    assert len(sweeps(tmp_path)) == 2


@pytest.mark.slow
def test_a_search_repeats_itself_up_to_where_it_was_stopped(
    tmp_path: Path, program: Program, sweep: Callable[..., None]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no extra `sweep`")
    fixed = ("optimizer.lr=0.1", "penalties.unmatched=0", "loss.kl_coefficient=0")
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


def test_a_job_that_would_start_processes_of_its_own_is_refused(
    sweep: Callable[..., None], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"trainer.devices=2 in a sweep"):
        sweep("group_size=2,3", "trainer.devices=2")
    assert program.ran == []
    monkeypatch.setenv("SLURM_LOCALID", "0")
    sweep("group_size=2,3", "trainer.devices=2")
    assert program.ran == [2, 3]
