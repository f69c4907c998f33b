"""An imperfect demonstrator: each habit by itself, and what it knows in the end."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.tasks.habits import Habits, imperfect
from matchtir.tasks.synthetic import SyntheticTasks
from matchtir.tools.formats import HERMES
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec

NONE = Habits(0, 0, 0, 0)
TASKS = SyntheticTasks("laptop", {"train": 400}).tasks("train")


def text_tool(name, parameter):
    schema = {"properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return ToolSpec(name, "", {"type": "object", **schema})


def call(name, place):
    return ToolCall(name, {"place": place})


# Two chains side by side: the port of Rom and of Ulm, then the ruler of each port.
PORTS = (call("find_port", "Rom"), call("find_port", "Ulm"))
RULERS = (call("find_ruler", "Ostia"), call("find_ruler", "Hafen"))
OUTPUTS = ("Ostia", "Hafen", "Ada", "Bob")
CHAINS = Task(
    task_id="chains",
    question="Who are the rulers of the ports of Rom and Ulm?",
    tools=tuple(map(text_tool, ("find_port", "find_ruler", "age"), ("place", "place", "x"))),
    gold_calls=(*PORTS, *RULERS),
    answer="Ada, Bob",
    sub_answers=tuple(map(SubAnswer, (each.name for each in (*PORTS, *RULERS)), OUTPUTS)),
    gold_turns=(0, 0, 1, 1),
)


def shown(habits, seed=0, task=CHAINS):
    return imperfect(task, habits, Random(seed), HERMES)


@given(st.integers(0, 399))
@settings(max_examples=60, deadline=None)
def test_without_habits_it_shows_the_gold_solution(index):
    task = TASKS[index]
    demonstration = shown(NONE, task=task)
    assert [each for turn in demonstration.turns for each in turn] == list(task.gold_calls)
    assert demonstration.answer == task.answer


def test_it_stops_with_what_it_has():
    assert shown(replace(NONE, stop=1.0)) == ((PORTS,), "Ostia, Hafen")


@pytest.mark.parametrize("seed", range(5))
def test_of_a_dropped_call_nothing_follows(seed):
    assert shown(replace(NONE, drop=1.0), seed) == ((PORTS[:1], RULERS[:1]), "Ada")


def test_it_asks_the_wrong_tool_first():
    wrong = [(ToolCall("age", {"x": "Rom"}),), PORTS, (ToolCall("age", {"x": "Ostia"}),), RULERS]
    assert shown(replace(NONE, distractor=1.0)) == (tuple(wrong), "Ada, Bob")


@pytest.mark.parametrize("seed", range(5))
def test_it_repeats_a_call_of_the_turn(seed):
    first, again, second, once_more = shown(replace(NONE, repeat=1.0), seed).turns
    assert (first, second) == (PORTS, RULERS)
    assert again[0] in PORTS and once_more[0] in RULERS
    assert len(again) == len(once_more) == 1


@given(st.integers(0, 399), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_it_only_says_what_it_was_told(index, seed):
    task = TASKS[index]
    demonstration = shown(replace(NONE, stop=0.5, drop=0.5), seed, task)
    made = [each for turn in demonstration.turns for each in turn]
    told = [o for c, o in zip(task.gold_calls, task.metadata["outputs"], strict=True) if c in made]
    assert demonstration.answer
    assert all(part in told for part in demonstration.answer.split(", "))
    for each in made:  # every argument is in the question or in an output
        value = next(iter(each.arguments.values()))
        assert value in task.question or value in told


def test_without_a_tool_that_fits_there_is_no_distractor():
    numbers = ToolSpec("age", "", {"properties": {"x": {"type": "number"}}, "required": ["x"]})
    task = replace(CHAINS, tools=(*CHAINS.tools[:2], numbers))
    assert shown(replace(NONE, distractor=1.0), task=task).turns == (PORTS, RULERS)
    anything = replace(numbers, parameters={"properties": {"x": True}, "required": ["x"]})
    task = replace(CHAINS, tools=(*CHAINS.tools[:2], anything))
    assert shown(replace(NONE, distractor=1.0), task=task).turns[0][0].name == "age"


def test_a_probability_lies_between_0_and_1():
    with pytest.raises(ValueError, match=r"habits\.stop"):
        Habits(stop=1.5)
