"""What processes agree on, without processes: each is given what the others would tell it."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from lightning import LightningModule

from matchtir.credit.advantages import DualAdvantage, RewardBatch, TrajectoryAdvantage
from matchtir.training import parallel
from matchtir.training.parallel import ShardedStrategy, concatenated, mini_batch_rows


def batch(groups, turns, seed):
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
        outcome_reward=np.zeros(count),
        states=np.where(mask, np.array(groups, dtype=np.int64)[:, None] * 2, -1),
        actions=np.where(mask, rng.integers(0, 3, (count, turns)), -1),
    )


@pytest.mark.parametrize(
    ("advantage", "apart"),
    [
        (DualAdvantage(), True),
        (DualAdvantage(turn_groups="state"), True),
        (TrajectoryAdvantage(baseline="none", scale="batch"), False),
    ],
)
def test_groups_of_different_processes_stay_apart_unless_the_batch_is_the_scale(advantage, apart):
    parts = [batch([0, 0, 1, 1], 3, seed=1), batch([0, 0, 0], 5, seed=2)]
    whole = advantage(concatenated(parts))
    assert np.allclose(whole[:4, :3], advantage(parts[0])) is apart
    assert np.allclose(whole[4:], advantage(parts[1])) is apart


def test_an_advantage_is_made_up_of_its_parts(monkeypatch):
    batches = [batch([0, 0], 2, seed=1), batch([0, 0], 3, seed=2)]
    monkeypatch.setattr(parallel, "all_gather", lambda own: batches)
    for rank, own in enumerate(batches):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        dual = DualAdvantage(trajectory_scale="batch", turn_scale="batch")
        values, parts = parallel.over_all_processes(dual, own)
        assert values.shape == own.turn_mask.shape
        assert np.allclose(values, parts["trajectory_advantage"] + parts["turn_advantage"])


def test_a_process_without_trajectories_adds_none():
    some, none = batch([0, 0], 2, seed=1), batch([], 0, seed=1)
    both = concatenated([none, some])
    for field in fields(RewardBatch):
        assert np.array_equal(getattr(both, field.name), getattr(some, field.name))


def of_processes(processes, lengths):
    """Groups of one row each, of these lengths, and what each process has of them."""
    shares = [lengths[process::processes] for process in range(processes)]
    return [list(range(len(share))) for share in shares], shares


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_mini_batches_are_those_of_one_process(processes):
    lengths = np.random.default_rng(0).integers(500, 1000, 64).tolist()
    alone = mini_batch_rows(*of_processes(1, lengths), 0, 4)
    assert sorted(np.concatenate(alone)) == list(range(64))
    shared = of_processes(processes, lengths)
    parts = [mini_batch_rows(*shared, process, 4) for process in range(processes)]
    for number, rows in enumerate(alone):
        found = [
            row * processes + r for r, mine in enumerate(parts) for row in mine[number].tolist()
        ]
        assert sorted(found) == rows.tolist()
        # ... and every process has as many groups of it, and about as many tokens.
        tokens = [sum(shared[1][r][row] for row in mine[number]) for r, mine in enumerate(parts)]
        assert {len(mine[number]) for mine in parts} == {16 // processes}
        assert max(tokens) < 1.2 * np.mean(tokens)


@pytest.mark.parametrize(
    ("groups", "lengths", "expected"),
    [
        ([[0, 0, 1, 1, 1]], [[5, 5, 1, 2, 3]], [[[0, 1], [2, 3, 4]]]),
        # Of the iteration: group 0; none; 2 and 5.
        ([[0], [], [0, 1]], [[9], [], [8, 7]], [[[0], [], []], [[], [], []], [[], [0], [1]]]),
    ],
)
def test_groups_stay_whole_and_every_process_has_as_many_mini_batches(groups, lengths, expected):
    parts = [mini_batch_rows(groups, lengths, process, 9) for process in range(len(groups))]
    assert [[rows.tolist() for rows in mine] for mine in parts] == expected


def test_shards_in_host_memory_compute_on_the_device(monkeypatch):
    """A device of its own is played by "meta"."""
    monkeypatch.setattr(ShardedStrategy, "root_device", torch.device("meta"))
    module, strategy = LightningModule(), ShardedStrategy(2, cpu_offload=True)
    module.weights = torch.nn.Linear(2, 2)
    strategy._lightning_module = module
    strategy.model_to_device()
    assert module.device.type == "meta" and module.weights.weight.device.type == "cpu"
