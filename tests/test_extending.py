"""What docs/extending.md tells to write works as it is written there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# `path`, whole: followed by the file
FILES = dict(re.findall(r"`([\w/.]+)`, whole:\n\n```\w+\n(.*?)```\n", TEXT, flags=re.DOTALL))


def test_every_file_of_the_text_is_found_and_reads():
    assert len(FILES) == TEXT.count(", whole:") >= 11
    for path, content in FILES.items():
        if path.endswith(".py"):
            compile(content, path, "exec")
            assert max(map(len, content.splitlines())) <= 100, path
        else:
            assert OmegaConf.create(content), path


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with the files of the text in it."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("src", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, content in FILES.items():
        (folder / path).write_text(content, encoding="utf-8")
    return folder


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_benchmark_of_the_text(copy):
    run(copy, "-m", "pytest", "-q", "tests/tasks/test_sums.py")
    shown = run(copy, "src/eval.py", "benchmark=sums", "policy=gold", "max_tasks=6")
    assert "6 digits" in shown and "100.00" in shown


@pytest.mark.slow
def test_the_parts_of_training_of_the_text(copy):
    options = ("assignment=nearest", "advantage=median", "rollout=generate", "module=bounded")
    base = ("src/train.py", "experiment=smoke", "iterations=1")
    assert "after" in run(copy, *base, *options)
    assert "after" in run(copy, *base, "reward=frugal")
