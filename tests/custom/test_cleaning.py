"""A teacher's traces without the calls that they did not need."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from matchtir.collection import Collector, TracedCall, clean_trace, gold_task, traced_calls
from matchtir.evaluation.traces import AttemptLog
from matchtir.rollout.engine import SamplingParams
from matchtir.types import ResultStatus, Task, ToolCall, ToolResult, ToolSpec
from tests.credit import builders

SOURCE = """
CAPITALS = {"Norway": "Oslo", "Peru": "Lima"}
MAYORS = {"Oslo": "Anne", "Lima": "Jorge"}

def capital(country):
    return CAPITALS[country]

def mayor(city):
    return MAYORS[city]

def age(name):
    return {"Anne": 50, "Jorge": 60}[name]

class List:
    def __init__(self):
        self.items = []
    def add(self, item):
        self.items.append(item)
        return "added"
    def count(self):
        return len(self.items)
"""
TOOLS = [ToolSpec(name, "", {}, SOURCE) for name in ("capital", "mayor", "age")]
TOOLS += [ToolSpec(name, "", {}, SOURCE, owner="List") for name in ("add", "count")]


def step(turn, name, value=None, output="", key=None):
    keys = {"capital": "country", "mayor": "city", "age": "name", "add": "item"}
    arguments = {keys[name]: value} if name in keys else {}
    return TracedCall(turn, ToolCall(name, arguments), output)


def cleaned(sandbox, question, answer, *trace, gold_state=None):
    task = Task("t", question, tuple(TOOLS), (), answer, gold_state=gold_state)
    found = asyncio.run(clean_trace(task, trace, sandbox))
    if found is None:
        return None
    return [(item.turn, item.call.name, *item.call.arguments.values()) for item in found]


CHAIN = (step(0, "capital", "Norway", "Oslo"), step(1, "mayor", "Oslo", "Anne"))
KEPT = [(0, "capital", "Norway"), (1, "mayor", "Oslo")]
WHO = "Who is the mayor of the capital of Norway?"
BOTH = "Who are the mayors of Oslo and Lima?"
MAYORS = (step(0, "mayor", "Oslo", "Anne"), step(0, "mayor", "Lima", "Jorge"))
DETOUR = (step(0, "capital", "Peru", "Lima"), step(1, "mayor", "Lima", "Jorge"))
REPEATED = (step(1, "capital", "Norway", "Oslo"), step(2, "mayor", "Oslo", "Anne"))


@pytest.mark.parametrize(
    ("question", "answer", "trace", "kept"),
    [
        (WHO, "Anne", (CHAIN[0], *DETOUR, CHAIN[1]), KEPT),  # what leads nowhere goes
        (WHO, "Anne", (CHAIN[0], *REPEATED), KEPT),  # turns are numbered anew
        ("Who is the mayor of Oslo in Norway?", "Anne", CHAIN, [(0, "mayor", "Oslo")]),
        # A list needs the output of each part.
        (BOTH, "Anne, Jorge", MAYORS, [(0, "mayor", "Oslo"), (0, "mayor", "Lima")]),
    ],
)
def test_what_was_not_needed_goes(sandbox, question, answer, trace, kept):
    assert cleaned(sandbox, question, answer, *trace) == kept


@pytest.mark.parametrize("answer", ["Jorge", "yes", "110"])
def test_where_the_answer_does_not_tell_its_origin_only_repetitions_go(sandbox, answer):
    trace = (step(0, "age", "Anne", "50"), step(0, "age", "Jorge", "60"))
    question = "Who is older, Anne or Jorge?"
    repeated = (*trace, step(1, "age", "Anne", "50"))
    assert len(cleaned(sandbox, question, answer, *repeated)) == 2


def test_calls_with_an_effect_stay_where_the_state_needs_them(sandbox):
    first, second = (step(turn, "add", "Oslo", "added") for turn in (1, 2))
    trace = (CHAIN[0], first, step(1, "count", output="1"), second)
    state = {"List": {"items": ["Oslo", "Oslo"]}}
    question = "Put the capital of Norway on the list, twice."
    kept = [KEPT[0], (1, "add", "Oslo"), (2, "add", "Oslo")]
    assert cleaned(sandbox, question, "", *trace, gold_state=state) == kept


def test_a_trace_that_does_not_replay_is_none(sandbox):
    assert cleaned(sandbox, "q", "Bergen", step(0, "capital", "Norway", "Bergen")) is None
    state = {"List": {"items": ["x"]}}
    assert cleaned(sandbox, "q", "", step(0, "add", "a", "added"), gold_state=state) is None


def test_failed_calls_are_no_part_of_a_trace():
    calls = (
        ToolCall("capital", {"country": "Norway"}),
        ToolCall("capital", {"x": 1}),
        ToolCall("age", {}),
    )
    results = (ToolResult("Oslo"), ToolResult("Error", ResultStatus.BAD_ARGUMENTS))
    results += (ToolResult("A lo", ResultStatus.TRUNCATED),)
    made = replace(builders.turn(*calls), results=results)
    attempt = builders.attempt(builders.task(answer="Oslo"), made, builders.says("Oslo"))
    long = TracedCall(0, calls[2], "A lo")  # which ran to its end
    assert traced_calls(attempt) == (TracedCall(0, calls[0], "Oslo"), long)


def test_turns_count_the_talk_with_the_user_before_them(sandbox, tmp_path):
    made = [replace(builders.turn(s.call), results=(ToolResult(s.output),)) for s in CHAIN[:2]]
    asks = replace(builders.turn(text="Where?"), reply="Norway")
    task = Task("t", "Who is the mayor?", tuple(TOOLS), (), "Anne", user=("Norway",))

    async def run_async(tasks, *_):
        return [[builders.attempt(tasks[0], asks, *made, builders.says("Anne"))]]

    runner = SimpleNamespace(run_async=run_async, sandbox=sandbox)
    log = AttemptLog(tmp_path / "log.jsonl")
    collector = Collector(runner, SamplingParams(), log, attempts=1)
    collector.run([task], lambda _: None)
    assert [step.turn for step in collector.of(task)[0].trace] == [1, 2]


def test_the_shortest_trace_is_gold_and_others_are_alternatives():
    long, short = (*CHAIN, step(1, "capital", "Peru", "Lima")), CHAIN
    task = Task("t", "q", tuple(TOOLS), (), "Anne", metadata={"split": "train"})
    gold = gold_task(task, [long, short, short[::-1]], 1, {"teacher": "m"})
    assert gold.gold_calls == tuple(item.call for item in CHAIN)
    assert gold.gold_turns == (0, 1)
    assert [answer.output for answer in gold.sub_answers] == ["Oslo", "Anne"]
    assert gold.alternative_gold_calls == (tuple(item.call for item in long),)
    told = {"teacher": "m", "right": 3, "distinct": 2}
    assert gold.metadata == {"split": "train", "provenance": told}
