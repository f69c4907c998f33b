"""The batch script, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time

import pytest

from tests.scale.whole_runs import ROOT

SCRIPT = ROOT / "scripts" / "slurm_train.sbatch"


@pytest.fixture
def start(tmp_path):
    """Starts the script in an empty folder; `srun` is the given shell command."""

    def run(srun):
        commands = tmp_path / "bin"
        commands.mkdir()
        for name, body in {"srun": srun, "scontrol": "echo scontrol $@"}.items():
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}
        return subprocess.Popen(
            ["bash", str(SCRIPT), "experiment=grpo"],
            cwd=tmp_path,
            env={**slurm, "PATH": f"{commands}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.parametrize("more", [[], ["ckpt_path=last"]], ids=["first", "queued again"])
def test_the_command_of_a_job(start, tmp_path, more):
    if more:
        last = tmp_path / "logs" / "slurm" / "7" / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        last.touch()
    job = start("echo $@; exit 3")
    said, _ = job.communicate(timeout=20)
    assert job.returncode == 3  # a failure is the job's
    assert said.split() == [
        *("--cpus-per-task=1", "--kill-on-bad-exit=1", ".venv/bin/python", "src/train.py"),
        *("experiment=grpo", "trainer.num_nodes=2", "trainer.devices=8"),
        *("paths.run_dir=logs/slurm/7", *more),
    ]


def test_a_job_whose_time_is_nearly_up_is_queued_again(start, tmp_path):
    job = start("touch started; until [[ -e end ]]; do sleep 0.05; done; exit 4")
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.stdout.readline() == "scontrol requeue 7\n"
    assert job.poll() is None  # until SLURM ends it
    (tmp_path / "end").touch()
    assert job.wait(timeout=20) == 4
