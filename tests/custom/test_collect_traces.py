"""Gold traces from a teacher behind a real server of the chat-completions protocol."""

import json
import re
from collections import defaultdict

import pytest
from aiohttp import web

from matchtir.rollout.http import EndpointError
from matchtir.tasks.custom import CustomTasks
from scripts import collect_traces
from tests.custom.conftest import STATE, make_row
from tests.rollout.chat_fakes import listening


def calls(*made):
    """An assistant message with calls, as the protocol has it."""
    given = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": text}}
        for index, (name, text) in enumerate((name, json.dumps(each)) for name, each in made)
    ]
    return {"role": "assistant", "content": None, "tool_calls": given}


def says(text):
    return {"role": "assistant", "content": text}


class Teacher:
    """Writes, for each attempt at each question, the turns of a list."""

    def __init__(self, **turns):
        self.turns = turns  # of a word in the question: a list of attempts
        self.begun = defaultdict(int)
        self.place = {}

    async def answer(self, request):
        body = await request.json()
        question = next(m["content"] for m in body["messages"] if m["role"] == "user")
        word = next(word for word in self.turns if word in question)
        if body["messages"][-1]["role"] == "user":
            self.place[body["user"]] = self.begun[word]
            self.begun[word] += 1
        attempt = self.turns[word][self.place[body["user"]]]
        turn = attempt[sum(m["role"] == "assistant" for m in body["messages"])]
        if isinstance(turn, int):
            return web.json_response({"error": "busy"}, status=turn, headers={"Retry-After": "0"})
        answer = {"choices": [{"message": turn, "finish_reason": "stop"}]}
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
        return web.json_response(answer)


@pytest.fixture
def collect(tmp_path, module, write, configure):
    """Runs the program on rows; returns its summary and the folder."""

    def _collect(url, *rows, **settings):
        overrides = [f"{key}={value}" for key, value in settings.items()]
        given = ["data=custom", f"data.path={write(*rows)}", f"data.tools={module}"]
        given += [f"teacher={url}", f"out={tmp_path}/out", "endpoint.model=m", *overrides]
        return collect_traces.run(configure("collect_traces", *given)), tmp_path / "out"

    return _collect


PRICE = make_row(id="price", question="What is the price of tea?", gold_calls=None)
GOOD = [calls(("price", {"item": "tea"})), says("<answer>3</answer>")]
WANDERING = [
    calls(("price", {"item": "wine"}), ("colour", {"item": "tea"})),
    calls(("price", {"item": "tea"})),
    says("It is <answer>3</answer>"),
]
WRONG = [says("<answer>4</answer>")]


def test_right_attempts_become_gold_traces_with_their_provenance(collect, module, make_sandbox):
    teacher, busy = Teacher(price=[WRONG, WANDERING, GOOD]), iter([True])

    async def answer(request):
        if next(busy, False):
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        return await teacher.answer(request)

    with listening(answer) as url:  # two right attempts are enough: there is no fourth one
        summary, folder = collect(url, PRICE, attempts=4, enough=2, **{"price.input": 2.0})
    assert (summary["tasks with gold calls"], summary["right attempts"]) == (1, 2)
    assert (summary["calls in right attempts"], summary["calls kept of them"]) == (4, 2)
    assert summary["distinct traces"] == 1
    assert (summary["requests"], summary["requests made again"]) == (7, 1)
    assert (summary["attempts"], summary["input tokens"]) == (3, 600)
    assert summary["cost"] == 0.0012
    (row,) = [json.loads(line) for line in (folder / "gold.jsonl").read_text().splitlines()]
    kept = {"name": "price", "arguments": {"item": "tea"}, "turn": 1, "output": "3"}
    assert row["gold_calls"] == [kept]
    told = {"teacher": "m", "temperature": 1.0, "attempts": 3, "right": 2, "distinct": 1}
    assert row["metadata"]["provenance"] == told
    (task,) = CustomTasks(str(folder / "gold.jsonl"), str(module), make_sandbox()).rows()
    assert task.sub_answers[0].output == "3"


def test_a_right_final_state_is_what_counts_where_a_row_asks_for_one(collect):
    row = make_row(id="tidy", question="Tidy up.", gold_calls=None, **STATE)
    put, done = ("put", {"item": "tea"}), says("<answer>Done.</answer>")
    good, half = [calls(put, ("take", {"item": "milk"})), done], [calls(put), done]
    with listening(Teacher(Tidy=[half, good]).answer) as url:
        summary, folder = collect(url, row, attempts=2)
    assert summary["right attempts"] == 1
    (row,) = [json.loads(line) for line in (folder / "gold.jsonl").read_text().splitlines()]
    assert [(call["name"], call["turn"]) for call in row["gold_calls"]] == [("put", 1), ("take", 1)]


def test_it_goes_on_where_it_stopped(collect):
    colour = make_row(id="colour", question="What colour is tea?", answer="green", gold_calls=None)
    green = [calls(("colour", {"item": "tea"})), says("<answer>green</answer>")]
    refuses = Teacher(price=[GOOD, GOOD], colour=[[400]] * 9)
    with listening(refuses.answer) as url:
        summary, folder = collect(url, PRICE, colour, attempts=2, max_concurrent=1)
    assert summary["unsolved"] == ["colour"] and summary["attempts that could not be made"] == 2
    with (folder / "attempts.jsonl").open("a") as file:
        file.write('{"task": "colour#0", "cut sho')  # killed while writing
    patient = Teacher(price=[], colour=[green, green])
    with listening(patient.answer) as url:
        file = folder / "config.yaml"  # the same teacher, at another port
        file.write_text(re.sub("teacher: .*", f"teacher: {url}", file.read_text()))
        summary, _ = collect(url, PRICE, colour, attempts=2)
        with pytest.raises(ValueError, match="temperature: 1.0 -> 0.5"):
            collect(url, PRICE, attempts=1, temperature=0.5)
    assert (summary["unsolved"], summary["attempts"], summary["requests"]) == ([], 4, 4)


def test_a_server_that_refuses_everything_ends_the_program(collect):
    with (
        listening(Teacher(price=[[401]] * 9).answer) as url,
        pytest.raises(EndpointError, match="401"),
    ):
        collect(url, *[{**PRICE, "id": str(index)} for index in range(9)], attempts=1)


def test_rows_that_have_gold_calls_are_left_alone(collect):
    with listening(Teacher().answer) as url:
        summary, folder = collect(url, make_row(id="known"))
    assert (summary["tasks"], summary["requests"]) == (0, 0)
    assert json.loads((folder / "gold.jsonl").read_text())["id"] == "known"
