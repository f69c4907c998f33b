"""What both ways of running vLLM share: its settings, and one turn as a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matchtir.policy.policy import Policy
from matchtir.rollout.engine import SamplingParams

# Ids go in and out, and log-probabilities are those of the distribution that the tokens were drawn
# from: none of this is a choice.
FIXED_SETTINGS: Mapping[str, Any] = {
    "skip_tokenizer_init": True,
    "generation_config": "vllm",
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": True,
}

# For vLLM's environment, where the user's has nothing else.
ENVIRONMENT: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for engine arguments that are not free."""
    taken = sorted(settings.keys() & {*FIXED_SETTINGS, "model", "load_format"})
    if taken:
        raise ValueError(f"these settings of vLLM cannot be chosen: {', '.join(taken)}")


def engine_settings(policy: nn.Module, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """VLLM's engine arguments for a model like the policy's, whose configuration goes to `folder`.

    A setting that is None has vLLM's default, but for these. `dtype` is the policy's, since vLLM
    would make float16 of float32. Without a GPU `enforce_eager` is true, since compiling takes half
    a minute there and gains nothing; `block_size` is 32, since vLLM's 128 tokens there are more
    than many a prompt has, and only whole blocks are shared; and prompts are read in one piece,
    since vLLM 0.32 fails there at a seeded request whose prompt is read in several.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"expected a Policy, got {type(policy).__name__}")
    config = deepcopy(policy.model.config)
    if not config.architectures:  # of a model that was made here instead of loaded
        config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
    ours: dict[str, Any] = {"dtype": dtype}
    if not torch.cuda.is_available():
        whole = max(settings["max_model_len"], 8192)
        ours |= {"enforce_eager": True, "block_size": 32}
        ours |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"model": str(folder), **FIXED_SETTINGS, **ours, **given}


def cache_salt(version: int) -> str:
    """What keeps that which older weights have cached out of reach."""
    return f"weights {version}"


def fitted(
    session: str, context: Sequence[int], sampling: SamplingParams, max_model_len: int
) -> SamplingParams:
    """The sampling cut to what the model's length leaves.

    Raises:
        ValueError: nothing is left.
    """
    room = max_model_len - len(context)
    if room < 1 or sampling.max_new_tokens < 1 or not context:
        raise ValueError(
            f"session {session}: a context of {len(context)} tokens and {sampling.max_new_tokens} "
            f"new ones do not fit into max_model_len={max_model_len}"
        )
    return replace(sampling, max_new_tokens=min(room, sampling.max_new_tokens))


def request_settings(sampling: SamplingParams, seed: int, stop: Sequence[int]) -> dict[str, Any]:
    """VLLM's sampling parameters of one turn."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "stop_token_ids": list(stop),
        "ignore_eos": True,  # which of the model's tokens end a turn is the renderer's to say
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }
