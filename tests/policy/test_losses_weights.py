import pytest
import torch

from matchtir.policy.losses import spread_turns, token_weights, weight_total

# A prompt of two tokens, a turn of two, an observation, a turn of one; then a longer sequence.
TURNS = torch.tensor([[-1, -1, 0, 0, -1, 1, -1, -1], [-1, 0, -1, 1, 1, 1, 1, -1]])
SAMPLED = TURNS >= 0


def weights(aggregation, **options):
    return token_weights(SAMPLED, TURNS, aggregation, **options)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (
            "token_mean",
            [[0, 0, 1 / 8, 1 / 8, 0, 1 / 8, 0, 0], [0, 1 / 8, 0, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 0]],
        ),
        (
            "seq_mean_token_mean",
            [
                [0, 0, 1 / 6, 1 / 6, 0, 1 / 6, 0, 0],
                [0, 1 / 10, 0, 1 / 10, 1 / 10, 1 / 10, 1 / 10, 0],
            ],
        ),
        (
            "turn_mean",
            [
                [0, 0, 1 / 8, 1 / 8, 0, 1 / 4, 0, 0],
                [0, 1 / 4, 0, 1 / 16, 1 / 16, 1 / 16, 1 / 16, 0],
            ],
        ),
    ],
)
def test_weights_token_by_token(aggregation, expected):
    assert weights(aggregation).tolist() == [pytest.approx(row) for row in expected]
    assert weights(aggregation).sum() == pytest.approx(1)


def test_dr_grpo_divides_by_a_constant():
    assert weights("dr_grpo", length=10)[SAMPLED].tolist() == pytest.approx([1 / 20] * 8)
    assert weights("dr_grpo", length=10)[~SAMPLED].sum() == 0
    with pytest.raises(ValueError, match="dr_grpo needs a positive length, not None"):
        weights("dr_grpo")


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "turn_mean"])
def test_parts_with_the_total_of_the_whole_are_parts_of_the_whole(aggregation):
    total = weight_total(SAMPLED, aggregation)
    parts = [
        token_weights(SAMPLED[i : i + 1], TURNS[i : i + 1], aggregation, total=total)
        for i in range(2)
    ]
    assert torch.equal(torch.cat(parts), weights(aggregation))


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "turn_mean"])
def test_sequences_without_sampled_tokens_do_not_count(aggregation):
    empty = torch.full((3, 8), -1)
    turns = torch.cat([TURNS, empty])
    padded = token_weights(turns >= 0, turns, aggregation)
    assert torch.equal(padded[:2], weights(aggregation))
    assert padded[2:].sum() == 0
    assert token_weights(empty >= 0, empty, aggregation).sum() == 0


def test_unknown_aggregations_are_named():
    with pytest.raises(ValueError, match="aggregation='mean'.*token_mean, seq_mean_token_mean"):
        weights("mean")


def test_every_token_gets_the_value_of_its_turn():
    values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])
    assert spread_turns(values, TURNS).tolist() == [
        [0, 0, 1, 1, 0, 2, 0, 0],
        [0, 3, 0, 4, 4, 4, 4, 0],
    ]


def test_a_token_of_a_turn_without_value_is_an_error():
    with pytest.raises(IndexError, match="turn 1 of 1"):
        spread_turns(torch.ones(2, 1), TURNS)


def test_no_turns_at_all():
    nothing = torch.full((2, 3), -1)
    assert spread_turns(torch.zeros(2, 0), nothing).tolist() == [[0.0] * 3] * 2
