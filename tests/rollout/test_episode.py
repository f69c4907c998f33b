import asyncio
import logging

import pytest

from matchtir.rollout.engine import Generation, replay, session_name, task_id_of
from matchtir.types import StopReason, ToolSpec
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
    small_tokenizer,
    task,
)


def run_one(engine, sandbox=None, **limits):
    """One trajectory; its sessions must be given back."""
    sandbox = sandbox or FakeSandbox()
    [[trajectory]] = runner_of(engine, sandbox, **limits).run([task()], 1, SAMPLING, seed=0)
    assert all(session.is_closed for session in sandbox.sessions)
    assert set(engine.released) == {request.session for request in engine.requests}
    return trajectory


def tokens(text):
    return len(RENDERER.encode_turn(text))


# -- what a trajectory records ---------------------------------------------------------------
def test_whole_episode():
    turns = (f"{call_text('alpha')}\n{call_text('beta')}", call_text("gamma"), ANSWER)
    engine = Engine(*turns)
    engine.version = 3
    sandbox = FakeSandbox()
    trajectory = run_one(engine, sandbox)

    assert trajectory.stop_reason is StopReason.ANSWER
    assert trajectory.policy_version == 3
    assert trajectory.prompt_ids == RENDERER.prompt_ids(task())
    assert [turn.text for turn in trajectory.turns] == list(turns)
    outputs = [[result.output for result in turn.results] for turn in trajectory.turns]
    assert outputs == [["mayor of alpha", "mayor of beta"], ["mayor of gamma"], []]
    assert [len(turn.calls) for turn in trajectory.turns] == [2, 1, 0]
    for turn in trajectory.turns:
        assert turn.token_ids == RENDERER.encode_turn(turn.text)
        assert turn.logprobs == (0.0,) * len(turn.token_ids)
    for turn in trajectory.turns[:-1]:
        assert turn.observation_ids == RENDERER.observation_ids(turn.results)
    assert trajectory.turns[-1].observation_ids == ()
    assert len(sandbox.sessions) == 1
    assert 0 < trajectory.seconds < 60

    # The context of each turn is everything before it, token for token.
    context = trajectory.prompt_ids
    for request, turn in zip(engine.requests, trajectory.turns, strict=True):
        assert request.context == context
        context += turn.token_ids + turn.observation_ids


def test_sampled_ids_are_kept_where_their_text_encodes_otherwise():
    """Token in, token out: a spelling that no encoder would choose stays as it was sampled."""
    byte_by_byte = small_tokenizer().convert_tokens_to_ids(list("alpha"))
    assert RENDERER.encode_turn("alpha")[:-1] != tuple(byte_by_byte)

    class Speller(Engine):
        async def generate(self, session, context, sampling, seed):
            generation = await super().generate(session, context, sampling, seed)
            if len(self.requests) > 1:
                return generation
            ids = (*byte_by_byte, *generation.token_ids)
            self.contexts[session] = (*context, *ids)
            return Generation(ids, (-1.0,) * len(ids), True)

    trajectory = run_one(Speller(call_text("beta"), ANSWER))
    assert trajectory.turns[0].text == "alpha" + call_text("beta")
    assert trajectory.turns[0].token_ids[: len(byte_by_byte)] == tuple(byte_by_byte)


# -- stop reasons ----------------------------------------------------------------------------
def test_the_final_state_is_read_where_the_task_asks_for_one(sandbox):
    source = "class Box:\n    def __init__(self, city):\n        self.city = city\n"
    source += "    def mayor_of(self, city):\n        self.city += city\n        return city\n"
    box, state = (ToolSpec("mayor_of", "", {}, source, owner="Box"),), {"Box": {"city": "alpha"}}
    calls, idle = [call_text("beta"), ANSWER], [ANSWER]
    engine = Engine(script=replay({"calls": calls, "idle": idle, "plain": calls}))
    gold = {"calls": state, "idle": state, "plain": None}
    tasks = [task(name, tools=box, initial_state=state, gold_state=gold[name]) for name in gold]
    groups = runner_of(engine, sandbox).run(tasks, 1, SAMPLING, seed=0)
    states = [trajectory.final_state for (trajectory,) in groups]
    assert states == [{"Box": {"city": "alphabeta"}}, state, None]


def test_turn_length():
    text = f"{call_text('alpha')} and then"
    trajectory = run_one(Engine(text), max_turn_tokens=tokens(text) - 1)
    assert trajectory.stop_reason is StopReason.TURN_LENGTH
    [turn] = trajectory.turns
    assert turn.text == text and len(turn.token_ids) == tokens(text) - 1
    assert turn.calls == () and turn.results == () and turn.observation_ids == ()


def test_the_response_budget_cuts_a_turn_or_ends_the_episode():
    first = run_one(Engine(call_text("alpha"), ANSWER)).turns[0]
    used = len(first.token_ids) + len(first.observation_ids)
    engine = Engine(call_text("alpha"), ANSWER)
    cut = run_one(engine, max_response_tokens=used + 1)
    assert cut.stop_reason is StopReason.TURN_LENGTH
    assert len(cut.turns[1].token_ids) == 1
    assert [request.sampling.max_new_tokens for request in engine.requests] == [used + 1, 1]
    assert {request.sampling.temperature for request in engine.requests} == {0.7}
    ended = run_one(Engine(call_text("alpha")), max_response_tokens=used)
    assert ended.stop_reason is StopReason.RESPONSE_BUDGET
    [turn] = ended.turns
    assert turn.results == first.results  # executed and recorded, but nobody reads it
    assert turn.observation_ids == ()


def test_max_turns_executes_the_last_calls():
    trajectory = run_one(Engine(call_text("alpha"), call_text("beta"), ANSWER), max_turns=2)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert [result.output for result in trajectory.results] == ["mayor of alpha", "mayor of beta"]
    assert trajectory.turns[0].observation_ids and not trajectory.turns[1].observation_ids


def test_prompt_too_long(caplog):
    short, long = task("short"), task("long", question="What is alpha " * 50)
    engine, limit = Engine(ANSWER), len(RENDERER.prompt_ids(short))
    runner = runner_of(engine, max_prompt_tokens=limit)
    with caplog.at_level(logging.WARNING):
        groups = runner.run([long, short], 3, SAMPLING, seed=0)
    assert [t.stop_reason for t in groups[0]] == [StopReason.PROMPT_TOO_LONG] * 3
    assert [t.stop_reason for t in groups[1]] == [StopReason.ANSWER] * 3
    assert groups[0][0].turns == () and groups[0][0].prompt_ids == RENDERER.prompt_ids(long)
    [message] = caplog.messages
    named = ("task long", str(limit), str(len(RENDERER.prompt_ids(long))))
    assert all(part in message for part in named)
    assert len(engine.requests) == 3


# -- order, seeds, concurrency ---------------------------------------------------------------
def test_groups_sessions_and_seeds_are_in_order():
    def requests(seed):
        engine = Engine(call_text("alpha"), ANSWER)
        tasks = [task("a/1"), task("b"), task("c")]
        groups = runner_of(engine).run(tasks, 2, SAMPLING, seed)
        found = [[trajectory.task.task_id for trajectory in group] for group in groups]
        assert found == [["a/1"] * 2, ["b"] * 2, ["c"] * 2]
        assert len(engine.released) == 6
        return engine.requests

    first, again, other = requests(0), requests(0), requests(1)
    starts, names = [request.session for request in first[:6]], enumerate(["a/1", "b", "c"])
    assert starts == [session_name(0, p, n, name) for p, name in names for n in range(2)]
    assert task_id_of(starts[0]) == "a/1"
    assert first == again
    seeds = {request.seed for request in first}
    assert len(seeds) == 12  # of every turn its own
    assert not seeds & {request.seed for request in other}


def test_slow_tool_delays_no_other_trajectory():
    """The tool of the first task returns only when the second task's episode is over."""

    async def answer(call):
        while call.arguments["city"] == "slow" and not engine.released:
            await asyncio.sleep(0)
        return await echo(call)

    engine = Engine(script=replay({name: [call_text(name), ANSWER] for name in ("slow", "fast")}))
    runner = runner_of(engine, FakeSandbox(answer))
    tasks = [task("slow"), task("fast")]
    groups = asyncio.run(asyncio.wait_for(runner.run_async(tasks, 1, SAMPLING, 0), 20))
    assert [group[0].stop_reason for group in groups] == [StopReason.ANSWER] * 2


def test_calls_of_one_turn_run_concurrently_and_keep_their_order():
    arrived = []

    async def answer(call):
        arrived.append(call)
        while call.arguments["city"] == "alpha" and len(arrived) < 2:
            await asyncio.sleep(0)
        return await echo(call)

    runner = runner_of(Engine(call_text("alpha") + call_text("beta"), ANSWER), FakeSandbox(answer))
    [[trajectory]] = asyncio.run(asyncio.wait_for(runner.run_async([task()], 1, SAMPLING, 0), 20))
    assert [result.output for result in trajectory.results] == ["mayor of alpha", "mayor of beta"]


# -- failures --------------------------------------------------------------------------------
def test_engine_failure_ends_all_episodes_and_is_raised_as_itself():
    """It fails at the second turn of the second task, while the others wait for their tools."""

    async def fail(session):
        if task_id_of(session) == "fails" and session in {r.session for r in engine.requests}:
            raise OSError("device lost")

    cities = {"fails": "alpha", "waits": "beta"}
    engine = Engine(script=lambda s, turn: call_text(cities[task_id_of(s)]), before=fail)
    sandbox = FakeSandbox(hangs_on("beta"))
    tasks = [task(name) for name in ("waits", "fails", "waits")]
    with pytest.raises(OSError, match="device lost"):
        runner_of(engine, sandbox).run(tasks, 2, SAMPLING, seed=0)
    assert len(sandbox.sessions) == 6
    assert all(session.is_closed for session in sandbox.sessions)
    assert len(engine.released) == 6


def test_session_is_closed_to_the_end_when_cancelled_meanwhile():
    closing = asyncio.Event()

    async def slowly():
        closing.set()
        for _ in range(5):
            await asyncio.sleep(0)

    engine, sandbox = Engine(call_text("alpha"), ANSWER), FakeSandbox()
    sandbox.before_close = slowly

    async def interrupted():
        run = asyncio.create_task(runner_of(engine, sandbox).run_async([task()], 1, SAMPLING, 0))
        await closing.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert [session.is_closed for session in sandbox.sessions] == [True]
        assert len(engine.released) == 1

    asyncio.run(interrupted())
