"""A very small policy for tests."""

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
