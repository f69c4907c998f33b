"""Summaries by group, the table over all benchmarks, and comparisons."""

import io
import re

import pytest
from rich.console import Console

from matchtir.evaluation.statistics import Estimate, Mean
from matchtir.evaluation.tables import (
    Row,
    compare,
    endings_table,
    group_table,
    overview,
    summarise,
    table_rows,
)

STATISTICS = {"score": Mean("score")}


def record(task, score, **groups):
    calls = [{"status": "ok", "result_status": "ok", "succeeded": True, "output": ""}]
    played = {"turns": [{"calls": calls}], "stop_reason": "answer"}
    return {"task": task, "groups": groups, "values": {"score": score}} | played


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
    means = {name: group["score"]["mean"] for name, group in groups["scenario"].items()}
    assert means == {"multi": 0.5, "single": 0.5}
    assert groups["size"]["small"]["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary["stop_reasons"] == {"answer": 3}
    assert summary["calls"] == {"ok": 3}
    text = text_of(group_table(summary, ["score"], "three, policy gold"))
    assert "single" in text and "0.00-1.00" in text


def test_policies_are_compared_on_the_tasks_that_both_attempted():
    others = [record("c", 0.0), record("a", 0.5), record("z", 1.0)]
    tasks, gains = compare(others, RECORDS, STATISTICS)
    assert tasks == 2
    assert gains["score"].mean == 0.5
    assert compare([record("z", 1.0)], RECORDS, STATISTICS) == (0, {})


def row(label, numbers):
    return Row(label, {at: Estimate(mean, mean - 0.1, mean + 0.1) for at, mean in numbers.items()})


def test_the_table_has_the_papers_columns_and_average_first():
    # The paper's Table 1, MatchTIR (KM) at 8B: 36.33, 44.18, 37.33, 34.32, 46.16, average 39.92
    numbers = {("nestful", "Win"): 0.5, ("toolhop", "mandatory"): 0.4616, ("bfcl", "BFCL"): 0.3432}
    of_ftrl = {"success": 0.9, "Solve-P": 0.3633, "Solve-R": 0.4418, "Solve-F1": 0.3733}
    numbers |= {("ftrl", name): mean for name, mean in of_ftrl.items()}
    ours, part = row("KM [all]", numbers), row("part", {("ftrl", "Solve-P"): 0.1})
    assert ours.with_average()["", "Avg"].mean == pytest.approx(0.3992, abs=5e-5)
    gain = Row("gain", {("ftrl", "Solve-P"): Estimate(0.1, 0.05, 0.15)}, is_difference=True)
    text = text_of(overview([ours, part, gain]))
    headings = next(line for line in text.splitlines() if "mandatory" in line).split("┃")
    shown = [heading.strip() for heading in headings[2:-1]]
    assert shown[:8] == [*of_ftrl, "BFCL", "mandatory", "Avg", "Win"]
    assert "KM [all]" in text and "39.92" in text and "26.3-46.3" in text and "+10.00" in text
    missing = "blank without ftrl Solve-R, ftrl Solve-F1, bfcl BFCL, toolhop mandatory"
    assert missing in re.sub(r"\s+", " ", text)
    first, second = table_rows([ours, part])
    assert first["Avg"] == pytest.approx(39.92, abs=5e-3)
    assert second["Avg"] is None and second["bfcl BFCL"] is None
    assert list(first)[:4] == ["policy", "ftrl success", "ftrl success low", "ftrl success high"]


def test_calls_are_counted_by_how_they_ended():
    endings = {
        ("unknown_tool", "rejected", False): "unknown_tool",
        ("invalid_json", "rejected", False): "invalid_json",
        ("ok", "bad_arguments", False): "bad_arguments",
        ("ok", "timeout", False): "timeout",
        ("ok", "ok", False): "reports_error",
        ("ok", None, False): "no_result",
        ("ok", "truncated", True): "truncated",
    }
    names = ("status", "result_status", "succeeded")
    calls = [dict(zip(names, values, strict=True)) for values in endings]
    summary = summarise([record("a", 1.0) | {"turns": [{"calls": calls}]}], STATISTICS)
    assert summary["calls"] == dict.fromkeys(endings.values(), 1)
    text = text_of(endings_table({"one": summary, "two": summarise(RECORDS, STATISTICS)}))
    for name, counts in [("ok", ["0", "3"]), *((name, ["1", "0"]) for name in endings.values())]:
        (line,) = [line for line in text.splitlines() if f"calls: {name} " in line]
        assert [cell.strip() for cell in line.split("│")[2:4]] == counts
