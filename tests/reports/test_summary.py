import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from matchtir.reports.summary import Scores, compare, final_table, write_result

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
