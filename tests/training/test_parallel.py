"""What processes agree on, without processes: each is given what the others would tell it."""

from dataclasses import fields

import numpy as np
import pytest

from matchtir.credit.advantages import DualAdvantage, RewardBatch, TrajectoryAdvantage
from matchtir.training.parallel import joined, mini_batch_rows


def batch(groups: list[int], turns: int, seed: int) -> RewardBatch:
    rng = np.random.default_rng(seed)
    count = len(groups)
    mask = np.arange(turns)[None, :] < rng.integers(1, turns + 1, count)[:, None]
    rewards = rng.normal(size=(count, turns)) * mask
    return RewardBatch(
        turn_rewards=rewards,
        turn_mask=mask,
        group=np.array(groups, dtype=np.int64),
        has_calls=mask & (rng.random((count, turns)) < 0.5),
        total=rewards.sum(axis=1),
        outcome=np.zeros(count),
        states=np.where(mask, np.array(groups, dtype=np.int64)[:, None] * 2, -1),
        actions=np.where(mask, rng.integers(0, 3, (count, turns)), -1),
    )


@pytest.mark.parametrize("advantage", [DualAdvantage(), DualAdvantage(turn_groups="state")])
def test_groups_of_different_processes_stay_apart(advantage) -> None:
    parts = [batch([0, 0, 1, 1], 3, seed=1), batch([0, 0, 0], 5, seed=2)]
    whole = advantage(joined(parts))
    assert np.allclose(whole[:4, :3], advantage(parts[0]))
    assert np.allclose(whole[4:], advantage(parts[1]))


def test_what_is_normalised_over_the_batch_sees_all_of_it() -> None:
    parts = [batch([0, 0], 2, seed=1), batch([0, 0], 2, seed=2)]
    advantage = TrajectoryAdvantage(baseline="none", scale="batch")
    whole = advantage(joined(parts))
    assert not np.allclose(whole[:2], advantage(parts[0]))


def test_a_process_without_trajectories_adds_none() -> None:
    some, none = batch([0, 0], 2, seed=1), batch([], 0, seed=1)
    both = joined([none, some])
    for field in fields(RewardBatch):
        assert np.array_equal(getattr(both, field.name), getattr(some, field.name))


def test_mini_batches_are_those_of_one_process() -> None:
    # Four groups of two; with two processes group k of process r is group 2k + r.
    alone = mini_batch_rows([[0, 0, 1, 1, 2, 2, 3, 3]], 0, 2)
    assert [rows.tolist() for rows in alone] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    shared = [[0, 0, 1, 1], [0, 0, 1, 1]]
    for process in (0, 1):
        parts = mini_batch_rows(shared, process, 2)
        assert [rows.tolist() for rows in parts] == [[0, 1], [2, 3]]


def test_processes_have_equally_many_groups_in_each_mini_batch() -> None:
    groups = [[number for number in range(32) for _ in range(16)]] * 8
    for process in range(8):
        parts = mini_batch_rows(groups, process, 8)
        assert [len(rows) for rows in parts] == [4 * 16] * 8


def test_there_are_as_many_mini_batches_in_every_process() -> None:
    groups = [[0], [], [0, 1]]  # of the iteration: 0; 2 and 5
    of_each = [mini_batch_rows(groups, process, 8) for process in range(3)]
    assert [[rows.tolist() for rows in parts] for parts in of_each] == [
        [[0], [], []],
        [[], [], []],
        [[], [0], [1]],
    ]
