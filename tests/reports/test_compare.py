"""Runs compared: which belong together, what is computed of them, and what is written."""

import csv
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from matchtir.reports.comparison import (
    compare_runs,
    cost,
    curve,
    methods,
    setting_differences,
    write_comparison,
)
from matchtir.reports.parameter import curve_points
from matchtir.reports.runs import find_runs
from matchtir.utils.loggers import CsvLogger

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"


def make_run(folder, seed=1, level=0.0, finished=True, group="grpo", tasks=6, **settings):
    """A run whose scores are `level` plus a little of the seed."""
    folder.mkdir(parents=True)
    settings = {"lr": 0.1, "module": {"seed": seed, "lr": settings.get("lr", 0.1)}} | settings
    config = {"seed": seed, "identity": {"group": group, "name": f"{group} seed={seed}"}} | settings
    config["paths"] = {"run_dir": str(folder)}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    logger = CsvLogger(folder)
    measured = {"train/reward": level + seed, "train/tokens_per_s": 10.0}
    measured |= {"time/rollout": 2.0, "time/tools": 0.5, "time/update": 1.0}
    for step in range(1, 31):
        validated = {"val/solve_f1": level + seed / 10} if step % 10 == 0 else {}
        logger.log_metrics(measured | {"credit/level": 6.55 + step / 10_000} | validated, step)
    if finished:
        before = {f"t{n}": scores(0.0) for n in range(tasks)}
        after = {f"t{n}": scores(level + seed / 100) for n in range(tasks)}
        for name, content in (("before", before), ("after", after)):
            (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / "result.json").write_text(json.dumps({"seconds": 100.0, "objective": 0.5}))
    return folder


def scores(value):
    solved = {"solve_p": value, "solve_r": 2 * value, "solve_f1": 3 * value}
    return {"success": value > 0.1, "answer_f1": value, **solved, "turns": 1.0 - value}


@pytest.fixture
def sweep(tmp_path):
    """Two methods of three seeds; one run is not finished."""
    for number, (seed, lr) in enumerate((s, lr) for lr in (0.1, 0.2) for s in (1, 2, 3)):
        folder, group = tmp_path / "sweep" / str(number), f"grpo lr={lr}"
        make_run(folder, seed, level=lr, finished=number != 5, group=group, lr=lr)
    return tmp_path / "sweep"


def rows(file):
    return [*csv.DictReader(file.read_text().splitlines())]


def labels(*folders):
    found = methods(find_runs(folders))
    return [(m.label, [(r.start, r.seed) for r in m.runs]) for m in found]


def test_runs_that_differ_in_seed_or_start_are_one_method(sweep, tmp_path):
    for start in ("a", "b"):
        group, model = f"grpo lr=0.1 model.folder={start}", {"folder": start}
        make_run(tmp_path / "starts" / start, group=group, model=model, warm_start=model)
    assert labels(sweep, tmp_path / "starts") == [
        ("grpo lr=0.1", [("", 1), ("", 2), ("", 3), ("a", 1), ("b", 1)]),
        ("grpo lr=0.2", [("", 1), ("", 2), ("", 3)]),
    ]


def test_labels_are_the_experiment_and_what_differs(tmp_path):
    for number, group in enumerate(("hard data=x", "grpo data=x lr=1", "grpo data=x lr=2 kl=0")):
        make_run(tmp_path / str(number), group=group, lr=number)
    assert [label for label, _ in labels(tmp_path)] == ["hard", "grpo lr=1", "grpo lr=2 kl=0"]
    runs = find_runs([tmp_path])
    for name, label in (("hard", "hard"), ("kl=0", "grpo lr=2 kl=0"), ("lr=1", "grpo lr=1")):
        assert compare_runs(runs, baseline=name).baseline == label
    for name in ("grpo", "sft"):
        with pytest.raises(ValueError, match=f"{name}' names no single one of: hard; grpo"):
            compare_runs(runs, baseline=name)


def test_a_repeated_seed_is_no_further_seed(sweep):
    again = make_run(sweep / "again", 1, level=0.5, group="grpo lr=0.1", lr=0.1)
    make_run(sweep / "broken", 2, group="grpo lr=0.1", lr=0.1, finished=False)
    comparison = compare_runs(find_runs([sweep, sweep / "again"]))
    row = comparison.final[0]
    assert (row["seeds"], row["runs"]) == ([1, 2, 3], 3)
    assert row["scores"]["solve_p"]["mean"] == pytest.approx((0.51 + 0.12 + 0.13) / 3)
    assert comparison.notes == [
        f"{sweep / '0'} is left out: {again} has its settings and its seed",
        f"{sweep / 'broken'} is left out: {sweep / '1'} has its settings and its seed",
    ]


def test_seeds_and_starts_widen_the_intervals(sweep, tmp_path):
    gain = compare_runs(find_runs([sweep])).final[0]["scores"]["solve_p"]["gain"]
    assert gain["low"] < 0.115 < 0.125 < gain["high"]  # all tasks are alike: seeds alone differ
    for start, level in (("a", 0.0), ("b", 1.0)):
        for seed in (1, 2):
            make_run(tmp_path / start / str(seed), seed, level=level, model={"folder": start})
    (row,) = compare_runs(find_runs([tmp_path / "a", tmp_path / "b"])).final
    gain = row["scores"]["solve_p"]["gain"]
    assert (row["starts"], row["seeds"], row["runs"]) == (2, [1, 2], 4)
    assert gain["low"] < 0.1 and gain["high"] > 0.9


def test_runs_are_found_in_order_and_reports_beside_them_are_left_out(tmp_path):
    for number in (2, 10, 1):
        make_run(tmp_path / str(number), seed=number)
    report = tmp_path / "compare.html"
    report.touch()
    assert [run.seed for run in find_runs([tmp_path, report, tmp_path / "2"])] == [1, 2, 10]
    with pytest.raises(FileNotFoundError, match=r"compare.html: no run .* is there"):
        find_runs([report])


def test_a_curve_is_the_mean_over_seeds_with_students_interval(sweep):
    method = methods(find_runs([sweep]))[0]
    points = curve(method, "val/solve_f1")
    assert points["steps"] == [10, 20, 30]
    assert points["mean"] == pytest.approx([0.3] * 3)
    low, high = stats.t.interval(0.95, 2, loc=0.3, scale=stats.sem([0.2, 0.3, 0.4]))
    assert (points["low"][0], points["high"][0]) == pytest.approx((low, high))
    assert curve(method, "no/such") is None


def test_a_run_that_stopped_early_counts_as_far_as_it_got(tmp_path):
    make_run(tmp_path / "1", 1)
    short = make_run(tmp_path / "2", 3)
    lines = (short / "metrics.csv").read_text().splitlines()
    (short / "metrics.csv").write_text("\n".join(lines[:11]) + "\n")
    points = curve(methods(find_runs([tmp_path]))[0], "train/reward")
    assert points["mean"][9:11] == [2.0, 1.0] and points["seeds"][1][10] is None
    assert points["low"] == [None] * 30  # two seeds have no interval


def test_final_scores_are_paired_with_before_and_with_the_baseline(sweep):
    first, second = compare_runs(find_runs([sweep])).final
    assert (first["seeds"], second["seeds"], first["tasks"]) == ([1, 2, 3], [1, 2], 6)
    mean = 0.1 + 0.02
    score = first["scores"]["solve_f1"]
    assert [score["mean"], score["gain"]["mean"]] == pytest.approx([3 * mean] * 2)
    assert first["scores"]["solve_avg"]["mean"] == pytest.approx(2 * mean)
    assert score["by_seed"] == pytest.approx([0.33, 0.36, 0.39]) and score["difference"] is None
    assert second["scores"]["solve_f1"]["difference"]["mean"] == pytest.approx(3 * (0.215 - mean))
    paper = ["solve_p", "solve_r", "solve_f1", "solve_avg"]
    assert list(first["scores"]) == ["success", *paper, "answer_f1", "turns"]


def test_final_scores_against_the_values_of_a_parameter(tmp_path):
    for number, (name, seed, lr) in enumerate(product(("grpo", "soft"), (1, 2), (0.2, 0.1))):
        group = f"{name} lr={lr}"
        make_run(tmp_path / "s" / str(number), seed, level=lr, group=group, lr=lr, loss=name)
    make_run(tmp_path / "s" / "8", 3, level=0.1, finished=False, group="soft lr=0.1", lr=0.1)
    points = curve_points(find_runs([tmp_path]), "lr")
    solved = [point for point in points if point.measure == "solve_p"]
    lines = [("grpo", 0.1), ("grpo", 0.2), ("soft", 0.1), ("soft", 0.2)]
    assert [(point.line, point.value) for point in solved] == lines
    assert solved[-1].runs == pytest.approx([0.21, 0.22])
    score = solved[-1].score
    assert (score.mean, score.low, score.high) == pytest.approx((0.215, 0.21, 0.22))
    out = tmp_path / "out" / "any.html"
    command = [sys.executable, SCRIPT, tmp_path / "s", "--curve", "lr", "--out", out]
    subprocess.run(command, check=True)
    assert (out.parent / "curve.png").read_bytes().startswith(b"\x89PNG")
    found = [row for row in rows(out.parent / "curve.csv") if row["measure"] == "success"]
    assert [(row["method"], row["lr"], row["runs"], row["mean"]) for row in found] == [
        (name, lr, "2", "1.0") for name in ("grpo", "soft") for lr in ("0.1", "0.2")
    ]


def test_what_is_no_curve_of_a_parameter_is_said(sweep, tmp_path):
    with pytest.raises(ValueError, match=r"has no lrr; did you mean lr\?"):
        curve_points(find_runs([sweep]), "lrr")
    with pytest.raises(ValueError, match=r"loss=1 has runs that differ in lr"):
        for number, lr in enumerate((0.1, 0.2)):
            make_run(tmp_path / "two" / str(number), loss=1, lr=lr)
        curve_points(find_runs([tmp_path / "two"]), "loss")
    make_run(tmp_path / "none", finished=False)
    with pytest.raises(ValueError, match="no run has come to its end: there is no curve of lr"):
        curve_points(find_runs([tmp_path / "none"]), "lr")
    make_run(tmp_path / "list", lr=[1, 2])
    assert {point.value for point in curve_points(find_runs([tmp_path / "list"]), "lr")} == {
        "[1, 2]"
    }


def test_other_test_tasks_have_no_difference(tmp_path):
    make_run(tmp_path / "0", lr=0.1)
    make_run(tmp_path / "1", lr=0.2, tasks=5)
    _, second = compare_runs(find_runs([tmp_path])).final
    assert second["scores"]["solve_f1"]["difference"] is None
    make_run(tmp_path / "2", lr=0.2, seed=2)
    with pytest.raises(ValueError, match="tested on different tasks"):
        compare_runs(find_runs([tmp_path]))


def test_settings_that_differ_and_cost(sweep):
    found = methods(find_runs([sweep]))
    # module.lr repeats lr, seeds are no setting, and folders neither
    assert setting_differences(found) == [{"key": "lr", "values": ["0.1", "0.2"]}]
    parts = {"rollout": 45.0, "tools": 15.0, "credit": 0.0, "update": 30.0, "other": 10.0}
    row = {"method": "grpo lr=0.1", "runs": 3, "tokens": 600.0, "seconds": 100.0}
    assert cost(found[0]) == row | parts


def test_the_csv_files_have_the_numbers_of_the_page(sweep):
    comparison = compare_runs(find_runs([sweep]), baseline="grpo lr=0.2")
    write_comparison(comparison, sweep / "compare.html")
    names = ("curves", "final", "settings", "cost")
    curves, final, settings, costs = (rows(sweep / f"compare_{name}.csv") for name in names)
    validated = [row for row in curves if row["metric"] == "val/solve_f1"]
    assert len(validated) == 2 * 3 and validated[0]["seeds"] == "3"
    found = {(row["method"], row["measure"]): row for row in final}["grpo lr=0.1", "solve_f1"]
    score = comparison.final[0]["scores"]["solve_f1"]
    assert float(found["after"]) == score["mean"]
    assert float(found["difference_mean"]) == score["difference"]["mean"]
    assert float(found["gain_low"]) == score["gain"]["low"]
    assert settings == [{"key": "lr", "grpo lr=0.1": "0.1", "grpo lr=0.2": "0.2"}]
    assert np.isclose(float(costs[0]["tokens"]), 600)


def test_the_command_line(sweep, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, SCRIPT, sweep / "0", sweep / "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=elsewhere)
    assert "lr=0.1" in done.stdout and str(sweep / "compare.html") in done.stdout
    assert not list(elsewhere.iterdir())  # into the folder that holds both
    marked = make_run(tmp_path / "other", group="grpo on=[all]"), "--out", tmp_path / "[b]" / "x"
    done = subprocess.run([*command, *marked], capture_output=True, text=True, check=True)
    assert "on=[all]" in done.stdout and str(marked[2]) in done.stdout  # are no markup
    (sweep / "0" / "after.json").write_text("{")
    failed = subprocess.run([sys.executable, SCRIPT, sweep], capture_output=True, text=True)
    assert failed.returncode == 1 and "0/after.json: not JSON" in failed.stderr


# -- in a browser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page(page, sweep, width):
    file, *_ = write_comparison(compare_runs(find_runs([sweep])), sweep / "compare.html")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_selector(".compare")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table.final tbody tr").count() == 2
    assert page.inner_text("table.final .best") == "0.215"
    assert page.inner_text("table.settings tbody td:first-child") == "lr"
    assert page.locator("text=Where in an attempt").count() == 0  # no run has measured it
    assert "seeds 1, 2, 3" in page.inner_text("table.final")
    assert "3 seed" not in page.inner_text(".methods")
    for table in page.locator("table").all():  # no column is cut
        box = table.bounding_box()
        assert box["x"] + box["width"] <= width
    # turns are no score: that they fell is neither good nor bad
    assert not page.locator("td[data-label=turns] .up, td[data-label=turns] .down").count()
    reward = page.locator("[data-metric='train/reward']")
    assert reward.locator("g[data-method]").count() == 2
    page.click(".method:first-child")
    assert reward.locator("g[data-method]:not(.off)").count() == 1
    page.click("summary:has-text('credit')")
    page.wait_for_selector("[data-metric='credit/level']")
    assert page.locator("[data-metric='credit/level'] g[data-method]:not(.off)").count() == 1
    marks = page.locator("[data-metric='credit/level'] text").all_text_contents()
    assert len(marks) == len(set(marks))  # neighbouring ticks read differently
    # what never changes is named, not drawn
    page.click("summary:has-text('time')")
    assert "rollout 2" in page.inner_text("details:has(summary:has-text('time')) .constants")
    assert page.locator("[data-metric='time/rollout']").count() == 0
    reward.locator("svg").hover()
    assert page.locator(".readout b").first.inner_text().strip().isdigit()
    assert page.locator(".readout .value:visible").count() == 1  # of the method that is not hidden


def test_labels_stay_text(page, tmp_path):
    evil = "<img/src=x/onerror=window.hacked=1>"
    make_run(tmp_path / "0", group=evil)
    file, *_ = write_comparison(compare_runs(find_runs([tmp_path])), tmp_path / "compare.html")
    page.goto(file.as_uri())
    page.wait_for_selector(".compare")
    assert evil in page.inner_text(".methods")
    assert page.evaluate("window.hacked === undefined && !document.querySelector('img')")
