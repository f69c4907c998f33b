"""Runs on two processes: the numbers of one, failures that end them, resumption on any number."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

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

SHARDS = "trainer.strategy.save_distributed_checkpoint=true"


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return together(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    time.sleep(1)
    assert running(tmp_path) == []


def assert_same(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len([row for row in one if "train/loss" in row]) == 3
    assert all(row["train/grad_norm"] > 1e-3 for row in one if "train/loss" in row)
    far = {name: d for name, d in differences(one, other).items() if not d < TOLERANCE}
    assert far == {}


@pytest.mark.slow
def test_two_replicas_get_the_numbers_of_one_process(
    tmp_path: Path, one_process: list[dict[str, float]]
) -> None:
    assert_same(one_process, succeeded(tmp_path / "run", "trainer=ddp"))
    traces = sorted(path.name for path in (tmp_path / "run" / "traces").iterdir())
    assert traces[:2] == ["iteration_000001_rank0.jsonl", "iteration_000001_rank1.jsonl"]
    tasks = [
        set(re.findall(r'"task": "([^"]+)"', (tmp_path / "run" / "traces" / name).read_text()))
        for name in traces[:2]
    ]
    assert all(tasks) and not tasks[0] & tasks[1]


def test_two_shards_get_the_numbers_of_one_process(
    tmp_path: Path, one_process: list[dict[str, float]]
) -> None:
    assert_same(one_process, together(tmp_path / "run", "trainer=fsdp", processes=2))
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


OFFLOADED = ("trainer=fsdp", "trainer.strategy.cpu_offload=true")
PADDED = "model.packing=false"  # tests/policy/test_packing.py compares the numbers in seconds


@pytest.mark.slow
@pytest.mark.parametrize("settings", [OFFLOADED, ("trainer=cpu", PADDED), ("trainer=fsdp", PADDED)])
def test_how_it_is_computed_does_not_change_the_numbers(
    tmp_path: Path, one_process: list[dict[str, float]], settings: tuple[str, ...]
) -> None:
    assert_same(one_process, succeeded(tmp_path / "run", *settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "process", "then"),
    [("ddp", 1, "ddp"), ("fsdp", 0, "cpu"), ("cpu", 0, "fsdp"), ("fsdp", 1, "fsdp")],
)
def test_a_process_that_fails_ends_the_run_and_any_number_of_them_goes_on(
    tmp_path: Path, one_process: list[dict[str, float]], first: str, process: int, then: str
) -> None:
    run = tmp_path / "run"
    broken = train(run, f"trainer={first}", fails=f"{process}:3")
    assert broken.returncode != 0 and "this process fails" in broken.stderr
    assert len(rows(run)) < len(one_process)
    assert_same(one_process, succeeded(run, f"trainer={then}", "ckpt_path=last"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_sigterm_ends_all_processes_which_can_go_on(
    tmp_path: Path, one_process: list[dict[str, float]], trainer: str
) -> None:
    run = tmp_path / "run"
    ended = train(run, f"trainer={trainer}", fails="0:2/terminated")
    assert ended.returncode == 143, ended.stderr[-2000:]
    assert max(row["step"] for row in rows(run)) == 2
    assert_same(one_process, succeeded(run, f"trainer={trainer}", "ckpt_path=last"))


@pytest.mark.slow
def test_nobody_waits_for_ever_for_a_process_that_hangs(tmp_path: Path) -> None:
    patience = "trainer.strategy.timeout.minutes=1"
    hung = train(tmp_path / "run", "trainer=ddp", patience, fails="1:2/hangs")
    assert hung.returncode != 0 and re.search("[Tt]imed? ?out", hung.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_of_shards_is_loaded_by_any_number_of_processes(
    tmp_path: Path, one_process: list[dict[str, float]], processes: int
) -> None:
    run = tmp_path / "run"
    assert train(run, "trainer=fsdp", SHARDS, fails="0:3").returncode != 0
    assert (run / "checkpoints" / "last.ckpt" / ".metadata").exists()
    again = ("trainer=fsdp", SHARDS, f"trainer.devices={processes}", "ckpt_path=last")
    assert_same(one_process, succeeded(run, *again))


@pytest.mark.slow
def test_muon_and_a_warm_start_are_sharded_too(tmp_path: Path) -> None:
    warm = ("warm_start=gold", f"warm_start.datamodule.stages=[{COPYING}]", "optimizer=muon_adamw")
    settings = (*warm, "optimizer.lr=1e-3", f"warm_start.cache_dir={tmp_path}/warm")
    one = succeeded(tmp_path / "one", *settings)
    shutil.rmtree(tmp_path / "warm")
    assert_same(one, succeeded(tmp_path / "two", *settings, "trainer=fsdp"))


@pytest.mark.slow
def test_adapters_are_trained_beside_shards(tmp_path: Path) -> None:
    lora = ("model.lora={r: 4, alpha: 8}", "model.activation_checkpointing=true")
    assert_same(
        succeeded(tmp_path / "one", *lora), succeeded(tmp_path / "two", *lora, "trainer=fsdp")
    )


@pytest.mark.slow
def test_shards_are_gathered_in_16_bits(tmp_path: Path) -> None:
    mixed = ("trainer.precision=bf16-mixed", "model.activation_checkpointing=true")
    found = succeeded(tmp_path / "run", "trainer=fsdp", *mixed)
    mismatch = [row["train/mismatch_kl"] for row in found if "train/mismatch_kl" in row]
    # Two computations in 16 bits, the engine's and the trainer's, differ a little.
    assert len(mismatch) == 3 and 0 < max(mismatch) < 1e-3
