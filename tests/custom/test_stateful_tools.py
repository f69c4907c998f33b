"""Objects whose methods are tools: one of each class per episode, in a process of its own."""

import asyncio
import json

import pytest

from matchtir.types import ResultStatus, ToolCall, ToolSpec
from tests.tools.sandbox_helpers import in_session

CART = """
import dataclasses, os, threading, time

SOLD = []

@dataclasses.dataclass
class Line:
    name: str
    count: int

class Cart:
    def __init__(self, owner="", lines=()):
        self.owner = owner
        self.lines = [Line(**line) for line in lines]
        self.tags = {"b", "a"}
        self._secret = 1

    def add(self, name, count=1):
        self.lines.append(Line(name, count))
        SOLD.append(name)
        return len(self.lines)

    def sold(self): return SOLD
    def hang(self): time.sleep(60)
    def leave(self): os._exit(2)
    def start_thread(self): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    def spoil(self): self.lines = self.__dict__
"""
METHODS = ("add", "sold", "hang", "leave", "start_thread", "spoil")


def cart_tools(source=CART, path=""):
    return [ToolSpec(name, "", {}, source, owner="Cart", path=path) for name in METHODS]


@pytest.fixture
def sandbox(make_sandbox):
    return make_sandbox(timeout_s=1.0)


def in_cart(sandbox, *calls, tools=None, state=None):
    return in_session(sandbox, tools or cart_tools(), *calls, state=state)


def test_calls_of_an_episode_see_each_others_effects_in_their_order(sandbox):
    """A thread of the object does not cost the state."""
    calls = [("add", {"name": str(index), "count": index}) for index in range(8)]
    (thread, *results), state = in_cart(sandbox, ("start_thread", {}), *calls)
    assert thread.output == "null"
    assert [result.output for result in results] == [str(index + 1) for index in range(8)]
    assert [line["count"] for line in state["Cart"]["lines"]] == list(range(8))


def test_episodes_never_see_each_other_nor_what_an_earlier_one_left(sandbox, tmp_path):
    (tmp_path / "shelf.py").write_text("STOCK = []\n")
    source = CART.replace("SOLD = []", "from shelf import STOCK as SOLD")
    tools = cart_tools(source, str(tmp_path / "cart.py"))

    async def run():
        sessions = [await sandbox.open(tools, {"Cart": {"owner": str(i)}}) for i in range(6)]
        for turn in range(3):
            made = [ToolCall("add", {"name": f"{owner}/{turn}"}) for owner in range(6)]
            calls = [session.call(each) for session, each in zip(sessions, made, strict=True)]
            assert {result.output for result in await asyncio.gather(*calls)} == {str(turn + 1)}
        found = [(await s.state(), await s.call(ToolCall("sold", {}))) for s in sessions]
        for session in sessions:
            await session.close()
        return found

    for _ in range(2):  # the second time the processes have served before
        for owner, (state, sold) in enumerate(asyncio.run(run())):
            names = [f"{owner}/{turn}" for turn in range(3)]
            assert state["Cart"]["owner"] == str(owner)
            assert [line["name"] for line in state["Cart"]["lines"]] == names
            assert json.loads(sold.output) == names


def test_the_state_is_the_public_attributes_as_json(sandbox):
    lines = [{"name": "tea", "count": 2}]
    _, state = in_cart(sandbox, state={"Cart": {"lines": lines}})
    assert state == {"Cart": {"owner": "", "lines": lines, "tags": ["a", "b"]}}
    assert in_cart(sandbox, ("spoil", {}))[1] is None  # no JSON


def test_functions_stay_stateless_and_never_run_where_objects_did(sandbox):
    source = "import time\nSEEN = []\ndef one(): SEEN.append(1); time.sleep(0.05); return len(SEEN)"
    tools = [*cart_tools(), ToolSpec("one", "", {}, source)]
    one = ("one", {})
    for _ in range(3):
        results, state = in_cart(sandbox, one, ("add", {"name": "a"}), one, one, tools=tools)
        assert [result.output for result in results] == ["1"] * 4
        assert state["Cart"]["lines"] == [{"name": "a", "count": 1}]


@pytest.mark.parametrize("end", ["hang", "leave"])
def test_a_call_that_takes_the_process_along_loses_the_state_of_its_episode_alone(sandbox, end):
    async def run():
        lost, other = [await sandbox.open(cart_tools()) for _ in range(2)]
        await other.call(ToolCall("add", {"name": "a"}))
        ended = await lost.call(ToolCall(end, {}))
        after = await lost.call(ToolCall("add", {"name": "b"}))
        states = await lost.state(), await other.state()
        await lost.close()
        await other.close()
        return ended, after, states

    ended, after, (lost, other) = asyncio.run(run())
    assert ended.status == {"hang": ResultStatus.TIMEOUT, "leave": ResultStatus.CRASHED}[end]
    assert after.status is ResultStatus.CRASHED and "state were lost" in after.output
    assert lost is None and len(other["Cart"]["lines"]) == 1


def test_an_initial_state_that_does_not_fit_is_told_at_every_call(sandbox):
    calls = ("add", {"name": "a"}), ("sold", {})
    results, state = in_cart(sandbox, *calls, state={"Cart": {"colour": "red"}})
    assert {result.status for result in results} == {ResultStatus.BROKEN_TOOL}
    assert "Cart cannot be made with its initial state" in results[0].output
    assert "colour" in results[1].output
    assert state is None


def test_bad_arguments_and_missing_methods(sandbox):
    tools = [*cart_tools(), ToolSpec("nothing", "", {}, CART, owner="Cart")]
    results, state = in_cart(sandbox, ("add", {"colour": 1}), ("nothing", {}), tools=tools)
    assert [r.status for r in results] == [ResultStatus.BAD_ARGUMENTS, ResultStatus.BROKEN_TOOL]
    assert "Cart has no method nothing" in results[1].output
    assert state["Cart"]["lines"] == []


OTHER = ToolSpec("other", "", {}, "class Cart: pass", owner="Cart")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"state": {"Trolley": {}}}, "Trolley, which owns no tool"),
        ({"tools": [*cart_tools(), OTHER]}, "two classes called Cart"),
    ],
)
def test_classes_that_cannot_be_told_are_refused(sandbox, given, words):
    with pytest.raises(ValueError, match=words):
        in_cart(sandbox, **given)


def test_a_cancelled_call_ends_at_once_and_the_session_can_be_closed(sandbox):
    async def run():
        session = await sandbox.open(cart_tools())
        await session.call(ToolCall("add", {"name": "a"}))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await session.call(ToolCall("hang", {}))
        assert await session.state() is None
        await session.close()

    asyncio.run(run())
    (result,), _ = in_cart(sandbox, ("add", {"name": "a"}))
    assert result.output == "1"
