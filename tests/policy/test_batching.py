"""Turns become tokens: literal ids, masks, turn numbers and log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.policy.batching import collate, micro_batch_rows, values_to_tokens
from matchtir.policy.packing import Prefixes, shared_prefixes
from matchtir.types import Span, SpanKind, StopReason, Task, ToolCall, Trajectory, Turn

PAD = 99
TASK = Task("t", "?", (), (), "")

FIRST = Turn((10, 11), (-0.5, -0.25), "call", observation_ids=(20, 21, 22))
SECOND, ONLY = Turn((12,), (-1.0,), "answer"), Turn((13, 14, 15), (-2.0, 0.0, -3.0), "answer")
TWO_TURNS = Trajectory(TASK, (1, 2, 3), (FIRST, SECOND), StopReason.ANSWER)
ONE_TURN = Trajectory(TASK, (1, 2), (ONLY,), StopReason.ANSWER)
NO_TURN = Trajectory(TASK, (1, 2, 3, 4), (), StopReason.PROMPT_TOO_LONG)


def test_trajectories_as_tensors():
    batch = collate([TWO_TURNS, ONE_TURN], PAD)
    assert batch.input_ids.tolist() == [
        [1, 2, 3, 10, 11, 20, 21, 22, 12],
        [1, 2, 13, 14, 15, PAD, PAD, PAD, PAD],
    ]
    assert batch.attention_mask.equal(batch.input_ids != PAD)
    assert batch.turn_index.tolist() == [
        [-1, -1, -1, 0, 0, -1, -1, -1, 1],
        [-1, -1, 0, 0, 0, -1, -1, -1, -1],
    ]
    assert batch.sampled.equal(batch.turn_index >= 0)
    assert batch.sampler_logprobs.tolist() == [
        [0, 0, 0, -0.5, -0.25, 0, 0, 0, -1.0],
        [0, 0, -2.0, 0, -3.0, 0, 0, 0, 0],
    ]
    assert batch.lengths.tolist() == [9, 5]


def test_tokens_get_the_number_of_their_turn_or_call():
    reasoning, call = SpanKind.REASONING, SpanKind.CALL
    spans = (Span(reasoning, 0, 1), Span(call, 1, 3), Span(call, 3, 4), Span(reasoning, 4, 5))
    two = Turn((0,) * 5, (0.0,) * 5, "", (ToolCall("f", {}),) * 2, (), (7, 7), spans=spans)
    one = Turn((0,) * 2, (0.0,) * 2, "", (ToolCall("f", {}),), spans=(Span(call, 0, 2),))
    both = Trajectory(TASK, (1,), (two, one), StopReason.MAX_TURNS)
    turns, calls = np.array([[1.0, 2], [3, 0]]), [np.array([4.0, 5, 6]), np.zeros(0)]
    assert values_to_tokens([both, ONE_TURN], turns, calls, 10).tolist() == [
        [0, 1, 4, 4, 5, 1, 0, 0, 6, 6],
        [0, 0, 3, 3, 3, 0, 0, 0, 0, 0],
    ]
    assert values_to_tokens([both], turns[:1], None, 10).tolist() == [[0, *[1] * 5, 0, 0, 2, 2]]
    unknown = Trajectory(TASK, (1,), (replace(one, spans=()),), StopReason.MAX_TURNS)
    with pytest.raises(ValueError, match="t: 0 spans of calls for 1 calls"):
        values_to_tokens([unknown], turns[:1], [np.zeros(1)], 2)


def test_a_trajectory_without_turns_is_its_prompt():
    batch = collate([NO_TURN], PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.attention_mask.all() and not batch.sampled.any()
    assert collate([], PAD).input_ids.shape == (0, 0)


def test_rows_are_cut_to_the_longest_of_them():
    batch = collate([TWO_TURNS, ONE_TURN, ONE_TURN], PAD).rows(torch.tensor([2, 1]))
    assert batch.input_ids.tolist() == [[1, 2, 13, 14, 15]] * 2
    assert batch.turn_index.tolist() == [[-1, -1, 0, 0, 0]] * 2
    assert batch.sampler_logprobs.shape == batch.sampled.shape == (2, 5)
    assert batch.lengths.tolist() == [5, 5]


def test_log_probabilities_that_do_not_fit_the_tokens_are_refused():
    broken = Trajectory(TASK, (1,), (Turn((2, 3), (-1.0,), "x"),), StopReason.ANSWER)
    with pytest.raises((ValueError, RuntimeError)):
        collate([broken], PAD)


PROMPTS = torch.tensor([0, 7, 12])  # lengths; the first stands for having none


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), max_size=30),
    st.integers(1, 100),
    st.booleans(),
)
def test_micro_batches_cover_every_row_once_within_the_limit(rows, max_tokens, packing):
    own, number = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    lengths = own + PROMPTS[number]
    packed = Prefixes(number, PROMPTS[number]) if packing else None
    groups = [g.tolist() for g in micro_batch_rows(lengths, max_tokens, packed)]
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        if packing:
            prompts = {int(number[row]) for row in group}
            tokens = int(own[group].sum()) + sum(int(PROMPTS[prompt]) for prompt in prompts)
        else:
            tokens = len(group) * int(lengths[group].max())
        assert tokens <= max_tokens or len(group) == 1


def test_micro_batches_are_filled():
    groups = micro_batch_rows(torch.tensor([5, 100, 5, 4, 5]), max_tokens=15)
    assert [group.tolist() for group in groups] == [[3, 0, 2], [4], [1]]


def test_attempts_at_one_task_stay_together_and_tokens_are_balanced():
    # Three prompts of 4 tokens with own tokens of 2, 2, 2, of 3, 3 and of 8.
    number = torch.tensor([0, 1, 0, 1, 0, 2])
    packed = Prefixes(number, torch.tensor([4, 4, 4, 4, 4, 0]))
    groups = micro_batch_rows(torch.tensor([6, 7, 6, 7, 6, 8]), max_tokens=20, packed=packed)
    assert [sorted(group.tolist()) for group in groups] == [[0, 2, 4, 5], [1, 3]]
    # All four of one prompt, which do not fit, in two pieces.
    packed = Prefixes(torch.zeros(4, dtype=torch.int64), torch.full((4,), 4))
    groups = micro_batch_rows(torch.tensor([9, 9, 9, 9]), max_tokens=14, packed=packed)
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3]]


def test_sequences_that_begin_alike_share_what_stands_before_the_first_sampled_token():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 9], [5, 7, 7, 8], [5, 6, 7, 0], [4, 4, 4, 4]])
    scored = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]])
    number, length = shared_prefixes(ids, scored.bool())
    assert length.tolist() == [2, 2, 0, 0, 0]
    assert number[0] == number[1] and number[0] not in number[2:]
