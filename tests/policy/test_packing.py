"""Sequences packed into one row have the scores and gradients of padded ones."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from matchtir.policy import packing
from matchtir.policy.loading import LoadedPolicy, load_pretrained, save_pretrained
from matchtir.policy.policy import Policy
from tests.policy.tiny_policy import ARCHITECTURE, batch, small

SIZES = {"vocab_size": 300, **ARCHITECTURE}


def outcome(policy, *sequences):
    """Log-probabilities, entropies and all gradients of a weighted sum of them."""
    ids, scored, real = batch(*sequences)
    policy.zero_grad()
    scores = policy(ids, scored, 0.7, real)
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    (weights * scores.logprobs + 0.1 * scores.entropy).sum().backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    return [scores.logprobs.detach(), scores.entropy.detach(), *gradients]


def assert_same(one, other, *sequences):
    found = outcome(one, *sequences), outcome(other, *sequences)
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


PADDED, PACKED = small().policy, small(packing=True).policy


def test_scores_of_a_packed_row_in_16_bits_are_near_those_in_32():
    ids, scored, real = batch([9, 4, 13], prompts=[1, 1, 2])  # the second has the first one's
    exact = PACKED(ids, scored, 1.0, real).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        rounded = PACKED(ids, scored, 1.0, real).logprobs
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0.1)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=8),
    st.booleans(),
)
def test_scores_and_gradients_are_those_of_padded_sequences(sequences, share_prompts):
    lengths, prompts = (list(column) for column in zip(*sequences, strict=True))
    if share_prompts:
        assert_same(PADDED, PACKED, lengths, prompts)
    else:
        assert_same(PADDED, PACKED, [1 + length for length in lengths])


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES),
        LlamaConfig(**SIZES),
        Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2),
        MistralConfig(**SIZES, sliding_window=None),
    ],
)
def test_other_architectures(config):
    torch.manual_seed(0)
    padded = AutoModelForCausalLM.from_config(config)
    packed = AutoModelForCausalLM.from_config(config)
    packed.load_state_dict(padded.state_dict())
    assert_same(Policy(padded), Policy(packed, packing=True), [9, 3, 14], [0, 1, 0])


def by_kernel(query, key, value, cu_seqlens_q, key_ends, longest_query, longest_key, scale=None):
    """Attention of segments that lie one behind the other, aligned at their last tokens."""
    assert cu_seqlens_q.dtype == key_ends.dtype == torch.int32
    heads = query.shape[1] // key.shape[1]
    outputs = []
    for segment in range(len(cu_seqlens_q) - 1):
        own = query[cu_seqlens_q[segment] : cu_seqlens_q[segment + 1]]
        here = slice(key_ends[segment], key_ends[segment + 1])
        keys, values = (x[here].repeat_interleave(heads, dim=1) for x in (key, value))
        assert len(own) <= longest_query and len(own) <= len(keys) <= longest_key
        scores = torch.einsum("qhd,khd->hqk", own, keys) * scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(keys) - len(own) + 1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("package", ["torch", "flash_attn", "flash_attn_interface"])
def test_one_kernel_for_all_segments(monkeypatch, package):
    """What a GPU's kernel is given: a stand-in of its signature does the work on the CPU."""

    def own(*inputs, scale, window_size, enable_gqa):
        assert window_size == (-1, 0) and enable_gqa
        return by_kernel(*inputs, scale=scale)

    def of_flash(*inputs, softmax_scale, causal):
        assert causal
        return by_kernel(*inputs, scale=softmax_scale)

    packed = small(packing=True).policy
    monkeypatch.setattr(packing, "can_use_flash", lambda *_: True)
    if package == "torch":
        monkeypatch.setattr(packing, "varlen_attn", own)
    else:
        stand_in = SimpleNamespace(flash_attn_varlen_func=of_flash)
        monkeypatch.setitem(sys.modules, package, stand_in)
        names = {package: name for name, package in packing.PACKAGES.items()}
        packed.model.set_attn_implementation(names[package])
    assert_same(PADDED, packed, [9, 3, 14, 5, 0], [0, 1, 0, 2, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_of_a_gpu_does_the_same():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 40, 32) for heads in (4, 2, 2))
    ids, scored, real = batch([9, 3, 14], [0, 1, 0])
    segments = packing.layout(ids, scored, real).segments
    states = [each[:, :, : sum(segments.lengths_q)] for each in (query, key, value)]
    plain, _ = packing.packed_attention(torch.nn.Module(), *states, None, segments)
    there = packing.layout(ids.cuda(), scored.cuda(), real.cuda()).segments
    half = [each.cuda().bfloat16() for each in states]
    found, _ = packing.packed_attention(torch.nn.Module(), *half, None, there)
    torch.testing.assert_close(found.float().cpu(), plain, atol=2e-2, rtol=2e-2)


def test_layers_are_computed_again_for_the_backward_pass():
    policy = small(packing=True, activation_checkpointing=True).policy
    assert_same(PADDED, policy, [5, 12, 7], [0, 1, 1])


@pytest.mark.parametrize(
    ("sequences", "computed"),
    [
        (([30, 2, 3],), 35),
        (([30, 2, 3], [0, 1, 0]), 3 + 30 + 3 + 4 + 2),  # the first prompt once, without padding
    ],
)
def test_neither_padding_nor_a_prompt_is_computed_again(sequences, computed):
    seen = []
    layer = PACKED.model.base_model.layers[0].mlp
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    ids, scored, real = batch(*sequences)
    PACKED(ids, scored, 1.0, real)
    hook.remove()
    assert seen == [(1, computed)]


def test_a_packed_policy_samples_from_a_cache_as_any_other():
    ids, _, _ = batch([9, 9])
    tokens = []
    for policy in (PADDED, PACKED):
        sampled = policy.model.generate(ids, max_new_tokens=8, do_sample=False)
        tokens.append(sampled[:, ids.shape[1] :].tolist())
    assert tokens[0] == tokens[1]


def test_a_packed_policy_is_saved_as_any_other(tmp_path):
    tokenizer = small().tokenizer
    save_pretrained(LoadedPolicy(PACKED, tokenizer), tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert load_pretrained(str(tmp_path)).policy.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma3TextConfig(**SIZES), "full attention in every layer"),
        (MistralConfig(**SIZES, sliding_window=8), "full attention in every layer"),
        (LlamaConfig(**SIZES, attn_implementation="eager"), "flash_attention_3, not eager"),
    ],
)
def test_models_that_cannot_be_packed_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Policy(AutoModelForCausalLM.from_config(config), packing=True)
