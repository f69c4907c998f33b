"""Memory of one device during training, part by part, in bytes.

Activations are what autograd keeps of one decoder layer of the Qwen3 and Llama families with fused
attention. The coefficients were measured (tests/scale/test_plan.py repeats the measurement): bytes
per token for each unit of hidden (H), query (Q), key-value (K) and feed-forward (F) width.
"""

from __future__ import annotations

from dataclasses import dataclass

from matchtir.training.planning.sizes import ModelSize

GIB = 2**30
SINGLE_LAYER = {4: (24, 16, 16, 16), 2: (26, 10, 10, 8)}  # by bytes of a computed number
HEAD_COPIES = 5  # arrays [head chunk, vocabulary] in 32 bits alive at the peak: bench_memory.py


@dataclass(frozen=True, slots=True)
class TrainerLayout:
    """How the policy in training is held.

    `shards` devices share weights, gradients and optimizer; 1: each has all of them.
    """

    weight_bytes: int  # of one stored parameter
    compute_bytes: int  # of one number in a forward pass
    shards: int
    trained_parameters: int
    moments: int  # numbers that the optimizer keeps per trained parameter
    has_reference: bool
    activation_checkpointing: bool
    cpu_offload: bool
    micro_batch_tokens: int  # or the longest sequence, whichever is more
    head_chunk: int


@dataclass(frozen=True, slots=True)
class EngineLayout:
    """What the sampler holds on the same device; a server elsewhere holds nothing here.

    `reserved`: bytes that it takes whatever it needs, and fills with its weights and its cache.
    """

    copies_weights: bool
    weight_bytes: int  # of one parameter of the copy
    cache_bytes: int  # of one number in the cache
    cached_tokens: int  # that the cache has room for, where nothing is reserved
    reserved: int | None = None

    def own_weights(self, size: ModelSize) -> int:
        """Bytes of the copy."""
        return size.parameters * self.weight_bytes if self.copies_weights else 0

    def cache(self, size: ModelSize) -> int:
        """Bytes of the KV cache; below 0 where too little is reserved."""
        if self.reserved is not None:
            return self.reserved - self.own_weights(size)
        return self.token(size) * self.cached_tokens

    def token(self, size: ModelSize) -> int:
        """Bytes of a token in the cache."""
        return 2 * size.layers * size.key_value_width * self.cache_bytes


def activation_bytes(size: ModelSize, layout: TrainerLayout) -> int:
    """What the backward pass of one micro-batch needs of its decoder layers."""
    h, q, k, f = SINGLE_LAYER[layout.compute_bytes]
    layer = h * size.hidden + q * size.query_width + k * size.key_value_width
    layer += f * size.feed_forward
    if layout.activation_checkpointing:
        # The input of each layer: in 32 bits under autocast, while shares are gathered as 16.
        number = layout.compute_bytes if layout.shards > 1 else 4
        return layout.micro_batch_tokens * (size.layers * number * size.hidden + layer)
    return layout.micro_batch_tokens * size.layers * layer


def memory_parts(size: ModelSize, trainer: TrainerLayout, engine: EngineLayout) -> dict[str, int]:
    """Bytes per device of each part; with offloading, what lies in host memory is left out."""
    stored = size.parameters * trainer.weight_bytes
    trained = trainer.trained_parameters * trainer.weight_bytes
    held = {
        "weights": stored / trainer.shards,
        "gradients": trained / trainer.shards,
        "optimiser": trained * trainer.moments / trainer.shards,
        "reference policy": stored / trainer.shards if trainer.has_reference else 0,
    }
    if trainer.cpu_offload:
        held = dict.fromkeys(held, 0)
    # Two layers are whole at a time, one of them ahead of its use; the outer part stays whole.
    gathered = 2 * size.layer_parameters + size.outer_parameters
    parts = held | {
        "gathered layers": gathered * trainer.compute_bytes if trainer.shards > 1 else 0,
        "activations": activation_bytes(size, trainer),
        "logits": HEAD_COPIES * trainer.head_chunk * size.vocabulary * 4,
        "engine's weights": engine.own_weights(size),
        "KV cache": engine.cache(size),
    }
    return {name: int(number) for name, number in parts.items()}


def host_bytes(size: ModelSize, trainer: TrainerLayout) -> int:
    """What offloading moves into host memory, over all devices."""
    if not trainer.cpu_offload:
        return 0
    stored = size.parameters * (2 if trainer.has_reference else 1)
    return (stored + trainer.trained_parameters * (1 + trainer.moments)) * trainer.weight_bytes
