from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from matchtir.utils.run_folder import (
    checkpoint_to_load,
    is_whole,
    keep_config,
    keep_inputs,
    run_dir,
    run_group,
    run_name,
    run_tags,
    sweep_dir,
)

CHOICES = OmegaConf.create({"experiment": "grpo", "paths": "default"})


def make_run(log_dir, time, checkpoint=True, result=False):
    folder = log_dir / "grpo" / "runs" / time
    (folder / "checkpoints").mkdir(parents=True)
    if checkpoint:
        torch.save({"state": torch.arange(1000)}, folder / "checkpoints" / "last.ckpt")
    if result:
        (folder / "result.json").touch()
    return folder


def folder(log_dir, ckpt_path, choices=CHOICES):
    return Path(run_dir(str(log_dir), "train", [], choices, ckpt_path))


def test_runs_and_sweeps_lie_under_their_experiment(tmp_path):
    assert folder(tmp_path, None).parent == tmp_path / "grpo" / "runs"
    no_experiment = OmegaConf.create({"experiment": None})
    assert folder(tmp_path, None, no_experiment).parent == tmp_path / "train" / "runs"
    for overrides, name in (
        (["seed=1,2"], "grpo"),
        (["seed=1,2", "experiment=grpo,matchtir_hard"], "grpo+matchtir_hard"),
    ):
        sweep = Path(sweep_dir(str(tmp_path), "train", overrides, CHOICES, None))
        assert sweep.parent == tmp_path / name / "multiruns"


def test_runs_started_in_the_same_second_have_different_folders(tmp_path):
    folders = []
    for _ in range(3):
        folders.append(folder(tmp_path, None))
        folders[-1].mkdir(parents=True)
    assert folders == sorted(set(folders))


def test_last_is_the_newest_interrupted_run(tmp_path):
    make_run(tmp_path, "2026-01-01_00-00-00")
    newest_interrupted = make_run(tmp_path, "2026-01-02_00-00-00")
    make_run(tmp_path, "2026-01-03_00-00-00", result=True)
    make_run(tmp_path, "2026-01-04_00-00-00", checkpoint=False)
    assert folder(tmp_path, "last") == newest_interrupted
    checkpoint = checkpoint_to_load("last", newest_interrupted)
    assert checkpoint == newest_interrupted / "checkpoints" / "last.ckpt"
    make_run(tmp_path / "finished", "2026-01-01_00-00-00", result=True)
    with pytest.raises(FileNotFoundError, match=r"no interrupted run in .*finished/grpo/runs"):
        checkpoint_to_load("last", folder(tmp_path / "finished", "last"))


def test_a_program_may_have_another_mark_of_a_run_that_started(tmp_path):
    started = make_run(tmp_path, "2026-01-01_00-00-00", checkpoint=False)
    (started / "config.yaml").touch()
    make_run(tmp_path, "2026-01-02_00-00-00")
    found = run_dir(str(tmp_path), "eval", [], CHOICES, "last", "config.yaml")
    assert Path(found) == started
    assert checkpoint_to_load("last", found, "config.yaml") == started / "config.yaml"


def test_a_checkpoint_given_by_its_path_starts_a_new_run(tmp_path):
    other = make_run(tmp_path, "2026-01-01_00-00-00") / "checkpoints" / "last.ckpt"
    new = folder(tmp_path, str(other))
    assert not new.exists()
    assert checkpoint_to_load(str(other), new) == other
    assert checkpoint_to_load(None, new) is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint_to_load("nowhere.ckpt", new)


def test_a_checkpoint_with_any_bit_changed_is_not_whole(tmp_path):
    file = make_run(tmp_path, "2026-01-01_00-00-00") / "checkpoints" / "last.ckpt"
    data = file.read_bytes()
    assert is_whole(file)
    for place in range(0, 8000, 997):  # of the numbers
        start = data.index(torch.arange(1000).numpy().tobytes()) + place
        file.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
        assert not is_whole(file)
    for length in (0, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        assert not is_whole(file)
    with pytest.raises(ValueError, match=r"ckpt_path=.*last.ckpt: damaged"):
        checkpoint_to_load(str(file), tmp_path)


def test_inputs_of_a_run_stay_what_they_were(tmp_path):
    keep_inputs(tmp_path, {"training tasks": "a"})
    keep_inputs(tmp_path, {"training tasks": "a", "tokenizer": "b"})
    with pytest.raises(ValueError, match="was started with other tokenizer, model weights"):
        keep_inputs(tmp_path, {"model weights": "d"})
        keep_inputs(tmp_path, {"tokenizer": "c", "model weights": "e", "training tasks": "a"})


def settings(**changes):
    loss = {"clip": 0.2, "double": "${loss.clip}"}
    trainer = {"max_epochs": 1, "limit_train_batches": 4, "precision": 32}
    parts = {"loss": loss, "trainer": trainer, "logger": {"csv": {}}}
    return OmegaConf.create({"seed": 1, "ckpt_path": None} | parts | changes)


def stages(iterations, batch_size=2):
    stage = {"_target_": "Stage", "iterations": iterations, "batch_size": batch_size}
    return {"stages": [stage]}


def test_a_resumed_run_may_change_how_long_it_runs_and_nothing_else(tmp_path):
    keep_config(settings(iterations=4, datamodule=stages(4)), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").loss._get_node("double") == 0.2  # resolved
    trainer = {"max_epochs": 2, "limit_train_batches": 9, "precision": 32}
    wandb = {"csv": {}, "wandb": {"project": "p"}}
    longer = {"iterations": 5, "datamodule": stages(5)}
    keep_config(settings(ckpt_path="last", trainer=trainer, logger=wandb, **longer), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    assert OmegaConf.load(tmp_path / "config.yaml").trainer.max_epochs == 2
    with pytest.raises(ValueError) as raised:
        changed = {"trainer": trainer | {"precision": 16}, "datamodule": stages(6, 3)}
        keep_config(settings(seed=2, iterations=5, extra={"a": 1}, **changed), tmp_path)
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    batch_size = "datamodule.stages.0.batch_size: 2 -> 3"
    others = ["extra.a: absent -> 1", "seed: 1 -> 2", "trainer.precision: 32 -> 16"]
    assert lines == [batch_size, *others]
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        ([], "grpo"),
        (["experiment=grpo", "seed=3"], "grpo"),
        (["assignment=soft", "logger=wandb", "logger.wandb.offline=true"], "grpo assignment=soft"),
        (["+trainer.precision=16", "ckpt_path=last"], "grpo +trainer.precision=16"),
        (["trainer.enable_progress_bar=true", "callbacks.curves=null", "seed=1"], "grpo"),
    ],
)
def test_runs_are_named_by_their_choices(overrides, group):
    assert run_group("grpo", overrides) == group
    assert run_name("grpo", overrides, 3) == f"{group} seed=3"


def test_tags_are_short_and_different():
    long = "data.train_path=" + "x" * 100
    tags = run_tags(None, [long, "assignment=soft", "assignment=soft", "tags=[dev]"], 1, ["dev"])
    assert tags == ["dev", "train", long[:64], "assignment=soft", "seed=1"]
