"""BFCL through its official package; most of this needs its environment (`make bfcl-env`)."""

import json
from pathlib import Path

import numpy as np
import pytest

from matchtir.evaluation.benchmark import Setting
from matchtir.evaluation.bfcl import (
    CATEGORIES,
    DONE,
    NOT_POSSIBLE,
    BfclBenchmark,
    _turn,
    entry_from_row,
    read_call,
    scripted_texts,
)
from matchtir.evaluation.policies import find_policy
from matchtir.evaluation.statistics import value
from matchtir.evaluation.tables import report
from matchtir.tools.formats import parse_calls
from matchtir.types import CallStatus
from tests.evaluation.benchmark_helpers import REWARD

PYTHON = Path(__file__).parents[2] / ".venv-bfcl" / "bin" / "python"
needs_package = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-bfcl: make bfcl-env")


PARAMETERS = {"mv": ["source", "destination"], "ls": ["a"], "pick": ["items", "exact"]}


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("ls()", "ls", {}),
        ("mv(source='a', destination='b c')", "mv", {"source": "a", "destination": "b c"}),
        ("mv('a', destination=\"b'c\")", "mv", {"source": "a", "destination": "b'c"}),
        ("mv('a', 'b')", "mv", {"source": "a", "destination": "b"}),
        (" pick(items=['x', -2.5], exact=True)", "pick", {"items": ["x", -2.5], "exact": True}),
    ],
)
def test_gold_calls_are_read(text, name, arguments):
    call = read_call(text, PARAMETERS)
    assert (call.name, call.arguments, call.status) == (name, arguments, CallStatus.OK)


@pytest.mark.parametrize(
    "text", ["ls", "ls(", "fly('a')", "ls(1, 2)", "ls(a=open('x'))", "os.remove('x')", "ls(**{})()"]
)
def test_what_is_no_gold_call_is_named(text):
    with pytest.raises(ValueError, match="gold call "):
        read_call(text, PARAMETERS)


def make_row(**changes):
    sizes = {"type": "array", "items": {"type": "float"}}
    properties = {"folder": {"type": "string"}, "sizes": sizes, "type": {"type": "any"}}
    parameters = {"type": "dict", "properties": properties, "required": ["folder"]}
    row = {
        "id": "multi_turn_base_0",
        "category": "multi_turn_base",
        "turns": [["Go to a."], ["Rules.", "Then list b twice."], []],
        "functions": [{"name": "cd", "description": "Go.", "parameters": parameters}],
        "needs": [],
        "gold": [["cd('a')"], ["cd(folder='b')", "cd(folder='b')"], []],
    }
    return row | changes


def test_an_entry_and_its_schema():
    entry = entry_from_row(make_row())
    assert entry.is_scored and entry.user_turns == ("Go to a.", "Rules.\nThen list b twice.", "")
    schema = entry.tools[0].parameters
    assert schema["type"] == "object"
    assert schema["properties"]["sizes"]["items"]["type"] == "number"
    assert schema["properties"]["type"] == {"type": "string"}  # a parameter of that name


def test_scripts_of_a_conversation_end_every_turn_of_the_user():
    entry = entry_from_row(make_row())
    texts = scripted_texts(entry, "gold", 0)
    assert texts[1] == texts[3] == DONE and texts[4] == NOT_POSSIBLE and len(texts) == 5
    assert [call.arguments for call in parse_calls(texts[0], {"cd"})] == [{"folder": "a"}]
    assert [call.arguments for call in parse_calls(texts[2], {"cd"})] == [{"folder": "b"}] * 2
    texts = scripted_texts(entry, "random", 0)
    assert sum(not parse_calls(text, None) for text in texts) == 3
    assert any(parse_calls(text, {"cd"}) for text in texts)


def test_a_question_is_answered_and_what_fills_a_memory_is_acknowledged():
    question = entry_from_row(make_row(gold=["Michael", "Mike"], turns=[["What is my name?"]]))
    assert question.gold_calls is None and question.gold_answers == ("Michael", "Mike")
    (answer,) = scripted_texts(question, "gold", 0)
    assert answer.startswith("{'answer': 'Michael'")
    prerequisite = entry_from_row(make_row(gold=None))
    assert not prerequisite.is_scored
    assert scripted_texts(prerequisite, "gold", 0) == (DONE, DONE, DONE)


def bfcl(*categories, python=__file__, **settings):
    return BfclBenchmark(str(python), categories, {"BFCL": "bfcl"}, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"python": "nowhere/python"}, "`make bfcl-env` makes it"),
        ({"categories": ["simple_python"]}, r"\['simple_python'\]: of multi_turn_base, "),
        ({"categories": []}, r"categories=\[\]: of multi_turn_base, "),
        ({"max_tasks": 0}, "max_tasks=0 must be 1 or more"),
    ],
)
def test_options_are_checked(options, message):
    options = {"python": __file__, "categories": ["memory_kv"], **options}
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        BfclBenchmark(columns={"BFCL": "bfcl"}, **options)


def test_the_score_is_the_papers_mean_or_nothing():
    statistics = bfcl(*CATEGORIES).statistics
    tasks = [{category: float(category.startswith("multi_turn"))} for category in CATEGORIES]
    tasks[CATEGORIES.index("web_search_base")] = {"web_search_base": 1.0}
    assert value(statistics["web_search"], tasks) == 0.5
    assert value(statistics["bfcl"], tasks) == pytest.approx((1.0 + (0.0 + 0.5) / 2) / 2)
    without = [task for task in tasks if "memory_vector" not in task]
    assert np.isnan(value(statistics["bfcl"], without)) and value(statistics["multi_turn"], without)


def test_where_no_category_can_be_run_the_table_is_blank(tmp_path, monkeypatch, capsys):
    gaps = {name: "no network" for name in CATEGORIES}
    described = json.dumps({"entries": [], "gaps": gaps})
    monkeypatch.setattr(BfclBenchmark, "_worker", lambda *_: described)
    benchmark = bfcl(*CATEGORIES, max_tasks=2)
    outcome = benchmark.run(find_policy("gold"), Setting(tmp_path, None, REWARD))
    assert outcome.records == [] and len(outcome.notes) == len(CATEGORIES) + 1
    result = report(tmp_path, "gold", [(benchmark, outcome)], [], {})
    assert result["table"] == [row | {"bfcl BFCL": None, "Avg": None} for row in result["table"]]
    assert "bfcl: memory_vector was not run: no network" in capsys.readouterr().out


def test_a_call_of_another_server_is_read_as_strictly_as_any():
    said = ["{}", '{"a": "\\ud800"}', "{"]
    turn = _turn({"text": "", "calls": [["f", each] for each in said], "outputs": ["x"] * 3})
    assert [call.status for call in turn.calls] == [CallStatus.OK, *[CallStatus.INVALID_JSON] * 2]


def play(folder, policy, *categories, **settings):
    benchmark = bfcl(*categories, python=PYTHON, **settings)
    setting = Setting(folder, None, REWARD, max_concurrent=8)
    return benchmark, benchmark.run(find_policy(policy), setting)


@needs_package
@pytest.mark.slow
def test_gold_is_right_by_the_official_checker_and_chance_is_not(tmp_path):
    categories = ("multi_turn_base", "multi_turn_miss_func", "memory_kv", "web_search_base")
    benchmark, gold = play(tmp_path / "gold", "gold", *categories, max_tasks=2)
    values = [record["values"] for record in gold.records]
    assert len(values) == 6
    assert value(benchmark.statistics["correct"], values) == 1.0
    first, second = gold.notes
    assert first.startswith("web_search_base was not run")
    assert second.startswith("no BFCL mean") and "web_search_base" in second
    outputs = [c["output"] for r in gold.records for t in r["turns"] for c in t["calls"]]
    assert outputs and all(output is not None for output in outputs)
    benchmark, chance = play(tmp_path / "random", "random", "multi_turn_base", max_tasks=2)
    assert value(benchmark.statistics["correct"], [r["values"] for r in chance.records]) == 0.0


@needs_package
@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_the_package_has_written(tmp_path):
    _, whole = play(tmp_path / "whole", "gold", "multi_turn_base", max_tasks=3)
    play(tmp_path / "parts", "gold", "multi_turn_base", max_tasks=3)
    (file,) = (tmp_path / "parts").rglob("*_multi_turn_base_result.json")
    first, second, _ = file.read_text().splitlines()
    file.write_text(f"{first}\n{second[:100]}")  # killed in its second line
    _, resumed = play(tmp_path / "parts", "gold", "multi_turn_base", max_tasks=3)
    kept = json.loads(file.read_text().splitlines()[0])
    assert kept == json.loads(first)  # with its latencies
    assert list(resumed.records) == list(whole.records)
