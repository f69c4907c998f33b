import asyncio
import logging
import time

import pytest

from matchtir.rollout.watchdog import Watchdog
from tests.rollout.episode_fakes import FakeSandbox, call_text, echo, task
from tests.rollout.test_episode import ANSWER, SAMPLING, Engine, runner_of


def test_it_names_the_stage_and_the_episodes_that_hang(caplog):
    """Also where what hangs is the event loop itself."""

    async def answer(call):
        time.sleep(0.3)
        return await echo(call)

    runner = runner_of(Engine(call_text("alpha"), ANSWER), FakeSandbox(answer))
    runner.watchdog = Watchdog(0.1)
    with caplog.at_level(logging.WARNING):
        runner.run([task("slow one")], 1, SAMPLING, seed=7)
    message = caplog.records[0].getMessage()
    assert "'tools of turn 0' for more than 0.1 s" in message
    assert "7.0/0/slow one" in message


def test_it_counts_those_that_it_does_not_name(caplog):
    async def answer(call):
        await asyncio.sleep(0.3)
        return await echo(call)

    runner = runner_of(Engine(call_text("alpha"), ANSWER), FakeSandbox(answer))
    runner.watchdog = Watchdog(0.12)
    with caplog.at_level(logging.WARNING):
        runner.run([task()], 8, SAMPLING, seed=0)
    assert "and 3 more" in caplog.records[0].getMessage()


def test_it_is_silent_where_nothing_hangs(caplog):
    runner = runner_of(Engine(call_text("alpha"), ANSWER))
    with caplog.at_level(logging.WARNING):
        runner.run([task()], 8, SAMPLING, seed=0)
    assert caplog.records == []
    assert not runner.watchdog._entered


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="patience_s must be above 0"):
        Watchdog(0)
