"""Peak memory of log-probabilities and their gradient, in chunks and the plain way.

python scripts/bench_memory.py [--tokens 8192] [--vocabulary 151936] [--hidden 256] [--chunk 2048]

Each way runs in a process of its own, whose peak resident memory less that before the forward pass
is measured (Linux). The plain way makes all logits [tokens, vocabulary] at once, as
`model(...).loss` does; where they do not fit into this machine it is measured on fewer tokens, and
its peak, which grows with them, is scaled up. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from matchtir.policy.policy import Policy

WAYS = ("plain", "chunks")
KIB_OF_GIB = 2**20
COPIES = 6  # of the logits in 32 bits, at most, that the plain way has alive
SHARE = 0.6  # of the available memory that it may take


def fitting(tokens: int, vocabulary: int) -> int:
    """So many tokens, or half, a quarter ... of them, as the plain way has memory for."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    while tokens > 1 and COPIES * 4 * tokens * vocabulary > SHARE * kib * 1024:
        tokens //= 2
    return tokens


def tiny(vocabulary: int, hidden: int) -> Qwen3ForCausalLM:
    """One layer: what differs between the two ways is the output layer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=hidden,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def plain(model: Qwen3ForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of log-probabilities and entropy from the whole matrix of logits."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    distribution = logits.log_softmax(dim=-1)
    logprobs = distribution.gather(-1, ids[:, 1:, None])
    entropy = -(distribution.exp() * distribution).sum(dim=-1)
    return logprobs.sum(), entropy.sum()


def chunks(
    model: Qwen3ForCausalLM, ids: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the policy."""
    scores = Policy(model, chunk)(ids, torch.ones_like(ids, dtype=torch.bool))
    return scores.logprobs.sum(), scores.entropy.sum()


def measure(way: str, tokens: int, vocabulary: int, hidden: int, chunk: int) -> dict[str, float]:
    """Peak memory, seconds and values of one way, gradients included."""
    model = tiny(vocabulary, hidden)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    started, before = time.perf_counter(), getrusage(RUSAGE_SELF).ru_maxrss
    logprobs, entropy = plain(model, ids) if way == "plain" else chunks(model, ids, chunk)
    (logprobs + 0.001 * entropy).backward()
    norms = [each.grad.norm() for each in model.parameters() if each.grad is not None]
    return {
        "peak_gib": (getrusage(RUSAGE_SELF).ru_maxrss - before) / KIB_OF_GIB,
        "seconds": time.perf_counter() - started,
        "logprob": logprobs.item() / (tokens - 1),
        "entropy": entropy.item() / (tokens - 1),
        "grad_norm": torch.stack(norms).norm().item(),
    }


def main() -> None:
    """Both ways, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key != "way"}
    if options.way:
        print(json.dumps(measure(options.way, **settings)))
        return
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        count = fitting(options.tokens, options.vocabulary) if way == "plain" else options.tokens
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--tokens", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = {**json.loads(done.stdout), "measured_tokens": count}
        found[way]["peak_gib"] *= options.tokens / count
        note = "" if count == options.tokens else f"  (scaled up from {count} tokens)"
        print(f"{way:7} peak {found[way]['peak_gib']:6.2f} GiB{note}", flush=True)
    print("RESULT", json.dumps({**settings, **found}))


if __name__ == "__main__":
    main()
