"""Token scores equal those of a plain computation over all logits."""

import pytest
import torch

from matchtir.policy.policy import Policy, TokenScores
from tests.policy.tiny_policy import batch, small


@pytest.mark.parametrize("head_float32", [True, False])
def test_the_output_layer_computes_in_32_bits_where_it_should(head_float32):
    model = small().policy.model.bfloat16()
    policy = Policy(model, head_float32=head_float32)
    states = torch.randn(8, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy.model.get_output_embeddings()(states)
    exact = states.double() @ model.get_input_embeddings().weight.double().T  # tied to it still
    error = (found - exact).abs().max() / exact.abs().max()
    assert (error < 1e-6) == head_float32
    assert policy.model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("shape", [(2, 6), (1, 1)])
def test_nothing_to_score(shape):
    scores = small().policy(torch.full(shape, 20), torch.zeros(shape, dtype=torch.bool))
    assert scores.logprobs.shape == scores.entropy.shape == shape
    assert not scores.logprobs.any()
    scores.logprobs.sum().backward()  # a micro-batch without a sampled token is no special case


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (4, 0.5), (10_000, 2.0)])
def test_scores_and_gradients_equal_those_of_a_plain_computation(chunk, temperature):
    policy, reference = small(head_chunk=chunk).policy, small().policy
    ids, scored, _ = batch([9, 5, 7])
    scored[:, 0] = True  # gets none: nothing stands before it
    found = policy(ids, scored, temperature)
    logits = reference.model(input_ids=ids).logits[:, :-1] / temperature
    log_distribution = torch.nn.functional.pad(logits.log_softmax(dim=-1), (0, 0, 1, 0))
    logprobs = log_distribution.gather(-1, ids[:, :, None]).squeeze(-1) * scored
    entropy = -(log_distribution.exp() * log_distribution).sum(dim=-1) * scored
    assert logprobs[scored].std() > 0.5  # far from uniform: a wrong shift would show
    torch.testing.assert_close(found, TokenScores(logprobs, entropy), atol=2e-5, rtol=1e-5)

    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    for scores in (found, TokenScores(logprobs, entropy)):
        (weights * scores.logprobs + 0.1 * scores.entropy).sum().backward()
    for one, other in zip(policy.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_without_dropout_layers_still_compute_again_what_they_did_not_keep():
    policy = small(activation_checkpointing=True).policy
    policy.train_without_dropout()
    calls = []
    layer = policy.model.base_model.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    policy(*batch([9, 5, 7])[:2]).logprobs.sum().backward()
    assert calls == [False, False]  # forward, and again in the backward pass


def test_a_chunk_must_hold_a_token():
    with pytest.raises(ValueError, match="head_chunk"):
        Policy(small().policy.model, head_chunk=0)
