"""The programs on the example of docs/your-own-tools.md."""

import json
import subprocess
import sys

import pytest

import eval as evaluation
from matchtir.tasks.custom import CustomTasks
from scripts import doctor, inspect_data
from tests.scale.whole_runs import ROOT

TRIPS = ROOT / "examples" / "trips"
FILES = {"path": TRIPS / "tasks.jsonl", "tools": TRIPS / "tools.py"}
EXAMPLE = ("data=custom", *(f"data.{key}={file}" for key, file in FILES.items()))
BENCHMARK = ("benchmark=custom", *(f"benchmark.custom.tasks.{k}={f}" for k, f in FILES.items()))
ROWS = [json.loads(line) for line in FILES["path"].read_text().splitlines()]


def test_inspect_data_finds_the_example_sound_and_splits_it_anew(configure, tmp_path, capsys):
    page, rows = tmp_path / "tasks.html", tmp_path / "rows.jsonl"
    settings = (f"page={page}", f"split.out={rows}", "split.by=entities")
    inspect_data.run(configure("inspect_data", *EXAMPLE, *settings))
    output = capsys.readouterr().out
    assert "tasks that share no entities" in output
    assert "LEAK" not in output and "Problems" not in output
    text = page.read_text()
    assert "<svg" in text and "find_currency" in text
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == len(ROWS)
    assert {row["split"] for row in written} == {"train", "validation", "test"}
    assert all("output" in call for row in written for call in row["gold_calls"])


def test_inspect_data_does_without_files_that_are_not_there(configure, tmp_path, capsys):
    paths = [f"data.{split}_path={tmp_path}/no.jsonl" for split in ("train", "test")]
    with pytest.raises(SystemExit, match="the task set has no tasks"):
        inspect_data.run(configure("inspect_data", "data=nestful", *paths))
    assert "without train validation tasks: no such file" in capsys.readouterr().err


def test_the_doctor_finds_the_example_well(configure, capsys):
    assert doctor.run(configure("train", *EXAMPLE)) == {}
    output = capsys.readouterr().out
    assert "isolation" in output and "all is well" in output
    elsewhere = configure("train", "data=openenv", "sandbox.url=http://there")
    assert doctor.findings(doctor.isolation, elsewhere) == [
        (False, "OpenEnvSandbox: tools run elsewhere")
    ]


def test_the_doctor_names_a_broken_row_and_a_task_that_nothing_solves(configure, tmp_path):
    def problems(*rows, more=()):
        file = tmp_path / "tasks.jsonl"
        file.write_text("\n".join(rows))
        data = (*more, "data=custom", f"data.path={file}", f"data.tools={FILES['tools']}")
        config = configure("train", *data, f"paths.log_dir={tmp_path}")
        return [text for is_problem, text in doctor.findings(doctor.tasks, config) if is_problem]

    good = json.dumps(ROWS[0])
    assert "tasks.jsonl, row 1: line 2: broken JSON" in problems(good, good[:-5])[0]
    stays = {"city": "Oslo", "nights": 6}
    idle = {"question": "Stay.", "tools": ["set_nights"], "split": "train"}
    idle["gold_calls"] = [{"name": "set_nights", "arguments": stays}]
    idle["initial_state"] = idle["gold_state"] = {"TripPlan": {"stops": {"Oslo": 6}}}
    (problem,) = problems(good, json.dumps(idle))
    assert "tasks/1: an attempt that makes no call succeeds" in problem
    call = {**ROWS[0]["gold_calls"][0], "output": "what no call returns"}
    wrong = json.dumps({**ROWS[0], "id": "wrong", "gold_calls": [call]})
    (problem,) = problems(good, wrong)
    assert "wrong: only 0 of 1 gold outputs come out" in problem
    many = [json.dumps({**ROWS[0], "id": str(number)}) for number in range(12)]
    assert not problems(*many, wrong, more=["data.on_bad_row=skip"])


class OnlyTests(CustomTasks):
    """The tasks of a data set whose file of training tasks is not there."""

    def tasks(self, split):
        if split != "test":
            raise FileNotFoundError("no such file: train.parquet")
        return super().tasks(split)


def test_the_doctor_names_a_split_that_a_run_would_miss(configure):
    config = configure("train", *EXAMPLE, f"data._target_={__name__}.OnlyTests")
    found = doctor.findings(doctor.tasks, config)
    assert (True, "without train validation tasks: no such file: train.parquet") in found


def test_the_gold_solutions_of_the_example_get_the_full_score(configure, tmp_path):
    evaluation.run(configure("eval", *BENCHMARK, "policy=gold", f"paths.run_dir={tmp_path}"))
    result = json.loads((tmp_path / "result.json").read_text())
    means = result["benchmarks"]["custom"]["groups"]["all"]["all"]
    assert [means[name]["mean"] for name in ("solve_f1", "success", "answered")] == [1.0, 1.0, 1.0]


def run(program, *arguments):
    command = [sys.executable, str(ROOT / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_chain_holds_from_the_example_to_an_evaluated_policy(tmp_path):
    """As a user starts it, in seconds instead of minutes: nothing is learned, every part runs."""
    logs = f"paths.log_dir={tmp_path}"
    assert "LEAK" not in run("scripts/inspect_data.py", *EXAMPLE, logs)
    few = [f"warm_start.datamodule.stages.{stage}.iterations=2" for stage in range(2)]
    few += ["iterations=2", "tasks_per_iteration=2", "group_size=2", "zero_advantage=keep", logs]
    run("src/train.py", "experiment=matchtir_hard", *EXAMPLE, *few)
    (folder,) = (tmp_path / "matchtir_hard" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["tasks"] == sum(row["split"] == "test" for row in ROWS)
    assert "three_calls" in run("src/eval.py", *BENCHMARK, f"policy={folder}", logs)
