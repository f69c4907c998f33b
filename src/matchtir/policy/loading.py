"""Policies from Hugging Face models by path or id, and back into their format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from matchtir.policy.policy import Policy
from matchtir.policy.weights import add_adapters, full_weights, has_adapters
from matchtir.utils.processes import is_first, rank

POLICY_FOLDER = "policy"  # of a run folder: what training made, in the Hugging Face format


class LoadedPolicy(NamedTuple):
    """A model and the tokenizer that belongs to it."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase


def load_pretrained(
    name_or_path: str,
    dtype: str = "auto",
    head_chunk: int = 2048,
    packing: bool = False,
    activation_checkpointing: bool = False,
    lora: Mapping[str, Any] | None = None,
    load_once: bool = False,
    head_float32: bool = False,
    **model_kwargs: Any,
) -> LoadedPolicy:
    """A Hugging Face causal LM and its tokenizer, from a folder or the hub.

    Args:
        name_or_path: of the model.
        dtype: of its weights; "auto": as they are stored.
        head_chunk, packing, head_float32: see `Policy`.
        activation_checkpointing: keep only the input of each layer for the backward pass, and
            compute the layer again there.
        lora: settings of `add_adapters`; None: all weights are trained.
        load_once: in all processes but the first the weights are left out (the meta device), for a
            strategy that spreads them.
        model_kwargs: for `from_pretrained`.

    Raises what transformers raises where the model is not there: OSError, ValueError.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if load_once and not is_first():
        config = AutoConfig.from_pretrained(name_or_path)
        with torch.device("meta"):
            chosen = config.dtype if dtype == "auto" else dtype
            model = AutoModelForCausalLM.from_config(config, dtype=chosen, **model_kwargs)
    else:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **model_kwargs)
    settings = head_chunk, packing, head_float32
    return wrapped(model, tokenizer, activation_checkpointing, lora, *settings)


def wrapped(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    activation_checkpointing: bool,
    lora: Mapping[str, Any] | None,
    *settings: Any,
) -> LoadedPolicy:
    """A model and its tokenizer as a policy, with its settings; see `load_pretrained`."""
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        add_adapters(model, lora)
    return LoadedPolicy(Policy(model, *settings), tokenizer)


def load_policy(name_or_path: str) -> LoadedPolicy:
    """The policy that a run left in its folder, or a Hugging Face model by path or id."""
    of_run = Path(name_or_path, POLICY_FOLDER)
    return load_pretrained(str(of_run) if of_run.is_dir() else name_or_path)


def save_pretrained(loaded: LoadedPolicy, folder: str | Path) -> None:
    """Write model and tokenizer in the Hugging Face format, for `load_pretrained` and vLLM.

    Adapters are merged, compared with what the policy computes, and all weights written in 32 bits:
    16 would round much of what was trained away. Every process of a sharded policy must call this;
    the first one writes.

    Raises:
        RuntimeError: a layer computes something else than its merged weight.
    """
    model, adapted = loaded.policy.model, has_adapters(loaded.policy)
    weights = {}
    for name, value in full_weights(loaded.policy, checked=True):
        weights[name] = value.to("cpu", torch.float32 if adapted else value.dtype)
    for tied in model.all_tied_weights_keys:  # left out, and tied again where they are loaded
        weights.pop(tied, None)
    if rank() == 0:
        model.save_pretrained(folder, state_dict=weights)
        loaded.tokenizer.save_pretrained(folder)
        if adapted:
            config = AutoConfig.from_pretrained(folder)
            config.dtype = torch.float32
            config.save_pretrained(folder)
