"""data=custom: rows and tools of one's own become tasks, or a message that names row and field."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from matchtir.reports.task_statistics import find_pairs
from matchtir.tasks.custom import CustomTasks, row_from_task, task_from_row
from matchtir.tasks.gold import gold_outputs
from matchtir.tasks.rows import SPLITS, RowError
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import SubAnswer
from tests.custom.conftest import STATE, make_row

ALL_TRAIN = {"train": 1}
TRIPS = Path(__file__).parents[2] / "examples" / "trips"


def read(write, module, *rows, **options):
    options = {"tools": str(module), "sandbox": ProcessPoolSandbox(workers=2)} | options
    return CustomTasks(write(*rows), shares=ALL_TRAIN, **options).tasks("train")


def call(name, arguments=None, **more):
    return {"name": name, "arguments": arguments or {}, **more}


TEA, WINE = {"item": "tea"}, {"item": "wine"}


def test_a_row_is_a_task_whose_gold_calls_were_executed(write, module):
    (task,) = read(write, module, make_row(scenario="prices"))
    assert (task.task_id, task.answer, task.scenario) == ("rows/0", "3", "prices")
    assert [tool.name for tool in task.tools] == ["price", "colour", "put", "take"]
    assert task.gold_calls[0].arguments == TEA
    assert task.sub_answers == (SubAnswer("price", "3"),)


def test_a_state_task_asks_for_the_state_that_its_gold_calls_reach(write, module):
    calls = [call("put", TEA, turn=1), call("take", {"item": "milk"}, turn=1)]
    row = make_row(gold_calls=calls, **STATE)
    (task,) = read(write, module, row)
    assert (task.answer, task.gold_turns) == ("", (0, 0))
    assert [answer.output for answer in task.sub_answers] == ["2", "1"]
    with pytest.raises(RowError, match=r"row 0: gold_state: .*Basket.items is \['tea'\]"):
        read(write, module, {**row, "gold_state": row["initial_state"]})


def test_a_gold_call_that_is_answered_by_an_error_has_failed(write):
    schema = sourced("def f():\n    return {'error': 'none left'}")["tools"]
    says_so = make_row(tools=schema, gold_calls=[call("f")])
    with pytest.raises(RowError, match='f fails: {"error": "none left"}'):
        read(write, None, says_so, tools=None)


def test_without_a_sandbox_outputs_are_taken_as_given(write, module):
    row = make_row(gold_calls=[call("price", WINE, output={"price": 4})])
    (task,) = read(write, module, row, sandbox=None)
    assert task.sub_answers == (SubAnswer("price", '{"price": 4}'),)


def sourced(source):
    return {"tools": [{"name": "f", "description": "", "parameters": {}, "source": source}]}


def messages(*roles):
    said = [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]
    return {"question": None, "messages": said}


def test_messages_are_a_history_and_a_question(write, module):
    row = make_row(**messages("system", "user", "assistant", "user"))
    (task,) = read(write, module, row)
    assert task.question == "user 3"
    assert [message.role for message in task.history] == ["system", "user", "assistant"]


GOLD = r"gold_calls\[0\]: "
FAILS = r"gold_calls\[1\]: price fails: .*wine"
TAKES = GOLD + r"arguments: price takes no 'thing' \(it takes item, currency\)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gold_call": []}, "gold_call: there is no such field; did you mean gold_calls"),
        ({"question": None}, "question: a row has either a question or messages"),
        (messages(), "messages: the last one must be the user's"),
        (messages("tool"), r"messages\[0\]: role: 'tool' is none of"),
        ({"answer": None}, "answer: is missing or empty"),
        ({"gold_calls": None}, "gold_calls: is missing .*collect_traces"),
        ({"gold_calls": [call("prize")]}, GOLD + r"name: 'prize' is none .*tools \(price, colour"),
        ({"gold_calls": [call("price", {"thing": 1})]}, TAKES),
        ({"gold_calls": [call("price")]}, GOLD + "arguments: price needs 'item'"),
        ({"gold_calls": [call("price", TEA, turn=0)]}, GOLD + "turn: expected a number from 1"),
        ({"gold_calls": [call("price", TEA), call("price", WINE)]}, FAILS),
        ({"alternatives": [[call("nothing")]]}, r"alternatives\[0\]\[0\]: name: 'nothing' is none"),
        ({"alternatives": ["price"]}, r"alternatives\[0\]: expected a list of calls"),
        ({"tools": ["prise"]}, r"tools\[0\]: there is no tool 'prise' \(there is price"),
        (sourced("def f("), r"tools\[0\]: source: not Python"),
        (sourced("g = 1"), r"tools\[0\]: source: it defines no function f"),
        ({"gold_state": {"Cart": {}}}, r"gold_state: 'Cart' is no class .*\(Basket\)"),
        ({"initial_state": {"Basket": 3}}, "initial_state: Basket: expected an object, got int"),
        ({"split": "dev"}, "split: 'dev' is none of train, validation, test"),
        ({"metadata": {"split": "dev"}}, "metadata: split: has a field of its own"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(write, module, fields, message):
    with pytest.raises(RowError, match=f"rows.jsonl, row 1: {message}"):
        read(write, module, make_row(), make_row(**fields))


def test_gold_calls_may_be_missing_where_they_are_to_be_found(write, module):
    (task,) = read(write, module, make_row(gold_calls=None), gold="optional")
    assert task.gold_calls == ()


def test_rows_without_tools_need_tools(write):
    with pytest.raises(RowError, match=r"tools: is missing, .*data\.tools"):
        read(write, None, make_row(), tools=None)


def test_splits_are_in_all_rows_or_in_none(write, module):
    path = write(make_row(split="test"), make_row(split="train"))
    tasks = CustomTasks(path, str(module))
    assert [len(tasks.tasks(split)) for split in ("train", "validation", "test")] == [1, 0, 1]
    with pytest.raises(RowError, match="row 1: split: is missing; other rows have one"):
        CustomTasks(write(make_row(split="test"), make_row()), str(module)).tasks("test")


def test_tasks_become_rows_and_tasks_again(write, module):
    rows = [
        make_row(scenario="a", metadata={"outputs": "mine"}),
        make_row(
            id="b",
            **messages("system", "user") | STATE | {"initial_state": {"Basket": {"items": []}}},
            gold_calls=[call("put", TEA, turn=1)],
            alternatives=[[call("put", WINE)]],
        ),
    ]
    for task in read(write, module, *rows):
        offered = {tool.name: tool for tool in task.tools}
        written = json.loads(json.dumps(row_from_task(task, offered)))
        assert task_from_row(written, "", offered) == task
        alone = json.loads(json.dumps(row_from_task(task)))
        assert task_from_row(alone, "", {}).gold_calls == task.gold_calls
        assert gold_outputs(task) == tuple(answer.output for answer in task.sub_answers)
        others = [replace(answer, tool="another") for answer in task.sub_answers]
        (written,) = row_from_task(replace(task, sub_answers=tuple(others)))["gold_calls"]
        assert "output" not in written  # it is no output of this call


def test_tools_of_an_mcp_server(write):
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    server = {"command": [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]}
    calls = [call("increase", {"by": by}) for by in (2, 3)]
    row = make_row(question="How many?", gold_calls=calls, answer=5, tools=["increase"])
    (task,) = read(write, None, row, tools=server)
    assert [answer.output for answer in task.sub_answers] == ["2", "5"]


def test_no_task_of_the_example_is_in_two_splits():
    tasks = CustomTasks(str(TRIPS / "tasks.jsonl"), tools=str(TRIPS / "tools.py"), sandbox=None)
    pairs = find_pairs({split: tasks.tasks(split) for split in SPLITS})
    assert [(pair.first, pair.second) for pair in pairs if pair.is_leak] == []


def test_the_generator_of_the_example_writes_sound_rows(tmp_path):
    file = tmp_path / "more.jsonl"
    subprocess.run([sys.executable, str(TRIPS / "more_questions.py"), str(file)], check=True)
    sandbox = ProcessPoolSandbox(workers=2)
    tasks = CustomTasks(str(file), tools=str(TRIPS / "tools.py"), sandbox=sandbox)
    split = {name: tasks.tasks(name) for name in SPLITS}
    assert min(map(len, split.values())) > 20
    for task in split["test"]:  # the answers are what the gold calls return
        if task.answer:
            outputs = [answer.output for answer in task.sub_answers]
            assert all(part in outputs for part in task.answer.split(", "))
