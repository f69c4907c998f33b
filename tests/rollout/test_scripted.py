import asyncio

import pytest
from torch import nn

from matchtir.rollout.engine import SamplingParams, ScriptedEngine, replay, session_name
from tests.rollout.episode_fakes import RENDERER


def generate(engine, session="a", room=50):
    return asyncio.run(engine.generate(session, [1], SamplingParams(max_new_tokens=room), 0))


def test_writes_the_turns_of_each_session_until_it_is_released():
    engine = ScriptedEngine(RENDERER, lambda session, turn: f"{session} {turn}")

    def says(session):
        return RENDERER.decode(generate(engine, session).token_ids)

    assert [says("alpha"), says("beta"), says("alpha")] == ["alpha 0", "beta 0", "alpha 1"]
    engine.release("alpha")
    engine.release("never seen")
    assert [says("alpha"), says("beta")] == ["alpha 0", "beta 1"]


def test_cut_at_the_limit():
    engine = ScriptedEngine(RENDERER, lambda session, turn: "alpha beta gamma")
    whole, cut = generate(engine, room=4), generate(engine, room=3)
    assert whole.stopped and whole.token_ids == RENDERER.encode_turn("alpha beta gamma")
    assert not cut.stopped and cut.token_ids == whole.token_ids[:3]
    assert (whole.logprobs, cut.logprobs) == ((0.0,) * 4, (0.0,) * 3)


def test_what_the_script_raises_comes_out():
    def script(session: str, turn: int) -> str:
        raise OSError("device lost")

    with pytest.raises(OSError, match="device lost"):
        generate(ScriptedEngine(RENDERER, script))


def test_sync_takes_over_the_version():
    engine = ScriptedEngine(RENDERER, replay({}))
    engine.sync(nn.Identity(), 7)
    assert engine.version == 7


def test_replay_reads_the_task_from_the_session():
    script = replay({"set/1": ["call", "answer"], "set/2": ["other"]})
    assert script(session_name(0, 0, 3, "set/1"), 1) == "answer"
    assert script(session_name(0, 1, 0, "set/2"), 0) == "other"
    with pytest.raises(ValueError, match="turn 1 of 1"):
        script(session_name(0, 1, 0, "set/2"), 1)
