"""Real vLLM, in this process and as a server, against the trainer's own numbers."""

import asyncio
from functools import partial

import numpy as np
import pytest
import torch
from aiohttp import web

from matchtir.policy.losses import MismatchCorrection
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.http import HttpClient
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.vllm_engine import VllmEngine, own_cache
from matchtir.rollout.vllm_server import VllmServerEngine
from tests.policy.tiny_policy import small
from tests.rollout.chat_fakes import listening
from tests.rollout.engine_helpers import STOP, Talk, converse, needs_vllm, run_all, talks
from tests.training.training_parts import fit, logged, policy_gradient

SETTINGS = {"max_num_seqs": 16}
SIZES = {"layers": 2, "hidden_size": 64}  # heads of 32: the smallest that vLLM has on a CPU
SAMPLED = SamplingParams(temperature=1.0, max_new_tokens=12)
PROMPT = tuple(range(50, 90))


ENGINES = [pytest.param(each, marks=needs_vllm) for each in (VllmEngine, VllmServerEngine)]


@pytest.fixture(scope="module", params=ENGINES, ids=["process", "server"])
def engine(request):
    made = request.param(STOP, 256, SETTINGS)
    made.sync(policy(0), version=0)
    yield made
    made.close()


def policy(shift):
    """The tiny policy, its weights moved by noise of this size."""
    made = small(**SIZES).policy.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += shift * torch.randn(weight.shape, generator=generator)
    return made


def one(engine, context=PROMPT, sampling=SAMPLED, seed=0, session="s"):
    async def main():
        try:
            return await engine.generate(session, context, sampling, seed)
        finally:
            engine.release(session)

    return asyncio.run(main())


def trainers_logprobs(policy, context, generation, temperature=1.0):
    ids = torch.tensor([[*context, *generation.token_ids]])
    scored = torch.arange(ids.shape[1])[None] >= len(context)
    with torch.no_grad():
        return policy(ids, scored, temperature).logprobs[0, len(context) :].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_after_a_sync_the_log_probabilities_are_the_trainers(engine, temperature):
    """Also for a context that was cached under the weights before."""
    sampling = SamplingParams(temperature, max_new_tokens=30)
    for version, shift in enumerate((0.0, 0.05, 0.0), start=1):
        trained = policy(shift)
        engine.sync(trained, version)
        assert engine.version == version
        for seed in range(3):
            found = one(engine, sampling=sampling, seed=seed)
            expected = trainers_logprobs(trained, PROMPT, found, temperature)
            difference = np.abs(np.array(found.logprobs) - expected)
            print(f"mean absolute difference {difference.mean():.1e}")
            assert difference.mean() < 1e-5 and difference.max() < 1e-4


def test_a_seed_means_the_same_alone_and_among_others(engine):
    conversations = talks(9, turns=3)
    together = run_all(engine, conversations, SAMPLED)
    alone = [asyncio.run(converse(engine, "s", talk, SAMPLED)) for talk in conversations]
    assert [[g.token_ids for g in talk] for talk in together] == [
        [g.token_ids for g in talk] for talk in alone
    ]
    assert one(engine, seed=1).token_ids != one(engine, seed=2).token_ids


def test_many_long_prompts_at_once(engine):
    """More tokens than one step of vLLM reads."""
    long = [Talk(tuple([10 + n] * 240), seed=n) for n in range(40)]
    assert all(generation.token_ids for (generation,) in run_all(engine, long, SAMPLED))


def test_a_turn_ends_with_its_stop_token_or_is_cut(engine):
    stopped = [one(engine, sampling=SamplingParams(max_new_tokens=100), seed=n) for n in range(3)]
    for generation in stopped:
        assert generation.stopped and generation.token_ids[-1] in STOP
        assert not set(generation.token_ids[:-1]) & set(STOP)
    (longest,) = sorted(stopped, key=lambda g: len(g.token_ids))[-1:]
    seed = stopped.index(longest)
    cut = one(engine, sampling=SamplingParams(max_new_tokens=len(longest.token_ids) - 1), seed=seed)
    assert not cut.stopped
    assert cut.token_ids == longest.token_ids[:-1]


def test_turns_and_groups_share_what_was_read(engine):
    engine.sync(policy(0), version=100)
    prompt = tuple(range(60, 188))
    before = engine.prefill_count
    first = one(engine, prompt, session="a")
    assert engine.prefill_count - before == len(prompt)
    one(engine, prompt, seed=1, session="b")
    one(engine, (*prompt, *first.token_ids, 5), session="a")
    assert engine.prefill_count - before < 1.5 * len(prompt)


def test_a_conversation_ends_where_the_model_does(engine):
    with pytest.raises(ValueError, match="max_model_len=256"):
        one(engine, tuple([50] * 256))
    assert len(one(engine, tuple([50] * 250)).token_ids) <= 6


def test_a_cancelled_turn_leaves_nothing_behind(engine):
    async def cancelled():
        long = SamplingParams(max_new_tokens=200)
        task = asyncio.create_task(engine.generate("gone", PROMPT, long, 0))
        # Long enough for a request to be under way, not for a turn to end by itself.
        await asyncio.sleep(0.01 if isinstance(engine, VllmServerEngine) else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.release("gone")

    asyncio.run(cancelled())
    engine.sync(policy(0), version=101)  # refused while turns are sampled
    assert one(engine, session="gone").token_ids


@needs_vllm
def test_a_server_that_does_not_start_says_why():
    server = VllmServerEngine(STOP, 256, {"max_num_seqs": 0})
    with pytest.raises(RuntimeError, match="did not start:\n(.|\n)*max_num_seqs"):
        server.sync(policy(0), version=0)
    server.close()


@needs_vllm
@pytest.mark.parametrize("ahead", [False, True])
def test_training_with_vllm(tmp_path, ahead):
    """On policy sampler and trainer agree; one step off they are one step apart."""
    loaded = small(**SIZES)
    renderer = Renderer(loaded.tokenizer, system_prompt="")
    engine = VllmEngine(renderer.stop_token_ids, 512, SETTINGS)
    own = {"policy": loaded.policy, "renderer": renderer, "engine": engine, "ahead": ahead}
    loss = {"correction": MismatchCorrection(cap=2.0)}
    limits = EpisodeLimits(max_turns=2, max_turn_tokens=12)
    module = policy_gradient(scripted=False, loss=loss, limits=limits, **own)
    fit(module, tmp_path, iterations=4)
    engine.close()
    staleness, mismatch = (logged(tmp_path, f"train/{n}") for n in ("staleness", "mismatch_kl"))
    assert staleness == [0, *[1 if ahead else 0] * 3]
    assert mismatch[0] < 1e-8 and (max(mismatch[1:]) > 1e-7) is ahead


def test_engines_of_one_machine_do_not_share_what_they_compile(monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/cache")
    folders = [own_cache(local_rank).get("VLLM_CACHE_ROOT", "/cache") for local_rank in range(8)]
    assert folders[0] == "/cache" and len(set(folders)) == 8


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (VllmEngine, {"model": "x", "load_format": "auto", "dtype": "a"}, "load_format, model"),
        (VllmEngine, {"tensor_parallel_size": 2}, "rollout=vllm_server"),
        (partial(VllmServerEngine, url="http://localhost:1"), SETTINGS, "settings of its own"),
        (VllmEngine, None, "call sync first"),
        (VllmEngine, {"tensor_parallel_size": None}, "call sync first"),
        (VllmServerEngine, None, "call sync first"),
    ],
)
def test_what_is_not_free_is_refused(make, settings, words):
    with pytest.raises((ValueError, RuntimeError), match=words):
        one(make(STOP, 256, settings))


# -- without vLLM: what goes over the wire ---------------------------------------------------------

CONTROLS = ["pause", "collective_rpc", "reset_prefix_cache", "update_weight_version", "resume"]


def test_the_time_limit_is_of_the_service_and_not_of_the_queue():
    serving, free = [], asyncio.Semaphore(1)

    async def answer(request):
        serving.append(free.locked())
        async with free:
            await asyncio.sleep(0.2)
        return web.json_response(1)

    with listening(ask=answer) as url:
        client = HttpClient(url, timeout_s=1.0, retries=0, at_once=1)

        async def several():
            return await asyncio.gather(*(client.request("POST", "/ask", {}) for _ in range(8)))

        assert asyncio.run(several()) == [1] * 8
    assert serving == [False] * 8  # one at a time


@pytest.mark.parametrize("level", [0, 2])
def test_sampling_sleep_wake_sync_are_the_only_order(tmp_path, level):
    asked = []

    async def control(request):
        asked.append(request.path_qs)
        return web.json_response({"success": True})

    with listening(**dict.fromkeys([*CONTROLS, "sleep", "wake_up"], control)) as url:
        engine = VllmServerEngine(STOP, 256, sleep_level=level, weights_folder=str(tmp_path))
        engine._client = HttpClient(url, 10, retries=0)
        engine.wake()
        engine.sleep()
        assert asked == []  # there is nothing yet
        engine.sync(policy(0), version=1)
        engine.sleep()
        if level == 0:
            assert asked[-1] == "/resume"
            return
        assert asked[-1] == "/sleep?level=2"
        with pytest.raises(RuntimeError, match="asleep"):
            one(engine)
        with pytest.raises(RuntimeError, match="wake it before a sync"):
            engine.sync(policy(0), version=2)
        engine.wake()
        with pytest.raises(RuntimeError, match="woken: call sync first"):
            one(engine)
        asked.clear()
        engine.sync(policy(0), version=2)
        assert asked[-1] == "/wake_up?tags=kv_cache" and "/resume" not in asked


def test_asleep_and_awake_again(engine):
    engine.sync(policy(0), version=200)
    before = one(engine)
    engine.sleep_level = 2
    engine.sleep()
    with pytest.raises(RuntimeError, match="asleep"):
        one(engine)
    engine.wake()
    engine.sync(policy(0), version=201)
    assert one(engine) == before
    engine.sleep_level = 0
