"""BFCL's gold solutions become messages that a policy could have written."""

import pytest

from matchtir.tasks.bfcl import DONE, NOT_POSSIBLE, entry_from_row, gold_turn_texts, read_call
from matchtir.tools.formats import parse_calls
from matchtir.types import CallStatus

PARAMETERS = {"mv": ["source", "destination"], "ls": ["a"], "pick": ["items", "exact"]}


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("ls()", "ls", {}),
        ("mv(source='a', destination='b c')", "mv", {"source": "a", "destination": "b c"}),
        ("mv('a', destination=\"b'c\")", "mv", {"source": "a", "destination": "b'c"}),
        ("mv('a', 'b')", "mv", {"source": "a", "destination": "b"}),
        (
            " pick(items=['x', 1, -2.5], exact=True)",
            "pick",
            {"items": ["x", 1, -2.5], "exact": True},
        ),
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
    parameters = {
        "type": "dict",
        "properties": {
            "folder": {"type": "string"},
            "sizes": {"type": "array", "items": {"type": "float"}},
            "type": {"type": "any"},
        },
        "required": ["folder"],
    }
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


def test_the_gold_solution_of_a_conversation():
    texts = gold_turn_texts(entry_from_row(make_row()))
    assert texts[1] == texts[3] == DONE and texts[4] == NOT_POSSIBLE and len(texts) == 5
    assert [call.arguments for call in parse_calls(texts[0], {"cd"})] == [{"folder": "a"}]
    assert [call.arguments for call in parse_calls(texts[2], {"cd"})] == [{"folder": "b"}] * 2


def test_a_question_is_answered_and_what_fills_a_memory_is_acknowledged():
    question = entry_from_row(make_row(gold=["Michael", "Mike"], turns=[["What is my name?"]]))
    assert question.gold_calls is None and question.gold_answers == ("Michael", "Mike")
    (answer,) = gold_turn_texts(question)
    assert answer.startswith("{'answer': 'Michael'")
    prerequisite = entry_from_row(make_row(gold=None))
    assert not prerequisite.is_scored
    assert gold_turn_texts(prerequisite) == (DONE, DONE, DONE)
