import torch
from safetensors.torch import load_file

from matchtir.policy.weights import (
    WEIGHTS_FILE,
    full_weights,
    load_full_weights,
    save_full_weights,
)
from tests.policy.tiny_policy import small


def test_tied_weights_come_under_each_of_their_names():
    policy = small().policy
    weights = dict(full_weights(policy))
    assert set(weights) == set(policy.model.state_dict())
    assert weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    assert not any(value.requires_grad for value in weights.values())


def test_saved_weights_are_whole(tmp_path):
    policy = small().policy
    saved = load_file(save_full_weights(policy, tmp_path / "new") / WEIGHTS_FILE)
    assert "lm_head.weight" in saved
    for name, value in full_weights(policy):
        assert saved[name].equal(value)


def test_a_copy_follows_its_source_and_stays_apart():
    source, copy = small(seed=1).policy, small(seed=2).policy
    load_full_weights(copy, source)
    expected = {name: value.clone() for name, value in full_weights(source)}
    with torch.no_grad():
        next(source.parameters()).add_(1.0)
    for name, value in full_weights(copy):
        assert value.equal(expected[name]), name
