"""A randomly initialised model of each family runs an iteration, or says why not."""

import pytest
import torch
import transformers

from matchtir.policy.policy import Policy
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.transformers_engine import TransformersEngine
from tests.policy.tiny_policy import ARCHITECTURE
from tests.rollout.episode_fakes import small_tokenizer
from tests.scale.templates import llama3_1, qwen2_5
from tests.training.training_parts import fit, logged, policy_gradient, weights


def model(kind, tokenizer, **settings):
    torch.manual_seed(0)
    config = kind(vocab_size=len(tokenizer), **{**ARCHITECTURE, **settings})
    config.eos_token_id = config.bos_token_id = config.pad_token_id = tokenizer.eos_token_id
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("kind", "load", "settings"),
    [
        (transformers.Qwen2Config, qwen2_5, {"tie_word_embeddings": True}),
        (transformers.Qwen3Config, small_tokenizer, {"tie_word_embeddings": False}),
        (transformers.LlamaConfig, llama3_1, {}),
        (transformers.Gemma3TextConfig, qwen2_5, {"layer_types": ["full_attention"] * 2}),
    ],
)
def test_an_iteration(tmp_path, kind, load, settings):
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


def test_logits_that_are_changed_after_the_output_layer_are_refused():
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(model(transformers.Gemma2Config, qwen2_5()))
