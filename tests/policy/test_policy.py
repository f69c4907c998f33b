"""Token scores equal those of a plain computation over all logits."""

import pytest
import torch
from torch import Tensor

from matchtir.policy.policy import Policy, TokenScores
from tests.policy.tiny_policy import small

LENGTHS = (9, 5, 7)
PAD = 3


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Ids [B, L] with right padding, and some tokens to be scored (never padding)."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(10, 800, shape, generator=generator)
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    scored = real & (torch.rand(shape, generator=generator) < 0.7)
    scored[:, 0] = False
    return ids.masked_fill(~real, PAD), scored


def plain(policy: Policy, ids: Tensor, scored: Tensor, temperature: float = 1.0) -> TokenScores:
    """Scores of one unpadded row after the other, from the model's own logits."""
    logprobs, entropy = torch.zeros(ids.shape), torch.zeros(ids.shape)
    for row in range(len(ids)):
        logits = policy.model(input_ids=ids[row : row + 1]).logits[0].double() / temperature
        log_distribution = logits.log_softmax(dim=-1)
        for place in scored[row].nonzero().flatten().tolist():
            before = log_distribution[place - 1]
            logprobs[row, place] = before[ids[row, place]]
            entropy[row, place] = torch.distributions.Categorical(logits=before).entropy()
    return TokenScores(logprobs, entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_scores_equal_a_plain_computation(temperature: float) -> None:
    policy = small().policy
    ids, scored = batch()
    with torch.no_grad():
        found = policy(ids, scored, temperature)
        expected = plain(policy, ids, scored, temperature)
    assert expected.logprobs[scored].std() > 0.5  # far from uniform: a wrong shift would show
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("head_float32", [True, False])
def test_the_output_layer_computes_in_32_bits_where_it_should(head_float32: bool) -> None:
    model = small().policy.model.bfloat16()
    policy = Policy(model, head_float32=head_float32)
    states = torch.randn(8, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy.model.get_output_embeddings()(states)
    exact = states.double() @ model.get_input_embeddings().weight.double().T  # tied to it still
    error = (found - exact).abs().max() / exact.abs().max()
    assert (error < 1e-6) == head_float32
    assert policy.model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_first_token_has_no_score() -> None:
    ids, _ = batch()
    first = small().policy(ids, torch.ones_like(ids, dtype=torch.bool)).logprobs[:, 0]
    assert (first == 0).all()  # nothing stands before it


@pytest.mark.parametrize("shape", [(2, 6), (1, 1)])
def test_nothing_to_score(shape: tuple[int, int]) -> None:
    scores = small().policy(torch.full(shape, 20), torch.zeros(shape, dtype=torch.bool))
    assert scores.logprobs.shape == scores.entropy.shape == shape
    assert not scores.logprobs.any()
    scores.logprobs.sum().backward()  # a micro-batch without a sampled token is no special case


def gradients(policy: Policy, ids: Tensor, scored: Tensor) -> list[Tensor]:
    scores = policy(ids, scored)
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    (weights * scores.logprobs + 0.1 * scores.entropy).sum().backward()
    return [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("chunk", [1, 4, 10_000])
def test_gradients_equal_those_of_a_plain_computation(chunk: int) -> None:
    policy, reference = small(head_chunk=chunk).policy, small().policy
    ids, scored = batch()
    found = gradients(policy, ids, scored)

    logits = reference.model(input_ids=ids).logits[:, :-1]
    log_distribution = torch.nn.functional.pad(logits.log_softmax(dim=-1), (0, 0, 1, 0))
    logprobs = log_distribution.gather(-1, ids[:, :, None]).squeeze(-1) * scored
    entropy = -(log_distribution.exp() * log_distribution).sum(dim=-1) * scored
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    (weights * logprobs + 0.1 * entropy).sum().backward()
    expected = [each.grad for each in reference.parameters() if each.grad is not None]
    assert len(found) == len(expected) == len(list(policy.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_dropout_layers_still_compute_again_what_they_did_not_keep() -> None:
    policy = small(activation_checkpointing=True).policy
    policy.train_without_dropout()
    calls: list[bool] = []
    layer = policy.model.base_model.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    policy(*batch()).logprobs.sum().backward()
    assert calls == [False, False]  # forward, and again in the backward pass


def test_a_chunk_must_hold_a_token() -> None:
    with pytest.raises(ValueError, match="head_chunk"):
        Policy(small().policy.model, head_chunk=0)
