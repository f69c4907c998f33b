"""The tiny policy, small enough to be trained on a CPU: random, or with the shipped weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from matchtir.policy.loading import LoadedPolicy, load_pretrained, wrapped
from matchtir.policy.tiny.tokenizer import tiny_tokenizer, tiny_tokenizer_for
from matchtir.tasks.rows import TaskSet

START = Path(__file__).with_name("start")  # a Hugging Face folder; its README.md is its card


def load_tiny(
    hidden_size: int = 128,
    layers: int = 3,
    heads: int = 4,
    key_value_heads: int = 1,
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
        return wrapped(model, tokenizer, activation_checkpointing, lora, head_chunk, packing)


def load_start(
    folder: str | None = None, words_of: TaskSet | None = None, seed: int = 0, **settings: Any
) -> LoadedPolicy:
    """The tiny policy with trained weights: it can call tools, and has habits to unlearn.

    Args:
        folder: where `save_pretrained` left it; None: the weights that are shipped.
        words_of: a task set whose words join the vocabulary; their embeddings are random.
        seed: of these.
        settings: of `load_pretrained`.
    """
    loaded = load_pretrained(str(folder or START), dtype="float32", **settings)
    if words_of is None:
        return loaded
    tokenizer = tiny_tokenizer_for(words_of.tasks("train"))
    _take_tokenizer(loaded.policy.model, loaded.tokenizer, tokenizer, seed)
    return LoadedPolicy(loaded.policy, tokenizer)


@torch.no_grad()
def _take_tokenizer(
    model: Any, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, seed: int
) -> None:
    """Give a model with tied embeddings another vocabulary: tokens of both keep their embedding."""
    known = model.get_input_embeddings().weight.clone()
    rows = torch.randn(len(new), known.shape[1], generator=torch.Generator().manual_seed(seed))
    rows *= known.std()
    numbers = old.get_vocab()
    for token, number in new.get_vocab().items():
        if token in numbers:
            rows[number] = known[numbers[token]]
    model.resize_token_embeddings(len(new), mean_resizing=False)
    model.get_input_embeddings().weight.copy_(rows)
    model.config.eos_token_id, model.config.pad_token_id = new.eos_token_id, new.pad_token_id
