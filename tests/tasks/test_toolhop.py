"""ToolHop's file becomes three tasks a question, each tool with its own source."""

import json
import os
from pathlib import Path

import pytest

from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.evaluation.statistics import Ratio, value
from matchtir.tasks.rows import RowError
from matchtir.tasks.toolhop import ToolHopTasks, answer_correct, mandatory_correct
from tests.credit import builders
from tests.credit.builders import call, turn
from tests.evaluation.benchmark_helpers import play

FIRST = "def name_of(title):\n    return 'Anna Bo'\n"
SECOND = "import re\n\ndef name_of(person, part='last'):\n    return person.split()[-1]\n"
COUNT = "def count(text):\n    return len(text)\n"


def tool(name, *properties):
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in properties}}
    return {"name": name, "description": name, "parameters": schema}


def make_row(**changes):
    row = {
        "question": "How long is the last name of the author of Hills?",
        "answer": "2",
        "sub_task": {"Who wrote Hills?": "Anna Bo", "Last name of Anna Bo?": "Bo", "Long?": "2"},
        "tools": {
            "Who wrote Hills?": tool("name_of", "title"),
            "Last name of Anna Bo?": tool("name_of", "person", "part"),
            "Long?": tool("count", "text"),
        },
        "functions": [FIRST, SECOND, COUNT],
    }
    return row | changes


def step(name, hop, turn, **arguments):
    return {"name": name, "sub_question": hop, "turn": turn, "arguments": arguments}


GOLD = [
    step("name_of", "Who wrote Hills?", 1, title="Hills"),
    step("name_of", "Last name of Anna Bo?", 2, person="Anna Bo"),
    step("count", "Long?", 3, text="Bo"),
]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {
        "test_path": write(tmp_path / "rows.jsonl", make_row()),
        "gold_traces_path": write(tmp_path / "gold.jsonl", {"gold_trace": GOLD}),
    }


def test_a_question_is_asked_in_three_scenarios(files):
    direct, mandatory, free = ToolHopTasks(**files).tasks("test")
    assert [direct.scenario, mandatory.scenario, free.scenario] == ["direct", "mandatory", "free"]
    assert direct.task_id == "toolhop/direct/0"
    assert direct.tools == direct.gold_calls == ()
    assert "How long is the last name" in direct.question
    assert "Every step has to be a call" in mandatory.question
    assert mandatory.tools == free.tools and mandatory.question != free.question
    assert not ToolHopTasks(**files).tasks("train")


@pytest.mark.parametrize("order", [list, sorted])
def test_tools_that_share_a_name_get_one_each_and_run_their_own_source(files, tmp_path, order):
    """In some copies of the data the keys of `tools` are sorted; the sources are not."""
    row = make_row(tools=dict(order(make_row()["tools"].items())))
    path = write(tmp_path / "ordered.jsonl", row)
    (task,) = ToolHopTasks(path, files["gold_traces_path"], ["free"]).tasks("test")
    names = ["name_of", "name_of_2", "count"]
    assert [tool.name for tool in task.tools] == names
    properties = [list(tool.parameters["properties"]) for tool in task.tools]
    assert properties == [["title"], ["person", "part"], ["text"]]
    assert [call.name for call in task.gold_calls] == names
    assert [answer.tool for answer in task.sub_answers] == names


def test_gold_scores_full_marks(files, tmp_path, sandbox):
    scores = {
        "answer": "matchtir.tasks.toolhop.answer_correct",
        "errors": "matchtir.evaluation.metrics.call_errors",
    }
    benchmark = TaskBenchmark("toolhop", ToolHopTasks(**files), {"a": "answer"}, scores=scores)
    outcome = play(benchmark, "gold", sandbox, tmp_path)
    values = [record["values"] for record in outcome.records]
    assert [item["answer"] for item in values] == [1.0, 1.0, 1.0]
    assert [item["solve_f1"] for item in values] == [0.0, 1.0, 1.0]  # direct: nothing to solve
    assert value(Ratio("errors", "calls"), values) == 0.0
    outputs = [c["output"] for t in outcome.records[1]["turns"] for c in t["calls"]]
    assert outputs == ["Anna Bo", "Bo", "2"]


def test_a_source_that_does_not_parse_belongs_to_the_tool_in_its_place(tmp_path):
    path = write(tmp_path / "rows.jsonl", make_row(functions=[FIRST, SECOND, "def count(:"]))
    (task,) = ToolHopTasks(path, scenarios=["free"]).tasks("test")
    assert (task.tools[2].name, task.tools[2].source) == ("count", "def count(:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functions": [FIRST]}, "functions: 1 sources for 3 tools"),
        ({"sub_task": {"Who?": "Bo"}}, "sub_task: 'Who\\?': no tool for it"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, changes, message):
    path = write(tmp_path / "rows.jsonl", make_row(), make_row(**changes))
    with pytest.raises(RowError, match=rf"rows\.jsonl, row 1: {message}"):
        ToolHopTasks(path).tasks("test")


def test_options_are_checked(files):
    with pytest.raises(ValueError, match="scenario='must' is not one of direct"):
        ToolHopTasks(files["test_path"], scenarios=["must"])
    with pytest.raises(ValueError, match="prompts.free has no place for the {question}"):
        ToolHopTasks(files["test_path"], prompts={"free": "Just say it."})
    prompts = {"direct": "Just say it: {question}"}
    task = ToolHopTasks(files["test_path"], scenarios=["direct"], prompts=prompts).tasks("test")[0]
    assert task.question == "Just say it: How long is the last name of the author of Hills?"


def attempt(*turns, scenario="mandatory"):
    return builders.attempt(builders.task(answer="1,204, May", scenario=scenario), *turns)


def calling(*outputs):
    return turn(*[call("a") for _ in outputs], outputs=outputs)


THERE = turn(text="There it is.")


@pytest.mark.parametrize(
    ("turns", "correct"),
    [
        ([turn(text="It was in MAY 1204.")], True),
        ([turn(text="May")], False),
        ([calling("may 1204"), THERE], True),  # the result before counts
        ([calling("may 1204", "other"), THERE], False),  # the last result only
        ([calling("may 1204"), calling("x"), THERE], False),
        ([calling("may 1204")], False),  # it ended in calls
        ([calling("may 1204"), turn(text="  ")], False),
        ([turn(text="<think>May 1204</think>")], False),
        ([], False),
    ],
)
def test_what_is_a_correct_answer(turns, correct):
    assert answer_correct(attempt(*turns)) == mandatory_correct(attempt(*turns)) == float(correct)
    assert mandatory_correct(attempt(*turns, scenario="free")) is None  # which the headline is not


@pytest.mark.skipif("MATCHTIR_DATA" not in os.environ, reason="MATCHTIR_DATA is not set")
def test_published_rows_have_a_source_for_every_tool():
    folder = Path(os.environ["MATCHTIR_DATA"]) / "toolhop"
    paths = [str(folder / name) for name in ("toolhop.jsonl", "gold_derived.jsonl")]
    tasks = ToolHopTasks(*paths, ["mandatory"]).tasks("test")
    renamed = [t for t in tasks if any(tool.name.endswith("_2") for tool in t.tools)]
    assert (len(tasks), len(renamed)) == (60, 4)
    assert all(task.gold_calls for task in tasks)
    assert all(len({tool.name for tool in task.tools}) == len(task.tools) for task in tasks)
