import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.reports.progress import (
    BARS,
    TRAINING,
    Position,
    clock,
    number,
    plain_line,
    sparkline,
    time_shares,
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
