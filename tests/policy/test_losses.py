import math
from dataclasses import fields, replace

import pytest
import torch

from matchtir.policy.covariance import CovarianceControl
from matchtir.policy.losses import (
    LossInputs,
    MismatchCorrection,
    PolicyLoss,
    kl_estimate,
    log_ratios,
    token_weights,
    turns_to_tokens,
    weight_total,
)

TURNS = torch.tensor(
    [[-1, -1, 0, 0, -1, 1, -1, -1], [-1, 0, -1, 1, 1, 1, 1, -1], [-1, -1, -1, 0, 0, 0, -1, -1]]
)
SAMPLED = TURNS >= 0
ADVANTAGES = torch.tensor([[1.0, -0.5], [2.0, -1.5], [-0.7, 0.0]], dtype=torch.float64)


def draw(scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(factor=1.0):
        return factor * torch.randn(TURNS.shape, generator=generator, dtype=torch.float64)

    old = noise() - 2
    return LossInputs(
        logprobs=old + noise(scale),
        old_logprobs=old,
        reference_logprobs=old + noise(scale),
        advantages=turns_to_tokens(ADVANTAGES, TURNS),
        entropy=noise().abs(),
        sampled=SAMPLED,
        turn_index=TURNS,
        weights=torch.zeros_like(old),
        sampler_logprobs=old + noise(scale),
        chosen=SAMPLED & (torch.arange(8) % 2 == 1),
    )  # fmt: skip


def weighted(loss, inputs):
    rule = loss.aggregation, loss.length
    weights = token_weights(inputs.sampled, inputs.turn_index, *rule)
    return replace(inputs, weights=weights.double())


def value(loss, inputs):
    return loss(weighted(loss, inputs)).loss


LOSSES = {
    "clip": PolicyLoss(),
    "dual_clip": PolicyLoss(dual_clip=1.3),
    "sequence": PolicyLoss(ratio="sequence", clip_low=0.1, clip_high=0.1),
    "turn": PolicyLoss(ratio="turn", aggregation="turn_mean"),
    "dr_grpo": PolicyLoss(aggregation="dr_grpo", length=8),
    "k1": PolicyLoss(kl_estimator="k1", kl_coefficient=0.3, entropy_coefficient=0.2),
    "corrected": PolicyLoss(correction=MismatchCorrection(1.1, (0.9, 1.2))),
    "token_mask": PolicyLoss(correction=MismatchCorrection(None, token_range=(0.8, 1.3))),
    "clip_cov": PolicyLoss(covariance=CovarianceControl(bounds=(1.0, 5.0))),
    "kl_cov": PolicyLoss(
        clip_low=1.0, clip_high=math.inf, covariance=CovarianceControl(0.2, None, 1.0)
    ),
    "kl_in_reward": PolicyLoss(kl_in="reward"),
    "cispo": PolicyLoss(surrogate="cispo", clip_low=1.0, clip_high=0.1),
}
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cispo"])
def test_gradients_are_those_of_finite_differences(name):
    loss = LOSSES[name]
    inputs = weighted(loss, draw())

    def of(logprobs, entropy):
        return loss(replace(inputs, logprobs=logprobs, entropy=entropy)).loss

    leaves = inputs.logprobs.requires_grad_(), inputs.entropy.requires_grad_()
    assert torch.autograd.gradcheck(of, leaves, eps=1e-7, atol=1e-6)


@each
def test_what_was_not_sampled_may_be_anything(loss):
    inputs = draw()
    for junk in (float("nan"), float("inf"), -1e30):
        names = "logprobs", "old_logprobs", "reference_logprobs", "sampler_logprobs", "entropy"
        spoiled = {name: torch.where(SAMPLED, getattr(inputs, name), junk) for name in names}
        logprobs = spoiled["logprobs"].requires_grad_()
        result = value(loss, replace(inputs, **spoiled))
        assert torch.equal(result, value(loss, inputs))
        result.backward()
        assert torch.isfinite(logprobs.grad).all()
        assert (logprobs.grad[~SAMPLED] == 0).all()


@each
def test_micro_batches_add_up(loss):
    inputs = weighted(loss, draw())
    whole = loss(inputs)
    parts = [
        loss(LossInputs(**{f.name: getattr(inputs, f.name)[rows] for f in fields(inputs)}))
        for rows in ([0], [2, 1])
    ]
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss)
    for name, metric in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(metric), name


@each
def test_absurd_log_probabilities_stay_finite(loss):
    inputs = draw()
    for shift in (500.0, -500.0):
        logprobs = (inputs.old_logprobs + shift).requires_grad_()
        result = value(loss, replace(inputs, logprobs=logprobs))
        result.backward()
        assert torch.isfinite(result) and torch.isfinite(logprobs.grad).all()


PLAIN = {"kl_coefficient": 0.0, "entropy_coefficient": 0.0}


def objective(loss, ratios=None, advantage=1.0, sampler=None):
    """The surrogate of one sequence with these ratios to the old policy, or to the sampler."""
    one = torch.ones(1, len(ratios or sampler), dtype=torch.float64)
    logprobs = one * 0 if ratios is None else torch.tensor([ratios]).log()
    logprobs.requires_grad_()
    claimed = None if sampler is None else -torch.tensor([sampler]).log()
    given = one * 0, one * advantage, None, one > 0, (one * 0).long(), one, None, claimed
    output = loss(LossInputs(logprobs, *given))
    return output, logprobs


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "expected", "clipped"),
    [
        (1.1, 2.0, {}, 2.2, 0),
        (1.5, 2.0, {}, 2.4, 1),
        (0.5, 2.0, {}, 1.0, 0),  # a bad step away from a good token is not held back
        (0.5, -2.0, {}, -1.6, 1),
        (1.5, -2.0, {}, -3.0, 0),
        (1.25, 2.0, {"clip_high": 0.28}, 2.5, 0),
        (5.0, -2.0, {"dual_clip": 3.0}, -6.0, 1),
        (2.0, -2.0, {"dual_clip": 3.0}, -4.0, 0),
        (5.0, 2.0, {"dual_clip": 3.0}, 2.4, 1),
    ],
)
def test_clipping_by_hand(ratio, advantage, options, expected, clipped):
    output, _ = objective(PolicyLoss(**PLAIN, **options), [ratio], advantage)
    assert -output.loss.item() == pytest.approx(expected)
    assert output.metrics["clip_fraction"] == clipped


@pytest.mark.parametrize(
    ("surrogate", "ratio", "expected"),
    # Of a token with advantage 2 and weights in [0, 2]: 2 w, where the clip holds nothing back.
    [("cispo", 5.0, 4.0), ("clip", 5.0, 0.0), ("cispo", 0.25, 0.5), ("clip", 0.25, 0.5)],
)
def test_cispo_clips_the_weight_and_keeps_the_gradient(surrogate, ratio, expected):
    loss = PolicyLoss(**PLAIN, surrogate=surrogate, clip_low=1.0, clip_high=1.0)
    output, logprobs = objective(loss, [ratio], 2.0)
    output.loss.backward()
    assert -logprobs.grad.item() == pytest.approx(expected)
    assert output.metrics["clip_fraction"] == (ratio > 2)


@pytest.mark.parametrize(
    ("correction", "sampler", "expected", "tokens", "sequences"),
    [
        (MismatchCorrection(None, token_range=(0.5, 5.0)), [0.4, 0.6, 4.0, 6.0], 0.6 + 4.0, 2, 0),
        # the product of a long sequence, 2.2, leaves the range before its mean does
        (MismatchCorrection(None, (0.5, 2.0), "geometric"), [1.3, 1.3, 1.3], 3.0, 0, 0),
        (MismatchCorrection(None, (0.5, 2.0), "product"), [1.3, 1.3, 1.3], 0.0, 0, 3),
    ],
)
def test_what_is_out_of_range_is_masked(correction, sampler, expected, tokens, sequences):
    output, _ = objective(PolicyLoss(**PLAIN, correction=correction), sampler=sampler)
    assert -output.loss.item() == pytest.approx(expected)
    masked = [output.metrics.get(f"mismatch_{name}", 0) for name in ("tokens_masked", "masked")]
    assert masked == [tokens, sequences]


def test_tokens_are_chosen_by_their_covariance():
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, -6.0, 9.0]])  # mean -3: 2, 1; 0, -3
    advantages = torch.tensor([[3.0, 1.0, 9.0], [1.0, -1.0, 9.0]])  # mean 1: 2, 0; 0, -2
    sampled = logprobs < 9  # covariances 4, 0; 0, 6

    def chosen(seed=0, **options):
        found = CovarianceControl(**options).choose(logprobs, advantages, sampled, seed)
        assert not found[~sampled].any()
        return tuple(found[sampled].tolist())

    assert chosen(share=0.3, coefficient=1.0) == (False, False, False, True)
    assert chosen(share=1.0, bounds=(1.0, 5.0)) == (True, False, False, False)
    drawn = {chosen(seed, share=0.5, bounds=(-1.0, 9.0)) for seed in range(20)}
    assert {sum(each) for each in drawn} == {2} and len(drawn) > 1


def test_tokens_are_chosen_alike_in_whatever_order_they_come():
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(6, 9, generator=generator) for _ in range(2)]
    given.append(torch.rand(6, 9, generator=generator) < 0.8)
    found = CovarianceControl(share=0.2, bounds=(-1.0, 9.0)).choose(*given, seed=3)
    turned = (each.flip(0) for each in given)
    again = CovarianceControl(share=0.2, bounds=(-1.0, 9.0)).choose(*turned, seed=3)
    assert torch.equal(again.flip(0), found)


def test_chosen_tokens_leave_the_surrogate_or_pay():
    inputs = draw()
    left = PolicyLoss(**PLAIN, covariance=CovarianceControl(bounds=(1.0, 5.0)))
    without = inputs.advantages.masked_fill(inputs.chosen, 0.0)
    plain = PolicyLoss(**PLAIN)
    assert value(left, inputs) == pytest.approx(value(plain, replace(inputs, advantages=without)))
    paying = PolicyLoss(**PLAIN, covariance=CovarianceControl(coefficient=3.0))
    ready = weighted(plain, inputs)
    moved = (inputs.logprobs - inputs.old_logprobs).abs() * inputs.chosen
    price = 3 * (ready.weights * moved).sum()
    assert paying(ready).loss == pytest.approx(plain(ready).loss + price)
    assert paying(ready).metrics["covariance_held"] == (ready.weights * inputs.chosen).sum()


def test_a_kl_that_is_in_the_reward_is_not_in_the_loss():
    inputs = replace(draw(), reference_logprobs=None)
    expected = value(PolicyLoss(kl_coefficient=0.0), inputs)
    assert value(PolicyLoss(kl_coefficient=0.5, kl_in="reward"), inputs) == expected


def test_ratios_of_tokens_turns_and_sequences():
    turns = torch.tensor([[-1, 0, 0, -1, 1, -1]])
    difference = torch.tensor([[9.0, 0.1, 0.3, 9.0, 0.8, 9.0]])
    expected = {
        "token": [0, 0.1, 0.3, 0, 0.8, 0],
        "turn": [0, 0.2, 0.2, 0, 0.8, 0],
        "sequence": [0, 0.4, 0.4, 0, 0.4, 0],
    }
    for level, values in expected.items():
        ratios = log_ratios(difference, turns >= 0, turns, level)
        assert ratios.tolist() == [pytest.approx(values)], level


def test_kl_estimators_agree_in_the_mean_and_k3_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    policy, reference = logits.log_softmax(0), (logits + 0.3 * other).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum().item()
    for estimator, tolerance in {"k1": 1e-9, "k2": 0.1, "k3": 1e-9}.items():
        estimates = kl_estimate(policy[None], reference[None], estimator)[0]
        mean = (policy.exp() * estimates).sum()  # over the policy's own tokens
        assert mean.item() == pytest.approx(exact, rel=tolerance), estimator
    assert (kl_estimate(policy[None], reference[None], "k3") >= 0).all()


def test_truncated_importance_weights():
    inputs = draw()
    plain, corrected = PolicyLoss(**PLAIN), PolicyLoss(**PLAIN, correction=MismatchCorrection(1.2))
    difference = torch.where(SAMPLED, inputs.old_logprobs - inputs.sampler_logprobs, 0.0)
    factors = difference.exp().clamp(max=1.2)
    ready = weighted(plain, inputs)
    expected = value(plain, replace(inputs, advantages=inputs.advantages * factors))
    output = corrected(ready)
    assert output.loss == pytest.approx(expected)
    truncated = (ready.weights * (difference.exp() > 1.2)).sum()
    assert output.metrics["mismatch_truncated"] == pytest.approx(truncated)
    kl = (ready.weights * (difference.exp() - 1 - difference)).sum()
    assert output.metrics["mismatch_kl"] == pytest.approx(kl)
    assert plain(ready).metrics["mismatch_kl"] == pytest.approx(kl)  # measured in any case


@pytest.mark.parametrize(
    ("missing", "loss"),
    [
        ("reference_logprobs", PolicyLoss()),
        ("entropy", PolicyLoss()),
        ("sampler_logprobs", PolicyLoss(correction=MismatchCorrection())),
        ("chosen", PolicyLoss(covariance=CovarianceControl(coefficient=1.0))),
    ],
)
def test_missing_inputs_are_named(missing, loss):
    with pytest.raises(ValueError, match=missing):
        value(loss, replace(draw(), **{missing: None}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolicyLoss(ratio="word"), "ratio='word'.*token, turn, sequence"),
        (lambda: PolicyLoss(kl_estimator="k4"), "kl_estimator='k4'.*k1, k2, k3"),
        (lambda: PolicyLoss(aggregation="mean"), "aggregation='mean'.*token_mean, seq_mean_"),
        (lambda: weights("mean"), "aggregation='mean'.*token_mean, seq_mean_token_mean"),
        (lambda: weights("dr_grpo"), "dr_grpo needs a positive length, not None"),
        (lambda: PolicyLoss(clip_low=1.1), "clip_low=1.1"),
        (lambda: PolicyLoss(dual_clip=3.0, surrogate="cispo"), "dual_clip=3.0.*surrogate=clip"),
        (lambda: PolicyLoss(kl_coefficient=0.0, kl_in="reward"), "kl_in=reward"),
        (lambda: PolicyLoss(clip_high=0.0), "clip_high=0.0"),
        (lambda: PolicyLoss(dual_clip=1.0), "dual_clip=1.0"),
        (lambda: PolicyLoss(aggregation="dr_grpo"), "length=None"),
        (lambda: PolicyLoss(length=5), "length=5"),
        (lambda: MismatchCorrection(cap=0.5), "cap=0.5"),
        (lambda: MismatchCorrection(sequence_range=(1.1, 2.0)), "sequence_range"),
        (lambda: MismatchCorrection(token_range=(0.5, 5.0)), "cap=2.0, token_range.*null"),
        (lambda: MismatchCorrection(None, token_range=(0.5, 0.9)), "token_range"),
        (lambda: MismatchCorrection(sequence_ratio="product"), "needs a sequence_range"),
        (lambda: CovarianceControl(), "either bounds"),
        (lambda: CovarianceControl(bounds=(1.0, 5.0), coefficient=1.0), "either bounds"),
        (lambda: CovarianceControl(share=0.0, coefficient=1.0), "share=0.0.*0 < share"),
        (lambda: CovarianceControl(bounds=(5.0, 1.0)), "bounds rise"),
        (lambda: CovarianceControl(coefficient=0.0), "coefficient=0.0"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- weights of tokens, and numbers per turn -------------------------------------------------------


# A prompt of two tokens, a turn of two, an observation, a turn of one; then a longer sequence.
TWO = TURNS[:2]
MASK = TWO >= 0
NORMALISED = ["token_mean", "seq_mean_token_mean", "turn_mean"]


def weights(aggregation, **options):
    return token_weights(MASK, TWO, aggregation, **options)


@pytest.mark.parametrize(
    ("aggregation", "counts"),  # what each token's weight is one over, 0: no weight
    [
        ("token_mean", [[0, 0, 8, 8, 0, 8, 0, 0], [0, 8, 0, 8, 8, 8, 8, 0]]),
        ("seq_mean_token_mean", [[0, 0, 6, 6, 0, 6, 0, 0], [0, 10, 0, 10, 10, 10, 10, 0]]),
        ("turn_mean", [[0, 0, 8, 8, 0, 4, 0, 0], [0, 4, 0, 16, 16, 16, 16, 0]]),
    ],
)
def test_weights_token_by_token(aggregation, counts):
    expected = [pytest.approx([1 / count if count else 0 for count in row]) for row in counts]
    assert weights(aggregation).tolist() == expected
    assert weights(aggregation).sum() == pytest.approx(1)


def test_dr_grpo_divides_by_a_constant():
    assert torch.allclose(weights("dr_grpo", length=10), MASK / 20)


@pytest.mark.parametrize("aggregation", NORMALISED)
def test_weights_are_parts_of_the_whole_and_empty_sequences_do_not_count(aggregation):
    whole, total = weights(aggregation), weight_total(MASK, aggregation)
    parts = [token_weights(MASK[[i]], TWO[[i]], aggregation, total=total) for i in range(2)]
    assert torch.equal(torch.cat(parts), whole)
    empty = torch.full((3, 8), -1)
    turns = torch.cat([TWO, empty])
    padded = token_weights(turns >= 0, turns, aggregation)
    assert torch.equal(padded[:2], whole) and padded[2:].sum() == 0
    assert token_weights(empty >= 0, empty, aggregation).sum() == 0


def test_every_token_gets_the_value_of_its_turn():
    values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])
    assert turns_to_tokens(values, TWO).tolist() == [
        [0, 0, 1, 1, 0, 2, 0, 0],
        [0, 3, 0, 4, 4, 4, 4, 0],
    ]
    nothing = torch.full((2, 3), -1)
    assert turns_to_tokens(torch.zeros(2, 0), nothing).tolist() == [[0.0] * 3] * 2
    with pytest.raises(IndexError, match="turn 1 of 1"):
        turns_to_tokens(torch.ones(2, 1), TWO)
