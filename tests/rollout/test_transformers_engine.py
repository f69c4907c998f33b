"""The engine that keeps the cache of each conversation, held against plain forward passes."""

import asyncio
import gc
import logging
import random
from itertools import count

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from matchtir.policy.policy import Policy
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.transformers_engine import TransformersEngine
from tests.policy.tiny_policy import ARCHITECTURE, small
from tests.rollout.engine_helpers import STOP, Talk, assert_equal, converse, naive, run_all, talks

SAMPLED = SamplingParams(temperature=1.0, max_new_tokens=9)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=9)
POLICY = small(layers=1, seed=3).policy.eval()


def engine(policy=POLICY, stop=STOP, **options):
    made = TransformersEngine(stop, **options)
    made.sync(policy, version=0)
    return made


LONG = tuple(random.Random(0).choices(range(10, 800), k=300))  # more than one step of growth
GROWING = [Talk((50, 51, 52), ((60,), LONG)), Talk((53, 54), ((61, 62), (63,)))]


def assert_all_equal(found, conversations, sampling=SAMPLED, policy=POLICY):
    for talk, generations in zip(conversations, found, strict=True):
        assert_equal(generations, naive(policy, talk, sampling))


# -- what is sampled ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("conversations", "sampling", "options"),
    [
        (talks(4), GREEDY, {"rejoin_after": 0}),
        (talks(4), SAMPLED, {"rejoin_after": None}),
        (talks(4), SamplingParams(0.7, 0.9, 50, 9), {"rejoin_after": 4}),
        pytest.param([Talk((50,), ((60,), (61,)))], SAMPLED, {}, id="a prompt of one token"),
        pytest.param([Talk((50, 51, 52), ((), ()))], SAMPLED, {}, id="no observations"),
        pytest.param(GROWING, SAMPLED, {}, id="a cache that grows keeps what it holds"),
        *((talks(4, group=2, seed=5), SAMPLED, {"prefill_tokens": size}) for size in (1, 5, 30)),
        # places are taken over and moved; every conversation stays what it is
        *((talks(5, seed=6, group=2), SAMPLED, {"max_sessions": places}) for places in (1, 2, 3)),
    ],
)
def test_turns_of_many_conversations_equal_a_loop_without_a_cache(conversations, sampling, options):
    found = run_all(engine(**options), conversations, sampling)
    assert_all_equal(found, conversations, sampling)
    lengths = {len(generation.token_ids) for turns in found for generation in turns}
    assert len(lengths) > 2 or len(conversations) < 4  # rows joined and left at different times


# -- the cache -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "conversations", [talks(1, turns=3, seed=4), talks(8, turns=1, group=4)], ids=["turns", "group"]
)
def test_only_new_tokens_are_read_and_the_prompt_of_a_group_once(conversations):
    single = engine()
    found = run_all(single, conversations, SAMPLED)
    prompts = {talk.prompt for talk in conversations}
    # The last token of a turn is read with the observation that follows it.
    observed = [1 + len(o) for talk in conversations for o in talk.observations]
    assert single.prefill_count == sum(map(len, prompts)) + sum(observed)
    assert_all_equal(found, conversations)


def test_a_group_waits_for_a_prompt_that_is_read_in_pieces():
    """Also where one of the group was moved to a slot before that of the reader."""
    prompt = tuple(range(100, 140))
    moved = engine(stop=(), prefill_tokens=8, rejoin_after=None)

    async def main():
        short = converse(moved, "s", Talk((50, 51)), SamplingParams(max_new_tokens=3))
        group = [converse(moved, f"g{n}", Talk(prompt, seed=n), SAMPLED) for n in range(2)]
        await asyncio.gather(short, *group)

    asyncio.run(main())
    assert moved.prefill_count == 2 + len(prompt)


# -- who waits for whom --------------------------------------------------------------------------
def test_nobody_waits_for_anothers_tools():
    """Without rendezvous: neither a running conversation nor one that comes later."""

    async def main():
        shared = engine(rejoin_after=None)
        tools, finished = asyncio.Event(), []

        async def one(session, talk):
            await converse(shared, session, talk, SAMPLED, delay=tools.wait)
            finished.append(session)

        slow = asyncio.create_task(one("slow", Talk((50, 51), ((60,),))))
        quick = asyncio.create_task(one("quick", Talk((52, 53, 54))))
        await asyncio.wait_for(quick, 10)
        await asyncio.sleep(0.05)  # the engine has nothing to do
        await asyncio.wait_for(one("late", Talk((55, 56))), 10)
        assert finished == ["quick", "late"]
        tools.set()
        await asyncio.wait_for(slow, 10)

    asyncio.run(main())


@pytest.mark.parametrize("max_sessions", [64, 3])
def test_results_are_the_same_to_the_last_bit_however_long_tools_take(max_sessions):
    """Also those of an engine that was used before."""
    conversations = talks(8, turns=4, seed=7, group=2)
    used = engine(max_sessions=max_sessions)
    run_all(used, [Talk(tuple(range(20, 400)), ((5,),)), *talks(9, seed=9)], SAMPLED)
    used.sync(POLICY, version=1)

    def with_jitter(shared, seed):
        rng = random.Random(seed)

        async def delay():
            for _ in range(rng.choice([0, 0, 1, 2, 30])):
                await asyncio.sleep(0)
            if rng.random() < 0.2:
                await asyncio.sleep(0.01 * rng.random())

        return run_all(shared, conversations, SAMPLED, delay)

    first = with_jitter(engine(max_sessions=max_sessions), 0)
    assert with_jitter(engine(max_sessions=max_sessions), 1) == first
    assert with_jitter(used, 2) == first


# -- things that go wrong ------------------------------------------------------------------------
def test_an_error_in_the_model_reaches_everybody_once(monkeypatch, caplog):
    broken = small(layers=1, seed=3).policy.eval()
    shared = engine(broken, max_sessions=2)  # two run, one waits for a place
    forward, passes = broken.model.base_model.forward, count(1)

    def fail(*args, **kwargs):
        if next(passes) == 3:
            raise ZeroDivisionError("out of luck")
        return forward(*args, **kwargs)

    monkeypatch.setattr(broken.model.base_model, "forward", fail)
    conversations = talks(3)

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        failures = run_all(shared, conversations, SAMPLED, failures=True)
        shared.sync(broken, version=1)
        again = run_all(shared, conversations, SAMPLED)
        gc.collect()
    reached = [(type(failure), str(failure)) for failure in failures]
    assert reached == [(ZeroDivisionError, "out of luck")] * 3
    assert_all_equal(again, conversations, policy=broken)
    assert not caplog.records  # the episodes have the error: nothing is left over to warn about


@pytest.mark.parametrize(("ticks", "rejoin_after"), [(0, 4), (3, 4), (3, None)])
def test_a_turn_that_is_cancelled_leaves_the_others_alone(ticks, rejoin_after):
    conversations = talks(4, seed=10, group=2)

    async def main():
        shared = engine(stop=(), max_sessions=4, rejoin_after=rejoin_after)

        def begun(name, talks, sampling):
            conversations = [converse(shared, f"{name}{t.seed}", t, sampling) for t in talks]
            return [asyncio.create_task(each) for each in conversations]

        others = [Talk(conversations[0].prompt, seed=50), Talk((5, 6, 7), seed=51)]
        cancelled = begun("c", others, SamplingParams(max_new_tokens=10**4))
        running = begun("s", conversations, SAMPLED)
        for _ in range(2 + 2 * ticks):
            await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await asyncio.wait_for(asyncio.gather(*running), 60)

    for talk, generations in zip(conversations, asyncio.run(main()), strict=True):
        (alone,) = run_all(engine(stop=()), [talk], SAMPLED)
        assert_equal(generations, alone)


# -- weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize("rejoin_after", [4, None])
def test_new_weights_are_used_at_once_in_the_same_loop(rejoin_after):
    """Nothing of the old weights is left, not even a prompt that another session has read."""
    policy, talk = small(layers=1, seed=3).policy.eval(), Talk((50, 51, 52, 53))

    async def main():
        shared = engine(policy, rejoin_after=rejoin_after)
        await shared.generate("s", talk.prompt, SAMPLED, 0)
        await asyncio.sleep(0.01)  # the engine waits for the session's next turn
        shared.release("s")
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.2)
        shared.sync(policy, version=1)
        return await converse(shared, "t", talk, SAMPLED)

    found = asyncio.run(asyncio.wait_for(main(), 20))
    assert_equal(found, naive(policy, talk, SAMPLED))
    assert found[0] != naive(POLICY, talk, SAMPLED)[0]


def test_a_copy_computes_what_the_policy_computes():
    policy = Policy(small(layers=1).policy.model, head_float32=True).eval()
    shared, copied = (engine(policy, own_weights=own) for own in (False, True))
    with torch.autocast("cpu", torch.bfloat16):
        assert run_all(shared, talks(2), SAMPLED) == run_all(copied, talks(2), SAMPLED)


def sliding_window():
    sizes = {"vocab_size": 50, **ARCHITECTURE, "num_hidden_layers": 6}
    return Policy(Gemma3ForCausalLM(Gemma3TextConfig(**sizes)))


def eager_attention():
    policy = small().policy
    policy.model.set_attn_implementation("eager")
    return policy


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.nn.Linear(1, 1), TypeError, "Linear"),
        (sliding_window, ValueError, "sliding_attention"),
        (eager_attention, ValueError, "eager"),  # reads the mask otherwise
    ],
)
def test_what_it_cannot_sample_from_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        TransformersEngine(STOP).sync(make(), version=0)


def test_requests_and_options_that_make_no_sense_are_refused():
    async def refused(shared, context, room=5, match="session s"):
        with pytest.raises((ValueError, RuntimeError), match=match):
            await shared.generate("s", context, SamplingParams(max_new_tokens=room), 0)

    async def main():
        shared = engine()
        await refused(TransformersEngine(STOP), (50,), match="sync")
        await refused(shared, ())
        await refused(shared, (50,), room=0)
        context = (50, 51, 52)
        turn = asyncio.create_task(shared.generate("s", context, SAMPLED, 0))
        await asyncio.sleep(0)
        await refused(shared, (*context, 53), match="already generating")
        whole = context + (await turn).token_ids
        for wrong in (context, (99, *whole[1:], 7), whole[:-1], (*whole[:-1], 99, 7)):
            await refused(shared, wrong, match="session s: the context does not extend")
        await shared.generate("s", (*whole, 7), SAMPLED, 1)  # the session is none the worse
        await asyncio.sleep(0)  # the engine waits for its next turn
        with pytest.raises(RuntimeError, match="1 sessions are open"):
            shared.sync(POLICY, version=1)
        shared.release("s")
        shared.sync(POLICY, version=1)

    asyncio.run(main())
    for option in ({"max_sessions": 0}, {"prefill_tokens": 0}, {"rejoin_after": -1}):
        with pytest.raises(ValueError, match=next(iter(option))):
            TransformersEngine(STOP, **option)
