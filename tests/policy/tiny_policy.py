"""A very small policy for tests, and sequences to score."""

import torch

from matchtir.policy.tiny.model import load_tiny

ARCHITECTURE = {  # of any family of transformers; without the vocabulary
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
}


def small(layers=2, seed=0, **arguments):
    """Random weights, wide enough apart that next-token distributions are far from uniform."""
    sizes = {"hidden_size": 32, "heads": 2, "key_value_heads": 1, "feed_forward": 64}
    return load_tiny(layers=layers, seed=seed, init_std=0.3, **{**sizes, **arguments})


def batch(lengths, prompts=None):
    """Ids, scored and real tokens [B, L] of sequences padded on the right.

    With prompts, sequence b goes on after prompt number `prompts[b]`, which is 3 tokens and as many
    more as its number.
    """
    generator = torch.Generator().manual_seed(len(lengths))
    begins = [0 if prompts is None else 3 + number for number in prompts or lengths]
    whole = torch.tensor(lengths) + torch.tensor(begins)
    shape = (len(lengths), int(whole.max()))
    ids = torch.randint(10, 300, shape, generator=generator)
    real = torch.arange(shape[1]) < whole[:, None]
    scored = real & (torch.rand(shape, generator=generator) < 0.6)
    for row, begin in enumerate(begins):
        ids[row, :begin] = torch.arange(begin) + 10 * begin
        scored[row, :begin] = False
        if begin:
            scored[row, begin : begin + 1] = real[row, begin : begin + 1]
    return ids, scored, real
