"""The `ftrl` difficulty resembles FTRL in the figures that were recorded from its test set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matchtir.tasks.synthetic import SCENARIOS, SyntheticTasks
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec
from scripts.compare_synthetic_ftrl import (
    RECORDED_ALL,
    RECORDED_TASKS,
    classify_refusal,
    measure_origins,
    measure_tasks,
    measure_tools,
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare_synthetic_ftrl.py"

# relative tolerances of the figures by scenario
TOLERANCES = {
    "tools offered, mean": 0.1,
    "gold calls, mean": 0.1,
    "depth, mean": 0.1,
    "distractor tools, mean": 0.15,
    "question characters, mean": 0.15,
    "prompt and tools characters, mean": 0.1,
    "arguments per gold call, mean": 0.1,
}
# absolute ones of those of all tasks
TOLERANCES_ALL = {
    "parameters per tool": 0.2,
    "required parameters per tool": 0.15,
    "type string": 0.04,
    "type boolean": 0.04,
    **{f"type {kind}": 0.02 for kind in ("object", "number", "array", "integer")},
    "with an enum": 0.04,
    "values per enum": 0.5,
    "with a default": 0.05,
    "errors: object": 0.06,
    "errors: text": 0.06,
    "errors: raised": 0.015,
    "argument from earlier output": 0.05,
    "argument from question": 0.06,
    "argument from enum": 0.05,
    "argument from elsewhere": 0.05,
}


@pytest.fixture(scope="module")
def tasks():
    return list(SyntheticTasks("ftrl", {"train": 400}, seed=2).tasks("train"))


@pytest.mark.parametrize("index", range(4), ids=SCENARIOS)
def test_sizes_by_scenario(tasks, index):
    figures = measure_tasks([task for task in tasks if task.scenario == SCENARIOS[index]])
    for figure, tolerance in TOLERANCES.items():
        recorded = RECORDED_TASKS[figure][index]
        assert figures[figure] == pytest.approx(recorded, rel=tolerance), figure


def test_tools_and_arguments(tasks):
    figures = {**measure_tools(tasks), **measure_origins(tasks)}
    for figure, tolerance in TOLERANCES_ALL.items():
        assert figures[figure] == pytest.approx(RECORDED_ALL[figure], abs=tolerance), figure


def test_figures_of_a_task_made_by_hand():
    unit = {"type": "string", "enum": ["km", "mi"], "default": "km"}
    properties = {"city": {"type": "string"}, "unit": unit, "deep": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    sources = ('return {"error": "no"}', 'return "Error: no"')
    tools = tuple(
        ToolSpec(name, "x", schema, source) for name, source in zip("ab", sources, strict=True)
    )
    calls = (
        ToolCall("a", {"city": "Ulm", "unit": "mi"}),
        ToolCall("a", {"city": "Bonn", "deep": True}),
    )
    task = Task(
        "t", "Instructions.\nQuestion: Is it Ulm?", tools, calls, "no",
        (SubAnswer("a", "Bonn"), SubAnswer("a", "x")), gold_turns=(0, 1),
    )  # fmt: skip
    sizes = measure_tasks([task])
    assert sizes["tools offered, mean"] == 2
    assert sizes["distractor tools, mean"] == 1
    assert sizes["question characters, mean"] == len("Is it Ulm?")
    assert (sizes["depth, mean"], sizes["width, mean"]) == (2, 1)
    assert sizes["arguments per gold call, mean"] == 2
    figures = measure_tools([task])
    assert figures["type string"] == pytest.approx(2 / 3)
    assert figures["values per enum"] == 2
    assert figures["with a default"] == pytest.approx(1 / 3)
    assert figures["errors: object"] == figures["errors: text"] == 0.5
    assert set(measure_origins([task]).values()) == {0.25}  # Ulm, mi, Bonn, True


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ('{"error": "founder not found."}', "error object"),
        ("Error: founder not found.", "error text"),
        ('{"message": "No entry was found for X"}', "soft"),
        ('{"founder": "Unknown"}', "soft"),
        ("Talinta Grarenwyn", "value"),
        ("Nottingham", "value"),
    ],
)
def test_kinds_of_refusal(output, kind):
    assert classify_refusal(output) == kind


def run_script(*arguments, data=None):
    environment = {key: value for key, value in os.environ.items() if key != "MATCHTIR_DATA"}
    if data:
        environment["MATCHTIR_DATA"] = data
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_script_prints_recorded_figures_without_the_files():
    done = run_script("--tasks", 16)
    assert done.returncode == 0, done.stderr
    assert "as recorded" in done.stdout
    assert "7.96 |" in done.stdout and "unknown entity: soft" in done.stdout


@pytest.mark.skipif("MATCHTIR_DATA" not in os.environ, reason="MATCHTIR_DATA is not set")
def test_the_script_measures_the_files():
    done = run_script("--tasks", 16, data=os.environ["MATCHTIR_DATA"])
    assert done.returncode == 0, done.stderr
    assert "FTRL: 140 tasks, measured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", 3), "--tasks 3"),
        (("--ftrl", "nowhere.parquet"), "--ftrl and --gold belong together"),
        (("--ftrl", "nowhere.parquet", "--gold", "nowhere.jsonl"), "nowhere"),
    ],
)
def test_the_script_names_what_is_wrong(arguments, message):
    done = run_script(*arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
