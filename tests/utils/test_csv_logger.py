from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.utils.csv_logger import CsvLogger
from matchtir.utils.run_files import read_metrics


def write(folder: Path, *rows: tuple[int, dict[str, float]]) -> str:
    logger = CsvLogger(folder)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    return logger.path.read_text()


def test_metrics_of_a_step_share_a_row_and_new_metrics_add_columns(tmp_path: Path) -> None:
    text = write(tmp_path, (0, {"a": 1.5}), (1, {"a": 2.0}), (1, {"b": 3}), (2, {"a": 4.0}))
    assert text == "step,a,b\n0,1.5,\n1,2.0,3\n2,4.0,\n"


def test_the_epoch_that_lightning_adds_is_left_out(tmp_path: Path) -> None:
    assert write(tmp_path, (0, {"a": 1.5, "epoch": 0})) == "step,a\n0,1.5\n"


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": float(step)}, step)
        assert len(logger.path.read_text().splitlines()) == step + 2


def test_a_joined_row_may_become_shorter(tmp_path: Path) -> None:
    rows = ((0, {"a": 1.0, "b": 0.123456789}), (0, {"b": 1.0}), (1, {"a": 2.0}))
    assert write(tmp_path, *rows) == "step,a,b\n0,1.0,1.0\n1,2.0,\n"


@given(
    iterations=st.integers(1, 12),
    killed_after=st.integers(0, 11),
    back_to=st.integers(0, 11),
    validate_every=st.integers(1, 5),
)
def test_a_resumed_file_equals_an_unbroken_one(
    tmp_path_factory: pytest.TempPathFactory,
    iterations: int,
    killed_after: int,
    back_to: int,
    validate_every: int,
) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    for step in range(iterations):
        rows.append((step, {"train/a": step / 7}))
        if step % validate_every == 0:
            rows.append((step, {"val/a": step / 3}))
    unbroken = write(tmp_path_factory.mktemp("unbroken"), *rows)
    folder = tmp_path_factory.mktemp("resumed")
    seen = rows[: killed_after + 1]
    write(folder, *seen)
    resumed_at = min(back_to, seen[-1][0])
    assert write(folder, *(row for row in rows if row[0] >= resumed_at)) == unbroken


def test_the_last_row_of_a_file_gets_what_it_lacks(tmp_path: Path) -> None:
    write(tmp_path, (1, {"a": 1.0}), (2, {"a": 2.0}))
    assert write(tmp_path, (2, {"test": 3.0})) == "step,a,test\n1,1.0,\n2,2.0,3.0\n"


def test_a_line_cut_short_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path, (9, {"a": 1.0}), (10, {"a": 2.0}))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[: -len("0,2.0\n")])  # leaves "1" of step 10
    assert write(tmp_path, (10, {"a": 2.0})) == "step,a\n9,1.0\n10,2.0\n"


def test_not_a_number_and_infinity_survive(tmp_path: Path) -> None:
    write(tmp_path, (0, {"a": float("nan"), "b": float("inf")}))
    curves = read_metrics(tmp_path / "metrics.csv")
    assert curves["a"][1][0] != curves["a"][1][0]
    assert curves["b"] == ([0], [float("inf")])


def test_curves_leave_out_blanks(tmp_path: Path) -> None:
    write(tmp_path, (0, {"a": 1.0}), (1, {"b": 2.0}))
    assert read_metrics(tmp_path / "metrics.csv") == {"a": ([0], [1.0]), "b": ([1], [2.0])}


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="first column must be `step`"):
        CsvLogger(tmp_path)


def test_a_row_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        CsvLogger(tmp_path).log_metrics({"a": 1.0})
