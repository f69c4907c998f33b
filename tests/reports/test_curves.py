from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.reports.curves import draw_curves
from matchtir.reports.smoothing import trailing_mean


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
