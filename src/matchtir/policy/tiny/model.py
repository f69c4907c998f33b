"""The tiny policy: made here in a second, small enough to be trained on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from matchtir.policy.loading import LoadedPolicy, wrapped
from matchtir.policy.tiny.tokenizer import tiny_tokenizer, tiny_tokenizer_for
from matchtir.tasks.rows import TaskSet


def load_tiny(
    hidden_size: int = 128,
    layers: int = 3,
    heads: int = 4,
    key_value_heads: int = 2,
    feed_forward: int = 384,
    init_std: float = 0.06,
    head_chunk: int = 2048,
    seed: int = 0,
    words_of: TaskSet | None = None,
    packing: bool = False,
    activation_checkpointing: bool = False,
    lora: Mapping[str, Any] | None = None,
) -> LoadedPolicy:
    """A Qwen3-architecture model of about 0.7 M parameters with random weights.

    The weights depend on the arguments alone, not on the state of the global generator. The words
    of the training tasks of `words_of` are in its vocabulary; of held-out tasks nothing is read.
    """
    tokenizer = tiny_tokenizer_for(words_of.tasks("train")) if words_of else tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=hidden_size // heads,
        intermediate_size=feed_forward,
        initializer_range=init_std,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        return wrapped(model, tokenizer, head_chunk, packing, activation_checkpointing, lora)
