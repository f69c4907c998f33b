"""Speed of the update with sequences packed into one row against padded ones.

    python scripts/bench_packing.py [--hidden 128 --layers 3] [--longest 1000]
    python scripts/bench_packing.py --sequences 64 --longest 140 --prompt 103 --group 8   # laptop
    python scripts/bench_packing.py --sequences 8 --longest 6000 --prompt 2000 --group 8 \\
        --budget 64000                                                        # 8k positions
    python scripts/bench_packing.py --model Qwen/Qwen3-0.6B --longest 8000 --budget 16384   # a GPU

A mini-batch of sequences of random lengths, up to the longest, is scored with gradients in
micro-batches of a token budget, both ways in turns; the table shows medians. With `--group` so many
of them begin with the same prompt, which is not scored. On a GPU the model
computes in bfloat16, and the peak of its memory is shown too. The last line is `RESULT {json}`:
`saved_share` of the tokens is not computed again, and padded sequences take `ratio` times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from matchtir.policy.batching import micro_batch_rows
from matchtir.policy.packing import layout, shared_prefixes
from matchtir.policy.policy import Policy

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"padded": False, "packed": True}
GIB = 2**30


def architecture(options: argparse.Namespace) -> Qwen3Config:
    """One of `plan.models`, or a small one like the laptop's."""
    if options.model:
        known: Any = OmegaConf.load(ROOT / "configs" / "train.yaml")
        return Qwen3Config(**known.plan.models[options.model])
    return Qwen3Config(
        vocab_size=1500,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=options.hidden // 4,
        intermediate_size=3 * options.hidden,
    )


def make(config: Qwen3Config, packing: bool, device: torch.device) -> Policy:
    """A policy with random weights that computes every layer twice, as at scale."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, packing=packing).train()


Batch = tuple[Tensor, Tensor, Tensor]  # ids, scored and real tokens [B, L]


def micro_batches_of(policy: Policy, whole: Batch, budget: int) -> list[Batch]:
    """The micro-batches of one mini-batch."""
    ids, scored, real = whole
    lengths = real.sum(dim=1).cpu()
    packed = shared_prefixes(ids, scored) if policy.packing else None
    parts = []
    for rows in micro_batch_rows(lengths, budget, packed):
        longest = int(lengths[rows].max())
        parts.append((ids[rows, :longest], scored[rows, :longest], real[rows, :longest]))
    return parts


def update(policy: Policy, parts: Sequence[Batch]) -> float:
    """Gradients of one mini-batch; the sum of its log-probabilities."""
    policy.zero_grad()
    total = 0.0
    for ids, scored, real in parts:
        logprobs = policy(ids, scored, 1.0, real).logprobs.sum()
        logprobs.backward()
        total += float(logprobs.detach())
    return total


def mini_batch(vocabulary: int, options: argparse.Namespace) -> Batch:
    """Random ids, with one prompt per group, which is not scored."""
    draw = torch.Generator().manual_seed(0)
    shape = (options.sequences, options.prompt + options.longest)
    own = torch.randint(options.longest // 8, options.longest + 1, shape[:1], generator=draw)
    ids = torch.randint(vocabulary, shape, generator=draw)
    first = torch.arange(options.sequences) // options.group * options.group
    ids[:, : options.prompt] = ids[first, : options.prompt]
    places = torch.arange(shape[1])
    real = places < (own + options.prompt)[:, None]
    return ids, real & (places >= options.prompt), real


def measure(policies: dict[str, Policy], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians over rounds in which both ways take turns, after one that does not count."""
    device = next(policies["padded"].parameters()).device
    ids, scored, real = mini_batch(policies["padded"].model.config.vocab_size, options)
    whole, tokens = (ids.to(device), scored.to(device), real.to(device)), int(real.sum())
    found: dict[str, dict[str, Any]] = {way: {"tokens": tokens, "seconds": []} for way in policies}
    for round_ in range(options.rounds + 1):
        for way, policy in policies.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            parts = micro_batches_of(policy, whole, options.budget)
            total = update(policy, parts)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                found[way]["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
            if round_:
                found[way]["seconds"].append(time.perf_counter() - started)
                continue
            # Tokens and padding that each layer computes.
            rows = [len(layout(*p).rows) if policy.packing else p[0].numel() for p in parts]
            found[way] |= {"passes": len(rows), "logprob": total / tokens, "positions": sum(rows)}
    for numbers in found.values():
        numbers["seconds"] = median(numbers["seconds"])
        numbers["tokens_per_s"] = tokens / numbers["seconds"]
    return found


def main() -> None:
    """Both ways on one mini-batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="an architecture of plan.models in configs/train.yaml")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--longest", type=int, default=1000, help="tokens, without the prompt")
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt")
    parser.add_argument("--group", type=int, default=1, help="sequences of one prompt")
    parser.add_argument("--budget", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(f"torch {torch.__version__}, {name or platform.machine()}, {os.cpu_count()} cores")
    config = architecture(options)
    found = measure({way: make(config, packing, device) for way, packing in WAYS.items()}, options)
    for way, numbers in found.items():
        peak = f", peak {numbers['peak_gib']:.2f} GiB" if "peak_gib" in numbers else ""
        print(
            f"{way}: {numbers['seconds']:.2f} s, {numbers['tokens_per_s']:,.0f} tokens/s, "
            f"{numbers['passes']} passes, {numbers['positions']:,} positions for "
            f"{numbers['tokens']:,} tokens{peak}"
        )
    result = {
        "saved_share": 1 - found["packed"]["positions"] / found["packed"]["tokens"],
        "ratio": found["padded"]["seconds"] / found["packed"]["seconds"],
    }
    print("RESULT", json.dumps({**result, **vars(options), **found}))


if __name__ == "__main__":
    main()
