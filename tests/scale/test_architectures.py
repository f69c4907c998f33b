"""A randomly initialised model of each family runs an iteration, or says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from matchtir.policy.policy import Policy
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.transformers_engine import TransformersEngine
from tests.policy.tiny_policy import ARCHITECTURE
from tests.rollout.episode_fakes import small_tokenizer
from tests.scale.templates import llama3_1, qwen2_5
from tests.training.training_parts import fit, logged, policy_gradient, weights


def model(kind: type[PreTrainedConfig], tokenizer: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = kind(vocab_size=len(tokenizer), **{**ARCHITECTURE, **settings})
    config.eos_token_id = config.bos_token_id = config.pad_token_id = tokenizer.eos_token_id
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("kind", "load", "settings"),
    [
        (Qwen2Config, qwen2_5, {"tie_word_embeddings": True}),
        (Qwen3Config, small_tokenizer, {"tie_word_embeddings": False}),
        (LlamaConfig, llama3_1, {}),
        (Gemma3TextConfig, qwen2_5, {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_an_iteration(tmp_path: Path, kind: Any, load: Any, settings: dict[str, Any]) -> None:
    tokenizer = load()
    policy = Policy(model(kind, tokenizer, **settings))
    renderer = Renderer(tokenizer, system_prompt="")
    engine = TransformersEngine(renderer.stop_token_ids)
    module = policy_gradient(policy=policy, renderer=renderer, engine=engine, mini_batches=2)
    before = weights(module)
    fit(module, tmp_path, iterations=1)
    # The engine's log-probabilities are the trainer's: cache, positions and masks are right.
    assert logged(tmp_path, "train/mismatch_kl")[0] < 1e-8
    assert logged(tmp_path, "train/grad_norm")[0] > 0
    assert any(not torch.equal(before[name], value) for name, value in weights(module).items())


def test_sliding_windows_are_refused_by_the_engine() -> None:
    policy = Policy(model(Gemma3TextConfig, qwen2_5()))
    with pytest.raises(ValueError, match=r"full attention in every layer, found .*sliding"):
        TransformersEngine([0]).sync(policy, version=0)


def test_logits_that_are_changed_after_the_output_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(model(Gemma2Config, qwen2_5()))
