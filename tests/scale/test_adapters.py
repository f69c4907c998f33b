"""Adapters: nothing changes at first, what leaves the process is merged, the reference is free."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from matchtir.policy.loading import LoadedPolicy, load_pretrained, save_pretrained
from matchtir.policy.policy import Policy
from matchtir.policy.weights import full_weights, load_full_weights, without_adapters
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.optim import AdamW, MuonAdamW
from tests.policy.tiny_policy import small
from tests.training.training_parts import fit, logged, policy_gradient

LORA = {"r": 4, "alpha": 8}
IDS = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(1))


def scores(policy: Policy) -> torch.Tensor:
    return policy(IDS, torch.ones_like(IDS, dtype=torch.bool)).logprobs.detach()


def trained() -> LoadedPolicy:
    """A policy whose adapters are not zero."""
    loaded = small(lora=LORA)
    torch.manual_seed(0)
    for parameter in loaded.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded


def test_adapters_begin_at_zero_and_alone_are_trained() -> None:
    plain, adapted = small(), small(lora=LORA)
    assert torch.equal(scores(plain.policy), scores(adapted.policy))
    names = [name for name, p in adapted.policy.named_parameters() if p.requires_grad]
    assert names and all(".lora_" in name for name in names)


def test_merged_weights_have_the_names_of_the_plain_model_and_compute_the_same() -> None:
    loaded, plain = trained(), small()
    assert not torch.allclose(scores(loaded.policy), scores(plain.policy), atol=0.1)
    weights = dict(full_weights(loaded.policy))
    assert weights.keys() == plain.policy.model.state_dict().keys()
    load_full_weights(plain.policy, loaded.policy)
    assert torch.allclose(scores(plain.policy), scores(loaded.policy), atol=1e-5)


def test_weights_are_taken_over_by_a_policy_with_adapters() -> None:
    loaded = trained()
    copy = deepcopy(loaded.policy)
    load_full_weights(copy, loaded.policy)
    assert torch.allclose(scores(copy), scores(loaded.policy), atol=1e-5)


def test_a_saved_policy_is_merged(tmp_path: Path) -> None:
    loaded = trained()
    save_pretrained(loaded, tmp_path)
    assert torch.allclose(
        scores(load_pretrained(str(tmp_path)).policy), scores(loaded.policy), atol=1e-5
    )


def test_the_policy_without_adapters_is_the_one_at_the_start() -> None:
    loaded = trained()
    with without_adapters(loaded.policy):
        assert torch.equal(scores(loaded.policy), scores(small().policy))
    assert not torch.equal(scores(loaded.policy), scores(small().policy))


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("optimizer", [AdamW(1e-2), MuonAdamW(1e-2, 1e-2)])
def test_training_moves_the_adapters_away_from_the_reference(
    tmp_path: Path, own_weights: bool, optimizer
) -> None:
    loaded = small(layers=1, lora=LORA)
    frozen = {n: p.clone() for n, p in loaded.policy.named_parameters() if not p.requires_grad}
    module = policy_gradient(
        policy=loaded.policy, optimizer=optimizer, loss={"kl_coefficient": 0.1}, scripted=True
    )
    module.engine = TransformersEngine(module.renderer.stop_token_ids, own_weights=own_weights)
    module.episodes.speaker.engine = module.engine
    fit(module, tmp_path, iterations=3)
    kl = logged(tmp_path, "train/kl")
    assert kl[0] == 0 and kl[2] > 0
    assert max(logged(tmp_path, "train/mismatch_kl")) < 1e-6  # the engine has the adapters
    after = dict(loaded.policy.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="r"):
        small(lora={"r": 0})
