import asyncio
import logging
import time

import pytest

from matchtir.rollout.episode import Watchdog
from tests.rollout.episode_fakes import FakeSandbox, call_text, echo, task
from tests.rollout.test_episode import ANSWER, SAMPLING, Engine, runner_of


def said(caplog, part: str) -> bool:
    return any(part in record.getMessage() for record in caplog.records)


def watched(answer, patience_s: float):
    runner = runner_of(Engine(call_text("alpha"), ANSWER), FakeSandbox(answer))
    runner.watchdog = Watchdog(patience_s)
    return runner


def test_it_names_the_stage_and_the_episode_that_hangs(caplog):
    """Also where what hangs is the event loop itself."""
    named = "in stage 'tools of turn 0' for more than 0.05 s: 7.0/0/slow one"

    async def answer(call):
        deadline = time.monotonic() + 20
        while not said(caplog, named) and time.monotonic() < deadline:
            time.sleep(0.01)
        return await echo(call)

    with caplog.at_level(logging.WARNING):
        watched(answer, 0.05).run([task("slow one")], 1, SAMPLING, seed=7)
    assert said(caplog, named)


def test_it_counts_those_that_it_does_not_name(caplog):
    async def answer(call):
        deadline = time.monotonic() + 20
        while not said(caplog, "and 3 more") and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return await echo(call)

    with caplog.at_level(logging.WARNING):
        watched(answer, 0.05).run([task()], 8, SAMPLING, seed=0)
    assert said(caplog, "and 3 more")


def test_it_is_silent_where_nothing_hangs(caplog):
    runner = runner_of(Engine(call_text("alpha"), ANSWER))
    with caplog.at_level(logging.WARNING):
        runner.run([task()], 8, SAMPLING, seed=0)
    assert caplog.records == []
    assert not runner.watchdog._entered


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="patience_s must be above 0"):
        Watchdog(0)
