"""Sequences packed into one row have the scores and gradients of padded ones."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from matchtir.policy.loading import LoadedPolicy, load_pretrained, save_pretrained
from matchtir.policy.policy import Policy
from tests.policy.tiny_policy import ARCHITECTURE, small

SIZES = {"vocab_size": 300, **ARCHITECTURE}


def batch(lengths: list[int], prompts: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
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


def outcome(policy: Policy, *sequences: list[int]) -> list[Tensor]:
    """Log-probabilities, entropies and all gradients of a weighted sum of them."""
    ids, scored, real = batch(*sequences)
    policy.zero_grad()
    scores = policy(ids, scored, 0.7, real)
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    (weights * scores.logprobs + 0.1 * scores.entropy).sum().backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    return [scores.logprobs.detach(), scores.entropy.detach(), *gradients]


def assert_same(one: Policy, other: Policy, *sequences: list[int]) -> None:
    found = outcome(one, *sequences), outcome(other, *sequences)
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


PADDED, PACKED = small().policy, small(packing=True).policy


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_scores_and_gradients_are_those_of_padded_sequences(lengths: list[int]) -> None:
    assert_same(PADDED, PACKED, lengths)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=8))
def test_prompts_that_are_read_once_change_nothing(sequences: list[tuple[int, int]]) -> None:
    lengths, prompts = (list(column) for column in zip(*sequences, strict=True))
    assert_same(PADDED, PACKED, lengths, prompts)


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES),
        LlamaConfig(**SIZES),
        Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2),
        MistralConfig(**SIZES, sliding_window=None),
    ],
)
def test_other_architectures(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    padded = AutoModelForCausalLM.from_config(config)
    packed = AutoModelForCausalLM.from_config(config)
    packed.load_state_dict(padded.state_dict())
    assert_same(Policy(padded), Policy(packed, packing=True), [9, 3, 14], [0, 1, 0])


def test_layers_are_computed_again_for_the_backward_pass() -> None:
    policy = small(packing=True, activation_checkpointing=True).policy
    assert_same(PADDED, policy, [5, 12, 7], [0, 1, 1])


@pytest.mark.parametrize(
    ("sequences", "computed"),
    [
        (([30, 2, 3],), 35),
        (([30, 2, 3], [0, 1, 0]), 3 + 30 + 3 + 4 + 2),  # the first prompt once, without padding
    ],
)
def test_neither_padding_nor_a_prompt_is_computed_again(
    sequences: tuple[list[int], ...], computed: int
) -> None:
    seen: list[tuple[int, ...]] = []
    layer = PACKED.model.base_model.layers[0].mlp
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    ids, scored, real = batch(*sequences)
    PACKED(ids, scored, 1.0, real)
    hook.remove()
    assert seen == [(1, computed)]


def test_a_packed_policy_samples_from_a_cache_as_any_other() -> None:
    ids, _, _ = batch([9, 9])
    tokens = []
    for policy in (PADDED, PACKED):
        sampled = policy.model.generate(ids, max_new_tokens=8, do_sample=False)
        tokens.append(sampled[:, ids.shape[1] :].tolist())
    assert tokens[0] == tokens[1]


def test_a_packed_policy_is_saved_as_any_other(tmp_path: Path) -> None:
    tokenizer = small().tokenizer
    save_pretrained(LoadedPolicy(PACKED, tokenizer), tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert load_pretrained(str(tmp_path)).policy.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma3TextConfig(**SIZES), "full attention in every layer"),
        (MistralConfig(**SIZES, sliding_window=8), "full attention in every layer"),
        (LlamaConfig(**SIZES, attn_implementation="eager"), "attn_implementation=sdpa, not eager"),
    ],
)
def test_models_that_cannot_be_packed_are_refused(config: PreTrainedConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(AutoModelForCausalLM.from_config(config), packing=True)
