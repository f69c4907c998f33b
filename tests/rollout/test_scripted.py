import asyncio

import pytest
from torch import nn

from matchtir.rollout.engine import (
    SamplingParams,
    ScriptedEngine,
    replay,
    session_name,
)
from matchtir.rollout.renderer import Renderer
from tests.rollout.episode_fakes import small_tokenizer

SAMPLING = SamplingParams(max_new_tokens=50)


def engine_of(script) -> ScriptedEngine:
    return ScriptedEngine(Renderer(small_tokenizer()), script)


def generate(engine, session, context, sampling=SAMPLING, seed=0):
    return asyncio.run(engine.generate(session, context, sampling, seed))


def test_writes_the_turns_of_each_session():
    engine = engine_of(lambda session, turn: f"{session} {turn}")
    first = generate(engine, "alpha", [1])
    assert engine.renderer.decode(first.token_ids) == "alpha 0"
    assert first.stopped and first.logprobs == (0.0,) * len(first.token_ids)
    assert engine.renderer.decode(generate(engine, "beta", [1]).token_ids) == "beta 0"
    second = generate(engine, "alpha", [1, *first.token_ids, 7], seed=5)
    assert engine.renderer.decode(second.token_ids) == "alpha 1"


def test_cut_at_the_limit():
    engine = engine_of(lambda session, turn: "alpha beta gamma")
    whole = generate(engine, "a", [1], SamplingParams(max_new_tokens=4))
    assert whole.stopped and len(whole.token_ids) == 4
    cut = generate(engine, "b", [1], SamplingParams(max_new_tokens=3))
    assert not cut.stopped and cut.token_ids == whole.token_ids[:3] and len(cut.logprobs) == 3


def test_context_must_extend_the_earlier_one():
    engine = engine_of(lambda session, turn: "alpha")
    generate(engine, "a", [1, 2])
    with pytest.raises(ValueError, match="session a: the context does not extend"):
        generate(engine, "a", [1, 2, 3])  # the sampled tokens are missing


def test_released_session_starts_again():
    engine = engine_of(lambda session, turn: str(turn))
    generate(engine, "a", [1])
    engine.release("a")
    engine.release("never seen")
    assert engine.renderer.decode(generate(engine, "a", [9]).token_ids) == "0"


def test_what_the_script_raises_comes_out():
    def script(session: str, turn: int) -> str:
        raise OSError("device lost")

    with pytest.raises(OSError, match="device lost"):
        generate(engine_of(script), "a", [1])


def test_sync_takes_over_the_version():
    engine = engine_of(replay({}))
    engine.sync(nn.Identity(), 7)
    assert engine.version == 7


def test_replay_reads_the_task_from_the_session():
    script = replay({"set/1": ["call", "answer"], "set/2": ["other"]})
    assert script(session_name(0, 0, 3, "set/1"), 1) == "answer"
    assert script(session_name(0, 1, 0, "set/2"), 0) == "other"
    with pytest.raises(ValueError, match="turn 1 of 1"):
        script(session_name(0, 1, 0, "set/2"), 1)
