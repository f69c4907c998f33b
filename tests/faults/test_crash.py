"""A run that is killed, interrupted or short of disk goes on to the numbers of an unbroken one."""

import json
import random
import re
import signal
import time

import pytest
import torch

from matchtir.utils.run_folder import CHECKPOINTS, checkpoint_to_load, is_whole
from tests.faults.faulty_runs import COUNTS_FILE, PHASES, Moment, outcome, run, start
from tests.faults.helpers import fault
from tests.scale.whole_runs import rows


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of the run that all others are held against."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    status, said = run(folder)
    assert status == 0, said
    return folder


def go_on(folder, *overrides):
    """Resume a run to its end; one that was never saved begins again. Gives what it said."""
    last = [] if not any((folder / name).exists() for name in CHECKPOINTS) else ["ckpt_path=last"]
    status, said = run(folder, *last, *overrides)
    assert status == 0, said
    return said


def killed(folder, moment):
    """The folder of a run that was killed."""
    status, said = run(folder, moment=moment)
    assert status == -signal.SIGKILL, said
    return folder


def random_moments(counts, number, seed):
    """Moments of all phases in turn, each anywhere in the run."""
    generator = random.Random(seed)
    phases = [list(PHASES)[index % len(PHASES)] for index in range(number)]
    return [Moment(phase, generator.randint(1, counts[phase])) for phase in phases]


MOMENTS = [("rollout", 30), ("save", 3), ("rename", 18)]
RARER = [pytest.param(moment, marks=pytest.mark.slow) for moment in (("backward", 1), ("step", 7))]


@fault(
    "E kill -9",
    "in rollout, backward, step, save, rename",
    "checkpoints whole, resumed bit for bit",
)
@pytest.mark.parametrize("moment", [*MOMENTS, *RARER], ids=str)
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, unbroken, moment):
    folder = killed(tmp_path / "run", Moment(*moment))
    saved = [folder / name for name in CHECKPOINTS if (folder / name).exists()]
    assert all(is_whole(checkpoint) for checkpoint in saved)
    go_on(folder)
    assert outcome(folder) == outcome(unbroken)
    assert not [*folder.glob("checkpoints/*.part")]


@fault("E kill -9 anywhere", "20 random moments", "resumed bit for bit")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_anywhere_goes_on_to_the_same_numbers(tmp_path, unbroken, seed):
    counts = json.loads((unbroken / COUNTS_FILE).read_text())
    moment = random_moments(counts, 20, 1)[seed]
    print(f"\n{moment.phase} {moment.number} of {counts[moment.phase]}", end="")
    folder = killed(tmp_path / "run", moment)
    go_on(folder)
    assert outcome(folder) == outcome(unbroken)


@fault(
    "E signals",
    "SIGTERM, Ctrl-C, Ctrl-C twice",
    "the iteration is saved; twice: the end is at once",
)
@pytest.mark.parametrize(
    ("fault", "status"), [("interrupt", 130), ("terminate", 143), ("interrupt twice", -2)]
)
def test_a_run_that_is_asked_to_end_saves_its_iteration(tmp_path, unbroken, fault, status):
    folder = tmp_path / "run"
    ended, said = run(folder, moment=Moment("credit", 3, fault))
    assert ended == status, said
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["callbacks"]["LastCheckpoint"] and rows(folder)[-1]["step"] == 2 + (status > 0)
    assert ("ckpt_path=last" in said) == (status > 0)
    if fault == "interrupt":
        go_on(folder)
        assert outcome(folder) == outcome(unbroken)


@fault("E damage", "last.ckpt truncated, a bit flipped, removed", "named, the one before is taken")
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, unbroken, caplog):
    folder = killed(tmp_path / "run", Moment("credit", 5))
    last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    whole = last.read_bytes()
    last.unlink()
    assert checkpoint_to_load("last", folder) == previous and not caplog.text
    at = len(whole) // 3
    for damaged in (whole[:-1000], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
        last.write_bytes(damaged)
        assert checkpoint_to_load("last", folder) == previous
    assert caplog.text.count("last.ckpt IS DAMAGED") == 2
    assert "last.ckpt IS DAMAGED" in go_on(folder)
    assert outcome(folder) == outcome(unbroken)


@fault("E full disk", "in a save", "the run ends by name, and can go on")
def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, unbroken):
    folder = tmp_path / "run"
    status, said = run(folder, moment=Moment("save", 3, "full disk"))
    assert status == 1 and "could not be saved; once it can, ckpt_path=last goes on" in said
    assert is_whole(folder / "checkpoints" / "last.ckpt")
    assert not [*folder.glob("checkpoints/*.part")]
    go_on(folder)
    assert outcome(folder) == outcome(unbroken)


@fault("E live run", "ckpt_path=last beside it", "refused, with its process")
def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    folder = tmp_path / "run"
    living = start(folder, moment=Moment("credit", 4, "wait"))
    try:
        deadline = time.monotonic() + 120
        while not (folder / "waits").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        status, said = run(folder, "ckpt_path=last")
        assert status == 1 and f"process {living.pid}" in said and "still writes here" in said
        assert (folder / "config.yaml").read_text(encoding="utf-8") == config
    finally:
        living.kill()


@fault("E length", "more iterations; fewer than are done", "goes on; refused")
def test_a_run_may_become_longer_and_not_shorter_than_it_is(tmp_path, unbroken):
    folder = tmp_path / "run"
    status, said = run(folder, "iterations=3", moment=Moment("credit", 3))
    assert status == -signal.SIGKILL, said
    status, said = run(folder, "iterations=1", "ckpt_path=last")
    assert status == 1 and "iterations=1: 2 are done" in said
    go_on(folder, "iterations=5")
    assert outcome(folder) == outcome(unbroken)


@pytest.mark.parametrize("iterations", [2, 3])  # saved before and behind the end of training
def test_a_run_that_has_all_its_iterations_may_become_longer(tmp_path, unbroken, iterations):
    folder = tmp_path / "run"
    status, said = run(folder, f"iterations={iterations}")
    assert status == 0, said
    (folder / "result.json").unlink()  # as where it was killed in its last test
    go_on(folder, "iterations=5")
    found, expected = outcome(folder), outcome(unbroken)
    assert found.pop("metrics") != expected.pop("metrics")  # it was tested once more
    assert found == expected


@fault("E inputs", "other rows, weights, tokenizer", "refused by name, before training")
def test_a_run_does_not_go_on_with_other_inputs(tmp_path):
    folder = killed(tmp_path / "run", Moment("credit", 3))
    inputs = json.loads((folder / "inputs.json").read_text())
    changed = dict.fromkeys(("validation tasks", "model weights", "tokenizer"), "other")
    assert changed.keys() <= inputs.keys()
    (folder / "inputs.json").write_text(json.dumps(inputs | changed))
    status, said = run(folder, "ckpt_path=last")
    assert status == 1 and re.search("was started with other .*(tasks|weights|tokenizer)", said)


@fault("E best.ckpt", "as ckpt_path", "a new run from its weights")
def test_the_best_checkpoint_is_a_start(tmp_path, unbroken):
    best = unbroken / "checkpoints" / "best.ckpt"
    folder = tmp_path / "run"
    status, said = run(folder, f"ckpt_path={best}", "iterations=1")
    assert status == 0, said
    assert [row["step"] for row in rows(folder) if "train/loss" in row] == [1]
    before = json.loads((folder / "before.json").read_text())
    assert before.keys() == json.loads((folder / "after.json").read_text()).keys()


def test_a_run_from_the_best_checkpoint_goes_on_with_the_reference_that_it_began_with(
    tmp_path, unbroken
):
    given = f"ckpt_path={unbroken}/checkpoints/best.ckpt", "loss.kl_coefficient=0.1"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, *given)[0] == 0
    assert run(broken, *given, moment=Moment("credit", 4))[0] == -signal.SIGKILL
    go_on(broken, given[1])
    assert outcome(broken) == outcome(whole)
