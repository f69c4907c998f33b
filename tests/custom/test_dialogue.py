"""An episode whose turns are written from outside."""

import asyncio

import pytest

from matchtir.rollout.speakers import Dialogue
from matchtir.types import StopReason, ToolResult
from tests.rollout.episode_fakes import FakeSandbox, call_text, task


def test_turns_are_answered_by_their_results_and_the_last_by_the_episode():
    sandbox = FakeSandbox()

    async def talk():
        dialogue = Dialogue(task(), sandbox, max_turns=4)
        first = await dialogue.say(call_text("alpha") + call_text("beta"))
        second = await dialogue.say(call_text("gamma"))
        last = await dialogue.say("<answer>beta</answer>")
        with pytest.raises(RuntimeError, match="has ended"):
            await dialogue.say("more")
        return first, second, last

    first, second, trajectory = asyncio.run(talk())
    assert [result.output for result in first] == ["mayor of alpha", "mayor of beta"]
    assert [result.output for result in second] == ["mayor of gamma"]
    assert trajectory.stop_reason is StopReason.ANSWER
    assert [len(turn.calls) for turn in trajectory.turns] == [2, 1, 0]
    assert trajectory.final_text == "<answer>beta</answer>"
    assert all(session.is_closed for session in sandbox.sessions)


def test_the_limit_of_turns_ends_the_episode():
    async def talk():
        dialogue = Dialogue(task(), FakeSandbox(), max_turns=1)
        return await dialogue.say(call_text("alpha"))

    assert asyncio.run(talk()).stop_reason is StopReason.MAX_TURNS


def test_a_turn_that_was_not_waited_for_does_not_take_the_place_of_the_next():
    async def slow(call):
        await asyncio.sleep(0.3)
        return ToolResult("late")

    async def talk():
        dialogue = Dialogue(task(), FakeSandbox(slow), max_turns=4)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await dialogue.say(call_text("alpha"))
        async with asyncio.timeout(5):
            return await dialogue.say("<answer>beta</answer>")

    trajectory = asyncio.run(talk())
    assert trajectory.stop_reason is StopReason.ANSWER
    assert [len(turn.calls) for turn in trajectory.turns] == [1, 0]


def test_an_abandoned_episode_closes_its_session():
    sandbox = FakeSandbox()

    async def talk():
        dialogue = Dialogue(task(), sandbox, max_turns=4)
        await dialogue.say(call_text("alpha"))
        dialogue.abandon()
        await asyncio.sleep(0.05)

    asyncio.run(talk())
    assert [session.is_closed for session in sandbox.sessions] == [True]
