"""Summaries by group, the table over all benchmarks, and comparisons."""

import io

import pytest
from rich.console import Console

from matchtir.evaluation.statistics import Gain, Mean
from matchtir.evaluation.tables import (
    Row,
    columns_of,
    compare,
    group_table,
    overview,
    score_rows,
    summarise,
    table_rows,
)

STATISTICS = {"score": Mean("score")}


def record(task, score, **groups):
    calls = [{"result_status": "ok", "output": ""}]
    return {
        "task": task,
        "groups": groups,
        "values": {"score": score},
        "turns": [{"calls": calls}],
        "stop_reason": "answer",
    }


RECORDS = [
    record("a", 1.0, scenario="single", size="small"),
    record("b", 0.0, scenario="single"),
    record("c", 0.5, scenario="multi"),
]


def text_of(table):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_a_summary_has_every_group_of_every_kind():
    summary = summarise(RECORDS, STATISTICS)
    groups = summary["groups"]
    assert list(groups) == ["all", "scenario", "size"]
    assert groups["all"]["all"]["tasks"] == 3
    assert groups["all"]["all"]["score"]["mean"] == 0.5
    assert {name: g["score"]["mean"] for name, g in groups["scenario"].items()} == {
        "multi": 0.5,
        "single": 0.5,
    }
    assert groups["size"]["small"]["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary["stop_reasons"] == {"answer": 3}
    assert summary["result_statuses"] == {"ok": 3}
    text = text_of(group_table(summary, ["score"], "three, policy gold"))
    assert "single" in text and "0.00-1.00" in text
    assert len(list(score_rows("three", summary))) == 4


def test_policies_are_compared_on_the_tasks_that_both_attempted():
    others = [record("c", 0.0), record("a", 0.5), record("z", 1.0)]
    tasks, gains = compare(others, RECORDS, STATISTICS)
    assert tasks == 2
    assert gains["score"].mean == 0.5
    assert compare([record("z", 1.0)], RECORDS, STATISTICS) == (0, {})


def number(mean):
    return Gain(mean, mean - 0.1, mean + 0.1)


def row(label, **numbers):
    named = {tuple(key.split("__")): number(mean) for key, mean in numbers.items()}
    return Row(label, named)


def test_the_table_has_the_papers_columns_and_average_first():
    # The paper's Table 1, MatchTIR (KM) at 8B: 36.33, 44.18, 37.33, 34.32, 46.16, average 39.92
    ours = row(
        "KM",
        nestful__Win=0.5,
        toolhop__mandatory=0.4616,
        ftrl__P=0.3633,
        ftrl__R=0.4418,
        ftrl__F1=0.3733,
        bfcl__BFCL=0.3432,
    )
    assert [name for name, _ in columns_of([ours])] == [
        *["ftrl"] * 3,
        *["bfcl", "toolhop", "nestful"],
    ]
    assert ours.average() == pytest.approx(0.3992, abs=5e-5)
    text = text_of(overview([ours, row("part", ftrl__P=0.1)]))
    headings = next(line for line in text.splitlines() if "mandatory" in line).split("┃")
    assert [heading.strip() for heading in headings[2:-1]][:7] == [
        *["P", "R", "F1", "BFCL", "mandatory", "Avg", "Win"],
    ]
    assert "39.92" in text and "26.3-46.3" in text
    first, second = table_rows([ours, row("part", ftrl__P=0.1)])
    assert first["Avg"] == pytest.approx(39.92, abs=5e-3)
    assert second["Avg"] is None and second["bfcl BFCL"] is None
    assert list(first)[:4] == ["policy", "ftrl P", "ftrl P low", "ftrl P high"]


def test_differences_are_signed():
    gain = Row("gain", {("ftrl", "P"): Gain(0.1, 0.05, 0.15)}, is_difference=True)
    assert "+10.00" in text_of(overview([gain]))
