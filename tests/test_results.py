"""The runs behind docs/results.md, and that the page says what they scored."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts import results, results_page  # noqa: E402


def test_the_page_says_what_the_tables_of_results_say(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["results_page.py", "--check"])
    results_page.main()  # SystemExit where it does not


def test_the_check_finds_another_page_and_numbers_of_the_text(monkeypatch, tmp_path):
    changed = tmp_path / "results.md"
    page = results_page.PAGE.read_text(encoding="utf-8")
    changed.write_text(page.replace("| GRPO | ", "| GRPO | 1", 1), encoding="utf-8")
    monkeypatch.setattr(results_page, "PAGE", changed)
    monkeypatch.setattr(results_page, "render", lambda results: page)
    monkeypatch.setattr(sys, "argv", ["results_page.py", "--check"])
    with pytest.raises(SystemExit, match=r"GRPO \| 1"):
        results_page.main()
    assert results_page.own_numbers("It gains 0.3.") == ["It gains 0.3."]
    fine = "Table 1, `seed=1`, [it](a1.png), {{ mean('a', 'success_1_calls') }}\n\n    run 3\n"
    assert results_page.own_numbers(fine) == []


def test_successes_are_packed_and_unpacked():
    found = [1.0, 0.0, 0.0, 1.0] + [0.0] * 3 + [1.0]
    assert results.pack(found) == "91"
    assert results.pack([0.0] * 7 + [1.0]) == "01"
    np.testing.assert_array_equal(results.unpack("91"), found)


def test_every_row_is_a_planned_run_and_its_bits_are_its_success():
    names = {"skill", "start", *results.experiments().starts}
    names |= {run.name for run in results.planned("all")}
    rows = results.read_table()
    assert len({results.key_of(row) for row in rows}) == len(rows)
    for row in rows:
        assert row["name"] in names
        assert results.unpack(row["bits"]).mean() == pytest.approx(float(row["success"]), abs=1e-4)


def test_what_is_planned_has_a_command_that_names_its_start_and_seed():
    runs = {run.key: run for run in results.planned("table1")}
    assert len(runs) == 7 * 3 * 2 and results.planned("figure3") == list(runs.values())
    words = runs["short_hard", 2, 2].command().split()
    assert {"experiment=matchtir_hard", "iterations=60", "seed=2"} <= {*words}
    assert "model.folder=logs/policies/start_2/policy" in words
    assert "paths.run_dir=logs/results/short_hard__2_2" in words
    with pytest.raises(SystemExit, match="table9 is not one of"):
        results.planned("table9")


def test_runs_without_a_row_are_missing_and_ask_for_their_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FILE", tmp_path / "runs.csv")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    assert len(results.missing("strong")) == 3 * 3
    assert len(results.start_commands("strong")) == 3 and not results.start_commands("table1")
    finished = tmp_path / "logs" / "results" / "short_strong_hard__1_1"
    finished.mkdir(parents=True)
    (finished / "result.json").write_text("{}", encoding="utf-8")
    assert len(results.missing("strong")) == 3 * 3 - 1
    assert results.plan("strong", jobs=2).startswith("strong: 1 of 9 runs are there")


def test_reproduce_names_its_tables():
    script = ROOT / "scripts" / "reproduce.sh"
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode and "table1|table2|figure3" in done.stderr
