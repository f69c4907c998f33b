"""Adapters: nothing changes at first, what leaves the process is merged, the reference is free."""

from copy import deepcopy

import pytest
import torch

from matchtir.policy.loading import load_pretrained, save_pretrained, wrapped
from matchtir.policy.weights import full_weights, load_full_weights, without_adapters
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.optim import AdamW, MuonAdamW
from tests.policy.tiny_policy import small
from tests.training.training_parts import fit, logged, policy_gradient

LORA = {"r": 4, "alpha": 8}
IDS = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(1))


def scores(policy):
    return policy(IDS, torch.ones_like(IDS, dtype=torch.bool)).logprobs.detach()


def trained(setting=None, dtype=torch.float32):
    """A policy whose adapters are not zero, beside weights of this precision."""
    plain = small()
    for weight in plain.policy.parameters():
        weight.data = weight.data.to(dtype)
    lora = {**LORA, **(setting or {})}
    loaded = wrapped(plain.policy.model, plain.tokenizer, False, lora)
    torch.manual_seed(0)
    for parameter in loaded.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded


def test_adapters_begin_at_zero_alone_are_trained_and_can_be_left_out():
    plain, adapted, loaded = small().policy, small(lora=LORA).policy, trained().policy
    assert torch.equal(scores(plain), scores(adapted))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names and all(".lora_" in name for name in names)
    with without_adapters(loaded):
        assert torch.equal(scores(plain), scores(loaded))
    assert not torch.allclose(scores(plain), scores(loaded), atol=0.1)


def test_merged_weights_have_the_names_of_the_plain_model_and_compute_the_same():
    loaded, plain = trained(), small()
    weights = dict(full_weights(loaded.policy))
    assert weights.keys() == plain.policy.model.state_dict().keys()
    for copy in (plain.policy, deepcopy(loaded.policy)):  # one has adapters of its own
        load_full_weights(copy, loaded.policy)
        assert torch.allclose(scores(copy), scores(loaded.policy), atol=1e-5)


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("optimizer", [AdamW(1e-2), MuonAdamW(1e-2, 1e-2)])
def test_training_moves_the_adapters_away_from_the_reference(tmp_path, own_weights, optimizer):
    loaded = small(layers=1, lora=LORA)
    frozen = {n: p.clone() for n, p in loaded.policy.named_parameters() if not p.requires_grad}
    engine = TransformersEngine(Renderer(loaded.tokenizer).stop_token_ids, own_weights=own_weights)
    given = {"policy": loaded.policy, "optimizer": optimizer, "engine": engine}
    fit(policy_gradient(**given, loss={"kl_coefficient": 0.1}), tmp_path, iterations=3)
    kl = logged(tmp_path, "train/kl")
    assert kl[0] == 0 and kl[2] > 0
    assert max(logged(tmp_path, "train/mismatch_kl")) < 1e-6  # the engine has the adapters
    after = dict(loaded.policy.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"r": 0}, "positive"),
        ({"use_dora": True, "r": 2}, "use_dora cannot be merged"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens shares its weight"),
        ({"target_modules": ["lm_head"]}, "lm_head shares its weight"),
    ],
)
def test_what_cannot_be_merged_is_refused_at_the_start(setting, problem):
    with pytest.raises(ValueError, match=problem):
        small(lora={**LORA, **setting})


@pytest.mark.parametrize(
    "setting", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "lora_alpha": 3}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_what_was_trained(tmp_path, setting, dtype):
    loaded = trained(setting, dtype)
    save_pretrained(loaded, tmp_path)
    again = load_pretrained(str(tmp_path)).policy
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    exact = loaded.policy.float()
    assert torch.allclose(scores(again), scores(exact), atol=1e-4)


def test_what_a_layer_does_beside_its_merged_weight_is_found_before_it_is_lost(tmp_path):
    loaded = trained()
    layer = loaded.policy.model.base_model.layers[1].mlp.up_proj
    layer.register_forward_hook(lambda _, inputs, output: 1.1 * output)
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.up_proj.*not what was trained"):
        save_pretrained(loaded, tmp_path)
