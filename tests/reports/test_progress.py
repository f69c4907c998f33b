"""How far a run is and how it ended: lines, bars, curves, the table and the result."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from matchtir.reports.progress import (
    BARS,
    TRAINING,
    Position,
    Scores,
    clock,
    compare,
    draw_curves,
    final_table,
    number,
    plain_line,
    sparkline,
    time_shares,
    trailing_mean,
    write_result,
)


@given(st.lists(st.floats(), max_size=30))
def test_a_sparkline_has_a_bar_per_value_and_survives_anything(values: list[float]) -> None:
    line = sparkline(values)
    if any(map(math.isfinite, values)):
        assert len(line) == len(values)
        assert set(line) <= set(BARS) | {" "}
    else:
        assert line == ""


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (0.5, "0.500"), (1234.4, "1,234"), (2e-5, "2.0e-05"), (math.nan, "nan")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_clock() -> None:
    assert [clock(59.6), clock(3600 + 62)] == ["0:01:00", "1:01:02"]


def test_time_shares_need_some_time() -> None:
    assert time_shares({"time/rollout": 0.0, "time/update": 0.0}) == {}
    assert time_shares({"time/tools": 1.0, "time/update": 3.0}) == {"tools": 0.25, "update": 0.75}


def test_a_line_without_a_known_end() -> None:
    line = plain_line(Position(3, None, 1.0, None), {"train/kl": 0.1, "other": 1.0}, TRAINING)
    assert line == "iteration 3  KL 0.100"


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 12))
def test_trailing_mean(values: list[float], width: int) -> None:
    expected = [np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    assert trailing_mean(values, width) == pytest.approx(expected, abs=1e-9)


def test_values_that_are_not_finite_are_left_out_of_the_mean() -> None:
    means = trailing_mean([np.nan, 1.0, np.inf, 3.0], width=3)
    assert np.isnan(means[0])
    assert means[1:].tolist() == [1.0, 1.0, 2.0]


def test_a_picture_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves({"train/reward": ([0, 1], [0.5, np.nan]), "val/solve_f1": ([1], [0.3])}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    draw_curves({"time/rollout": ([0], [1.0]), "train/reward": ([], [])}, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


# -- the end ---------------------------------------------------------------------------------------

BEFORE = {f"t{i}": {"solve_f1": 0.2, "answered": 1.0} for i in range(40)}
AFTER = {f"t{i}": {"solve_f1": 0.4 + 0.2 * (i % 2), "answered": 1.0} for i in reversed(range(40))}


def test_tasks_are_paired_by_their_id() -> None:
    same = compare(AFTER, dict(reversed(AFTER.items())), seed=0)
    assert all((row.gain.mean, row.gain.low, row.gain.high) == (0, 0, 0) for row in same)


def test_means_and_gain() -> None:
    (row, answered) = compare(BEFORE, AFTER, seed=0)
    assert (row.metric, row.before) == ("solve_f1", pytest.approx(0.2))
    assert row.after == pytest.approx(0.5)
    assert row.gain.mean == pytest.approx(0.3)
    assert row.gain.low < row.gain.mean < row.gain.high
    assert answered.gain.mean == 0


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ({task: AFTER[task] for task in list(AFTER)[1:]}, "t39"),
        (AFTER | {"other": AFTER["t0"]}, "other"),
        (AFTER | {"t3": {"answered": 1.0}}, "task t3 has no solve_f1"),
    ],
)
def test_other_tasks_or_metrics_are_refused_by_name(after: Scores, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compare(BEFORE, after, seed=0)


def test_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="0 tasks before, 0 after"):
        compare({}, {}, seed=0)


def test_the_table_shows_every_number() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(final_table(compare(BEFORE, AFTER, seed=0), tasks=40))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40 test tasks" in text
    (line,) = [line for line in text.splitlines() if "solve_f1" in line]
    assert "0.200" in line and "0.500" in line and "+0.300" in line and "[+0.2" in line


def test_the_result_is_valid_json_even_where_a_number_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    facts = {"tasks": 40, "objective": float("nan"), "series": [1.0, float("inf")]}
    write_result(path, compare(BEFORE, AFTER, seed=0), **facts)
    result = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert result["objective"] is None and result["series"] == [1.0, None]
    assert result["tasks"] == 40
    assert result["gain"]["solve_f1"].keys() == {"mean", "low", "high"}
    assert result["after"]["solve_f1"] == pytest.approx(0.5)
