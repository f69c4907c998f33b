"""Runs of src/train.py in processes of their own, and what they leave."""

import csv
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import open_dict, read_write

import train as program
from matchtir.utils.run_folder import register_resolvers
from tests.scale.failing import FAILS
from tests.training.token_reward import PAID

ROOT = Path(__file__).parents[2]
NOT_REPEATED = ("time/", "train/tokens_per_s")  # columns that no two runs have alike

# The smoke experiment, smaller still; and untrained weights instead of trained ones.
SMALL_RUN = ("experiment=smoke", "rollout.limits.max_turn_tokens=12", "sandbox.workers=1")
SMALL_MODEL = (
    *("model=tiny", "model.hidden_size=32", "model.heads=2", "model.key_value_heads=1"),
    "model.feed_forward=64",
)
# With something to learn and two optimizer steps.
TINY = (
    *(*SMALL_RUN, *SMALL_MODEL, "model.layers=2"),
    *("tasks_per_iteration=4", "mini_batches=2", "module.micro_batch_tokens=300"),
    *("optimizer=adamw", "optimizer.lr=1e-3", "trainer.val_check_interval=2"),
    "data.sizes={train: 8, validation: 3, test: 3}",
    PAID,
    "module._target_=tests.scale.failing.FailingModule",
)
# A warm start of two iterations.
COPYING = (
    "{_target_: matchtir.training.data.Stage, iterations: 2, batch_size: 2,"
    " tasks: {_target_: matchtir.tasks.synthetic.CopyTasks, size: 10}}"
)
# What differs between numbers of processes is the order of sums in 32 bits.
TOLERANCE = 1e-5


def composed(folder, *overrides, name="train"):
    """The config of a program's command line as it gets it, with a given run folder."""
    register_resolvers()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        arguments = [f"paths.log_dir={folder.parent}", *overrides]
        config = compose(name, arguments, return_hydra_config=True)
    config.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(config)
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config


def run_here(folder, *overrides):
    """A command line in this process; gives its objective."""
    try:
        return program.run(composed(folder, *overrides))
    finally:
        HydraConfig.instance().cfg = None


def forked(target, *given):
    """A process that has begun; one that has imported everything forks it.

    That takes a second, where imports take longer than a small run.
    """
    # What is imported ahead knows neither pytest's path nor how many threads a fork survives.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.faulty_runs"])
    process = context.Process(target=target, args=given)
    process.start()
    return process


def told(folder):
    """Let what this process says go to a file beside the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.log").open("a", encoding="utf-8") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)


def together(folder, *overrides, processes=1):
    """The rows of a run of so many processes, which must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_PORT": str(free.getsockname()[1])} if processes > 1 else {}
    started = [
        forked(_one_of, folder, overrides, place and {**place, "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    for process in started:
        process.join(timeout=240)
        assert process.exitcode == 0, Path(f"{folder}.log").read_text(encoding="utf-8")[-3000:]
    return rows(folder)


def _one_of(folder, overrides, place):
    told(folder)
    os.environ |= place
    rank_zero_only.rank = int(place.get("LOCAL_RANK", "0"))
    run_here(folder, *TINY, *overrides)


def train(folder, *overrides, fails="", seconds=240):
    """One command line; raises where it does not end in time."""
    return subprocess.run(
        [sys.executable, "src/train.py", *TINY, f"paths.run_dir={folder}", *overrides],
        cwd=ROOT,
        env={**os.environ, **{"PYTHONPATH": str(ROOT), FAILS: fails, "OMP_NUM_THREADS": "1"}},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def running(folder):
    """Command lines of processes that still work for runs below a folder."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if f"paths.run_dir={folder}" in line:
            lines.append(line)
    return lines


def succeeded(folder, *overrides):
    """The rows of a run that must end well."""
    done = train(folder, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows(folder)


def rows(folder):
    """The rows of metrics.csv, without what differs between any two runs."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if v and not k.startswith(NOT_REPEATED)}
            for row in csv.DictReader(file)
        ]


def differences(one, other):
    """The largest difference of each metric, relative where it is above 1."""
    assert [row.keys() for row in one] == [row.keys() for row in other]
    found = {}
    for left, right in zip(one, other, strict=True):
        for name in left:
            difference = abs(left[name] - right[name]) / max(1.0, abs(left[name]))
            found[name] = max(found.get(name, 0.0), difference)
    return found
