"""Where policies come from, a seed or a folder, and their weights as others read them."""

import pytest
import torch
from safetensors.torch import load_file

from matchtir.policy.loading import load_pretrained, save_pretrained
from matchtir.policy.tiny.model import load_tiny
from matchtir.policy.weights import WEIGHTS_FILE, full_weights, load_full_weights, save_full_weights
from tests.policy.tiny_policy import small


def same_weights(one, other):
    first, second = one.policy.state_dict(), other.policy.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_weights_depend_on_the_arguments_alone():
    torch.manual_seed(1)
    first = small()
    assert torch.rand(1).item() == pytest.approx(0.7576, abs=1e-4)  # as if nothing was drawn
    assert same_weights(first, small())
    assert not same_weights(first, small(seed=1))


def test_the_default_is_of_the_promised_size():
    loaded = load_tiny()
    parameters = sum(parameter.numel() for parameter in loaded.policy.parameters())
    assert 500_000 <= parameters <= 5_000_000
    model = loaded.policy.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(loaded.tokenizer)
    assert model.config.eos_token_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_saved_policy_loads_again_in_the_type_that_is_chosen(tmp_path):
    saved = small(seed=5)
    save_pretrained(saved, str(tmp_path))
    loaded = load_pretrained(str(tmp_path), head_chunk=7)
    assert same_weights(saved, loaded)
    assert loaded.policy.head_chunk == 7
    assert type(loaded.policy.model).__name__ == "Qwen3ForCausalLM"
    ids = torch.tensor([loaded.tokenizer.encode("What is the age of amber anchor")])
    assert ids.tolist() == [saved.tokenizer.encode("What is the age of amber anchor")]
    rounded = load_pretrained(str(tmp_path), dtype="bfloat16").policy
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    scored = torch.ones_like(ids, dtype=torch.bool)
    policies = saved.policy, loaded.policy, rounded
    one, other, coarse = (policy(ids, scored).logprobs for policy in policies)
    assert torch.equal(one, other)
    assert coarse.dtype == torch.float32  # sums of logits are always taken in float32


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_pretrained(str(tmp_path / "nowhere"))


def test_saved_weights_are_whole_and_tied_ones_come_under_each_of_their_names(tmp_path):
    policy = small().policy
    weights = dict(full_weights(policy))
    assert set(weights) == set(policy.model.state_dict())
    assert weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    assert not any(value.requires_grad for value in weights.values())
    saved = load_file(save_full_weights(policy, tmp_path / "new") / WEIGHTS_FILE)
    assert saved.keys() == weights.keys()
    assert all(saved[name].equal(value) for name, value in weights.items())


def test_a_copy_follows_its_source_and_stays_apart():
    source, copy = small(seed=1).policy, small(seed=2).policy
    load_full_weights(copy, source)
    expected = {name: value.clone() for name, value in full_weights(source)}
    with torch.no_grad():
        next(source.parameters()).add_(1.0)
    for name, value in full_weights(copy):
        assert value.equal(expected[name]), name
