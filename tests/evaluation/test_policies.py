"""The gold policy writes gold calls; the random one writes calls that fit the schemas."""

import random
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.evaluation.policies import find_policy, random_turn_texts, random_value
from matchtir.tools.formats import extract_answer, parse_calls
from matchtir.types import CallStatus, Task, ToolCall, ToolSpec
from matchtir.utils.options import UserError

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["km", "mile"]},
        "limit": {"type": "integer", "minimum": 3, "maximum": 5},
        "exact": {"type": "boolean", "default": True},
        "filters": {"type": "array", "items": {"type": "number"}},
        "range": {"type": "object", "properties": {"from": {"type": ["integer", "null"]}}},
    },
    "required": ["city", "limit"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "additionalProperties": False}
TOOLS = (ToolSpec("finder", "Finds.", SCHEMA), ToolSpec("empty", "Nothing.", {}))
TASK = Task("t", "Where is the old bridge?", TOOLS, (ToolCall("finder", {"city": "Ulm"}),), "Ulm")


@given(st.integers())
def test_random_calls_are_well_formed_and_fit_the_schema(seed):
    *turns, last = random_turn_texts(TASK, seed)
    assert 1 <= len(turns) <= 5
    for text in turns:
        calls = parse_calls(text, {tool.name for tool in TOOLS})
        assert 1 <= len(calls) <= 2
        for call in calls:
            assert call.status is CallStatus.OK
            jsonschema.validate(call.arguments, SCHEMA if call.name == "finder" else NOTHING)
    assert not parse_calls(last, None)
    assert extract_answer(last) in TASK.question.split()


def test_random_calls_depend_on_seed_and_task():
    assert random_turn_texts(TASK, 1) == random_turn_texts(TASK, 1)
    assert len({random_turn_texts(TASK, seed) for seed in range(20)}) > 10
    assert random_turn_texts(TASK, 1) != random_turn_texts(replace(TASK, task_id="other"), 1)
    assert random_turn_texts(Task("t", "", (), (), ""), 0) == ("<answer>?</answer>",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
keywords = st.sampled_from(["type", "enum", "default", "minimum", "maximum"])
odd_schemas = json_values | st.dictionaries(keywords, st.none() | st.integers() | st.text())


@given(odd_schemas, st.integers())
def test_odd_schemas_still_give_a_value(schema, seed):
    random_value(schema, ["word"], random.Random(seed))


@pytest.mark.parametrize("name", ["golden", "logs/grpo/runs/never", "./nowhere"])
def test_a_policy_that_is_nothing_is_refused_before_anything_is_fetched(name):
    with pytest.raises(FileNotFoundError, match="gold, random, the URL of an endpoint"):
        find_policy(name)


def test_a_folder_without_a_policy_is_refused(tmp_path):
    (tmp_path / "config.yaml").touch()  # as in a run that was interrupted
    with pytest.raises(FileNotFoundError, match="neither policy/, which a run leaves when it ends"):
        find_policy(str(tmp_path))


def test_a_model_that_is_in_no_hub_is_named(monkeypatch):
    def nowhere(name):
        raise OSError(f"{name} is not a local folder\nand much more")

    monkeypatch.setattr("matchtir.evaluation.policies.load_policy", nowhere)
    with pytest.raises(UserError, match="^policy=no/model: no/model is not a local folder$"):
        find_policy("no/model").speaker({})
