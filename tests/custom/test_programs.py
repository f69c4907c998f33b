"""The programs on the example of docs/your-own-tools.md, as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRIPS = ROOT / "examples" / "trips"
EXAMPLE = ("data=custom", f"data.path={TRIPS / 'tasks.jsonl'}", f"data.tools={TRIPS / 'tools.py'}")


def run(program, *arguments):
    command = [sys.executable, str(ROOT / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_inspect_data_finds_the_example_sound_and_splits_it_anew(tmp_path):
    page, rows = tmp_path / "tasks.html", tmp_path / "rows.jsonl"
    output = run(
        "scripts/inspect_data.py",
        *EXAMPLE,
        f"page={page}",
        f"split.out={rows}",
        "split.by=entities",
        f"paths.log_dir={tmp_path}",
    )
    assert "tasks that share no entities" in output
    assert "LEAK" not in output
    assert "Problems" not in output
    text = page.read_text()
    assert "<svg" in text
    assert "find_currency" in text
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == len((TRIPS / "tasks.jsonl").read_text().splitlines())
    assert {row["split"] for row in written} == {"train", "validation", "test"}
    assert all("output" in call for row in written for call in row["gold_calls"])


def test_inspect_data_does_without_files_that_are_not_there(tmp_path):
    paths = [f"data.train_path={tmp_path}/no.jsonl", f"data.test_path={tmp_path}/no.jsonl"]
    command = [sys.executable, "scripts/inspect_data.py", "data=nestful", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "without data.train_path: there is no" in done.stderr
    assert "the task set has no tasks" in done.stderr


@pytest.mark.slow
def test_the_chain_holds_from_the_example_to_an_evaluated_policy(tmp_path):
    """In seconds instead of minutes: nothing is learned, every part runs."""
    stages = [f"warm_start.datamodule.stages.{stage}.iterations=2" for stage in range(3)]
    run(
        "src/train.py",
        "experiment=matchtir_hard",
        *EXAMPLE,
        *stages,
        "iterations=2",
        "tasks_per_iteration=2",
        "group_size=2",
        "silent=keep",
        f"paths.log_dir={tmp_path}",
    )
    (folder,) = (tmp_path / "matchtir_hard" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["tasks"] == sum(
        json.loads(line)["split"] == "test"
        for line in (TRIPS / "tasks.jsonl").read_text().splitlines()
    )
    output = run(
        "src/eval.py",
        "benchmark=custom",
        f"benchmark.custom.tasks.path={TRIPS / 'tasks.jsonl'}",
        f"benchmark.custom.tasks.tools={TRIPS / 'tools.py'}",
        f"policy={folder}",
        f"paths.log_dir={tmp_path}",
    )
    assert "three_calls" in output


def test_the_gold_solutions_of_the_example_get_the_full_score(tmp_path):
    run(
        "src/eval.py",
        "benchmark=custom",
        f"benchmark.custom.tasks.path={TRIPS / 'tasks.jsonl'}",
        f"benchmark.custom.tasks.tools={TRIPS / 'tools.py'}",
        "policy=gold",
        f"paths.log_dir={tmp_path}",
    )
    (result,) = tmp_path.glob("eval_custom/runs/*/result.json")
    means = json.loads(result.read_text())["benchmarks"]["custom"]["groups"]["all"]["all"]
    assert [means[name]["mean"] for name in ("solve_f1", "success", "answered")] == [1.0, 1.0, 1.0]
