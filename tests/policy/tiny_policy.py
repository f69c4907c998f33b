"""A very small policy for tests."""

from matchtir.policy.loading import LoadedPolicy, load_tiny


def small(layers: int = 2, seed: int = 0, **arguments) -> LoadedPolicy:
    """Random weights, wide enough apart that next-token distributions are far from uniform."""
    sizes = {"hidden_size": 32, "heads": 2, "key_value_heads": 1, "feed_forward": 64}
    return load_tiny(layers=layers, seed=seed, init_std=0.3, **{**sizes, **arguments})
