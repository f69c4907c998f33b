"""Deadlines, attempts that are interrupted and gone on with, and warnings of those that hang."""

import asyncio
import logging

import pytest

from matchtir.rollout.engine import replay, task_id_of
from matchtir.rollout.episode import Attempt, EpisodeLimits, response_tokens
from matchtir.rollout.runner import EpisodeRunner, conversations_at_once, is_complete
from matchtir.types import StopReason, ToolSpec, Trajectory
from tests.rollout.episode_fakes import (
    ANSWER,
    RENDERER,
    SAMPLING,
    Engine,
    FakeSandbox,
    call_text,
    echo,
    hangs_on,
    runner_of,
    task,
)
from tests.tools.sandbox_helpers import until

CALL = call_text("alpha")


class Resumed(Engine):
    """Writes the turn that the context asks for: it knows nothing of earlier sessions."""

    async def generate(self, session, context, sampling, seed):
        self._turns[session] = list(context).count(RENDERER.encode_turn("")[-1]) // 2 - 1
        return await super().generate(session, context, sampling, seed)


# -- deadlines ------------------------------------------------------------------------------------
def test_an_episode_ends_at_its_deadline_with_the_turns_it_has():
    sandbox = FakeSandbox(hangs_on("beta"))
    runner = runner_of(Engine(CALL, call_text("beta"), ANSWER), sandbox, max_seconds=1)
    [[trajectory]] = runner.run([task()], 1, SAMPLING, seed=0)
    assert trajectory.stop_reason is StopReason.DEADLINE
    (turn,) = trajectory.turns
    assert turn.results and turn.observation_ids == ()
    assert 1 <= trajectory.seconds < 10
    assert all(session.is_closed for session in sandbox.sessions)


def test_a_time_out_of_the_engine_is_no_deadline():
    async def times_out(session):
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        runner_of(Engine(before=times_out), max_seconds=100).run([task()], 1, SAMPLING, seed=0)


# -- going on -------------------------------------------------------------------------------------
def test_enough_groups_end_and_the_others_keep_their_turns():
    async def until_the_slow_are_at_their_second_turn(session):
        while "fast" in session and sum("slow" in each.session for each in engine.requests) < 4:
            await asyncio.sleep(0)

    sandbox = FakeSandbox(hangs_on("delta"))
    turns = {"slow": [CALL, call_text("delta"), ANSWER], "fast": [ANSWER]}
    engine = Engine(script=replay(turns), before=until_the_slow_are_at_their_second_turn)
    runner = runner_of(engine, sandbox)
    groups = runner.attempts([task("slow"), task("fast")], 2, SAMPLING, seed=3)
    slow, fast = asyncio.run(runner.resume(groups, enough=1))
    assert is_complete(fast) and not is_complete(slow)
    for attempt in slow:  # interrupted in the second turn's tools
        assert isinstance(attempt, Attempt) and [turn.text for turn in attempt.turns] == [CALL]
        assert attempt.turns[0].observation_ids
    assert len(engine.released) == 4
    assert all(session.is_closed for session in sandbox.sessions)

    after = Resumed(CALL, call_text("beta"), ANSWER)
    after.version = 1
    (slow,) = asyncio.run(runner_of(after).resume([slow], enough=1))
    for trajectory in slow:
        assert isinstance(trajectory, Trajectory)
        assert trajectory.stop_reason is StopReason.ANSWER
        assert [turn.policy_version for turn in trajectory.turns] == [0, 1, 1]
        assert trajectory.policy_version == 0
    # The same as in one go, but for versions and times.
    [whole] = runner_of(Engine(CALL, call_text("beta"), ANSWER)).run([task("slow")], 2, SAMPLING, 3)
    ids = [[[t.token_ids + t.observation_ids for t in e.turns] for e in g] for g in (slow, whole)]
    assert ids[0] == ids[1]


def test_urgent_groups_are_waited_for():
    async def late(session):
        while task_id_of(session) == "first" and len(engine.requests) < 2:
            await asyncio.sleep(0)

    engine = Engine(ANSWER, before=late)
    runner = runner_of(engine)
    groups = runner.attempts([task("first"), task("b"), task("c")], 1, SAMPLING, seed=0)
    done = asyncio.run(runner.resume(groups, enough=1, must_finish=1))
    assert is_complete(done[0]) and task_id_of(engine.requests[-1].session) == "first"


def test_a_stateful_tool_has_its_state_back(sandbox):
    """Its calls so far are made again in the new session."""
    source = "class Box:\n    n = 0\n    def __init__(self):\n        self.n = 0\n"
    source += "    def mayor_of(self, city):\n        self.n += 1\n        return self.n\n"
    spec = ToolSpec("mayor_of", "", {}, source, owner="Box")
    counting = task(tools=(spec,), gold_state={"Box": {"n": 2}})
    runner = runner_of(Resumed(CALL, CALL, ANSWER), sandbox)
    [[whole]] = runner.run([counting], 1, SAMPLING, seed=0)
    half = Attempt(counting, whole.prompt_ids, SAMPLING, 0, 0, 0, whole.turns[:1])
    ((resumed,),) = asyncio.run(runner.resume([[half]], enough=1))
    for trajectory in (whole, resumed):
        assert [result.output for result in trajectory.results] == ["1", "2"]
        assert trajectory.final_state == {"Box": {"n": 2}}


def test_it_names_the_stage_and_the_episode_that_hangs(caplog):
    """Also where what hangs is the event loop itself."""
    named = "in stage 'tools of turn 0' for more than 0.05 s: 7.0/0/slow one"

    async def answer(call):
        assert until(lambda: named in caplog.text)
        return await echo(call)

    runner = runner_of(Engine(CALL, ANSWER), FakeSandbox(answer))
    runner.watchdog_s = 0.05
    with caplog.at_level(logging.WARNING):
        runner.run([task("slow one")], 1, SAMPLING, seed=7)
    assert named in caplog.text


def test_settings_below_one_are_refused():
    for limit in ("max_turns", "max_prompt_tokens", "max_response_tokens", "max_turn_tokens"):
        with pytest.raises(ValueError, match=f"{limit} must be at least 1"):
            EpisodeLimits(**{limit: 0})
    with pytest.raises(ValueError, match="max_concurrent must be at least 1"):
        runner_of(Engine(), max_concurrent=0)
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        runner_of(Engine()).run([task()], 0, SAMPLING, seed=0)
    with pytest.raises(ValueError, match="watchdog_s must be above 0"):
        EpisodeRunner(None, FakeSandbox(), EpisodeLimits(), watchdog_s=0)


# -- how many at once -----------------------------------------------------------------------------
class Counting(Engine):
    """Knows how many episodes are under way at most, and in which order they began."""

    def __init__(self, *turns, cache_tokens=None):
        super().__init__(*turns, before=self.count)
        self.cache_tokens, self.most, self.begun = cache_tokens, 0, []

    async def count(self, session):
        self.begun += [session] if session not in self.begun else []
        self.most = max(self.most, len(self.begun) - len(self.released))
        await asyncio.sleep(0)


def test_no_more_episodes_at_once_than_allowed_the_oldest_first():
    engine = Counting(CALL, ANSWER)
    runner_of(engine, max_concurrent=3).run([task(str(i)) for i in range(4)], 4, SAMPLING, seed=0)
    assert engine.most == 3 and len(engine.released) == 16
    assert engine.begun == [f"0.{p}/{n}/{p}" for p in range(4) for n in range(4)]


def test_by_default_as_many_as_the_cache_holds():
    engine = Counting(CALL, ANSWER, cache_tokens=400)
    limits = {"max_prompt_tokens": 300, "max_response_tokens": 100}
    runner = runner_of(engine, max_concurrent=None, **limits)
    tasks = [task(str(i)) for i in range(4)]
    [[first], *_] = runner.run(tasks, 1, SAMPLING, seed=0)
    assert engine.most == 2  # half of what the limits allow: 200 tokens each
    length = len(first.prompt_ids) + response_tokens(first.turns)
    engine.cache_tokens, engine.most = 3 * length, 0
    runner.run(tasks, 1, SAMPLING, seed=1)
    assert engine.most == 3  # by now their length is known
    engine.cache_tokens, engine.most = None, 0
    runner.run(tasks, 4, SAMPLING, seed=2)
    assert engine.most == 16
    assert conversations_at_once(10, 1000.0) == 1
