"""Runs on two processes: the numbers of one, failures that end them, resumption on any number."""

import re
import time

import pytest

from tests.scale.whole_runs import (
    COPYING,
    TOLERANCE,
    differences,
    rows,
    running,
    succeeded,
    together,
    train,
)

SHARDS = "trainer=fsdp trainer.strategy.save_distributed_checkpoint=true"


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    return together(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path):
    yield
    time.sleep(1)
    assert running(tmp_path) == []


def assert_same(one, other):
    assert len([row for row in one if "train/loss" in row]) == 3
    assert all(row["train/grad_norm"] > 1e-3 for row in one if "train/loss" in row)
    far = {name: d for name, d in differences(one, other).items() if not d < TOLERANCE}
    assert far == {}


@pytest.mark.slow
def test_two_replicas_get_the_numbers_of_one_process(tmp_path, one_process):
    assert_same(one_process, succeeded(tmp_path / "run", "trainer=ddp"))
    traces = sorted(path.name for path in (tmp_path / "run" / "traces").iterdir())
    assert traces[:2] == ["iteration_000001_rank0.jsonl", "iteration_000001_rank1.jsonl"]
    tasks = [
        set(re.findall(r'"task": "([^"]+)"', (tmp_path / "run" / "traces" / name).read_text()))
        for name in traces[:2]
    ]
    assert all(tasks) and not tasks[0] & tasks[1]


def test_two_shards_get_the_numbers_of_one_process(tmp_path, one_process):
    assert_same(one_process, together(tmp_path / "run", "trainer=fsdp", processes=2))
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


OFFLOADED = ("trainer=fsdp", "trainer.strategy.cpu_offload=true")
PADDED = "model.packing=false"  # tests/policy/test_packing.py compares the numbers in seconds


@pytest.mark.slow
@pytest.mark.parametrize("settings", [OFFLOADED, ("trainer=cpu", PADDED), ("trainer=fsdp", PADDED)])
def test_how_it_is_computed_does_not_change_the_numbers(tmp_path, one_process, settings):
    assert_same(one_process, succeeded(tmp_path / "run", *settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "process", "then"),
    [
        ("trainer=ddp", 1, "trainer=ddp"),
        ("trainer=fsdp", 0, "trainer=cpu"),
        ("trainer=cpu", 0, "trainer=fsdp"),
        ("trainer=fsdp", 1, "trainer=fsdp"),
        (SHARDS, 0, f"{SHARDS} trainer.devices=1"),
        (SHARDS, 0, f"{SHARDS} trainer.devices=2"),
    ],
)
def test_a_process_that_fails_ends_the_run_and_any_number_of_them_goes_on(
    tmp_path, one_process, first, process, then
):
    run = tmp_path / "run"
    broken = train(run, *first.split(), fails=f"{process}:3")
    assert broken.returncode != 0 and "this process fails" in broken.stderr
    assert len(rows(run)) < len(one_process)
    assert (run / "checkpoints" / "last.ckpt" / ".metadata").exists() is (first == SHARDS)
    assert_same(one_process, succeeded(run, *then.split(), "ckpt_path=last"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_sigterm_ends_all_processes_which_can_go_on(tmp_path, one_process, trainer):
    run = tmp_path / "run"
    ended = train(run, f"trainer={trainer}", fails="0:2/terminated")
    assert ended.returncode == 143, ended.stderr[-2000:]
    assert max(row["step"] for row in rows(run)) == 2
    assert_same(one_process, succeeded(run, f"trainer={trainer}", "ckpt_path=last"))


@pytest.mark.slow
def test_nobody_waits_for_ever_for_a_process_that_hangs(tmp_path):
    patience = "trainer.strategy.timeout.minutes=1"
    hung = train(tmp_path / "run", "trainer=ddp", patience, fails="1:2/hangs")
    assert hung.returncode != 0 and re.search("[Tt]imed? ?out", hung.stderr)


MUON = (
    *("warm_start=gold", f"warm_start.datamodule.stages=[{COPYING}]"),
    *("warm_start.cache_dir=${paths.run_dir}/warm", "optimizer=muon_adamw", "optimizer.lr=1e-3"),
)
ADAPTERS = ("model.lora={r: 4, alpha: 8}", "model.activation_checkpointing=true")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [MUON, ADAPTERS], ids=["muon and a warm start", "adapters"])
def test_other_settings_are_sharded_too(tmp_path, settings):
    one = succeeded(tmp_path / "one", *settings)
    assert_same(one, succeeded(tmp_path / "two", *settings, "trainer=fsdp"))


@pytest.mark.slow
def test_shards_are_gathered_in_16_bits(tmp_path):
    mixed = ("trainer.precision=bf16-mixed", "model.activation_checkpointing=true")
    found = succeeded(tmp_path / "run", "trainer=fsdp", *mixed)
    mismatch = [row["train/mismatch_kl"] for row in found if "train/mismatch_kl" in row]
    # Two computations in 16 bits, the engine's and the trainer's, differ a little.
    assert len(mismatch) == 3 and 0 < max(mismatch) < 1e-3
