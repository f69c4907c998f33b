"""How far a run is and how it ended: lines, bars, curves, the table and the result."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from matchtir.reports import progress


@given(st.lists(st.floats(), max_size=30))
def test_a_sparkline_has_a_bar_per_value_and_survives_anything(values):
    line = progress.sparkline(values)
    assert len(line) == (len(values) if any(map(math.isfinite, values)) else 0)
    assert set(line) <= set(progress.BARS) | {" "}


def test_a_sparkline_spans_its_values():
    assert progress.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert progress.sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert progress.sparkline([2.0, 2.0]) == "▁▁"


def test_numbers_times_and_shares_of_it():
    values = {0: "0.000", 0.5: "0.500", 1234.4: "1,234", 2e-5: "2.0e-05", math.nan: "nan"}
    assert [*map(progress.number, values)] == [*values.values()]
    assert [progress.clock(59.6), progress.clock(3600 + 62)] == ["0:01:00", "1:01:02"]
    assert progress.time_shares({"time/rollout": 0.0, "time/update": 0.0}) == {}
    shares = progress.time_shares({"time/tools": 1.0, "time/update": 3.0})
    assert shares == {"tools": 0.25, "update": 0.75}
    overlapping = {"time/rollout": 1.0, "time/tools": 7.0, "time/update": 1.0}
    shares = progress.time_shares(overlapping)
    assert shares == {"rollout": 0.0, "tools": 0.5, "update": 0.5}


def test_a_line_has_the_metrics_that_were_measured():
    place, metrics = progress.Position(3, 9, 1.0, 2.0), {"train/kl": 0.1, "other": 1.0}
    line = progress.plain_line(place, metrics, progress.TRAINING)
    assert line == "iteration 3/9  KL 0.100  0:00:01, 0:00:02 left"


def test_trailing_means_are_of_the_finite_values_so_far():
    values = [1.0, 4.0, -2.0, 5.0]
    assert progress.trailing_mean(values, 3) == pytest.approx([1.0, 2.5, 1.0, 7 / 3])
    assert progress.trailing_mean(values, 9)[-1] == pytest.approx(2.0)
    means = progress.trailing_mean([np.nan, 1.0, np.inf, 3.0], width=3)
    assert np.isnan(means[0]) and means[1:].tolist() == [1.0, 1.0, 2.0]
    assert len(progress.trailing_mean([], 3)) == 0


def test_a_picture_is_drawn_of_what_was_measured(tmp_path):
    path = tmp_path / "curves.png"
    progress.draw_curves({"time/rollout": ([0], [1.0]), "train/reward": ([], [])}, path)
    assert not path.exists()
    curves = {"train/reward": ([0, 1], [0.5, np.nan]), "val/solve_f1": ([1], [0.3])}
    progress.draw_curves(curves, path)
    assert path.read_bytes().startswith(b"\x89PNG")


BEFORE = {f"t{i}": {"solve_f1": 0.2, "answered": 1.0} for i in range(40)}
AFTER = {f"t{i}": {"solve_f1": 0.4 + 0.2 * (i % 2), "answered": 1.0} for i in reversed(range(40))}


def test_means_and_gain_of_tasks_paired_by_their_id():
    (row, answered) = progress.compare(BEFORE, AFTER, seed=0)
    found = (row.before, row.after, row.gain.mean)
    assert row.metric == "solve_f1" and found == pytest.approx((0.2, 0.5, 0.3))
    assert row.gain.low < row.gain.mean < row.gain.high
    assert answered.gain.mean == 0
    same = progress.compare(AFTER, dict(reversed(AFTER.items())), seed=0)
    assert all((row.gain.mean, row.gain.low, row.gain.high) == (0, 0, 0) for row in same)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (BEFORE, {task: AFTER[task] for task in list(AFTER)[1:]}, "t39"),
        (BEFORE, AFTER | {"other": AFTER["t0"]}, "other"),
        ({}, {}, "0 tasks before, 0 after"),
    ],
)
def test_other_tasks_are_refused(before, after, named):
    with pytest.raises(ValueError, match=named):
        progress.compare(before, after, seed=0)


def test_the_table_shows_every_number():
    console = Console(file=io.StringIO(), width=100)
    console.print(progress.final_table(progress.compare(BEFORE, AFTER, seed=0), tasks=40))
    text = console.file.getvalue()
    assert "40 test tasks" in text
    (line,) = [line for line in text.splitlines() if "solve_f1" in line]
    assert "0.200" in line and "0.500" in line and "+0.300" in line and "[+0.2" in line


def test_the_result_is_valid_json_even_where_a_number_is_not_finite(tmp_path):
    path = tmp_path / "result.json"
    facts = {"tasks": 40, "objective": float("nan"), "series": [1.0, float("inf")]}
    progress.write_result(path, progress.compare(BEFORE, AFTER, seed=0), **facts)
    result = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert result["objective"] is None and result["series"] == [1.0, None]
    assert result["tasks"] == 40
    assert result["gain"]["solve_f1"].keys() == {"mean", "low", "high"}
    assert result["after"]["solve_f1"] == pytest.approx(0.5)
