"""What changes rewards before they become advantages, which trajectories learn, the reference."""

from functools import partial

import numpy as np
import pytest
import torch

from matchtir.credit.advantages import RewardBatch, TrajectoryAdvantage
from matchtir.credit.rewards import Credit
from matchtir.policy.covariance import CovarianceControl
from matchtir.policy.losses import PolicyLoss
from matchtir.training.shaping import OverlongPenalty, less_kl
from matchtir.types import StopReason, Trajectory, Turn
from tests.rollout.episode_fakes import task
from tests.training.training_parts import broken_and_resumed, fit, logged, policy_gradient, trained


def trajectory(*lengths, stop=StopReason.ANSWER):
    """Turns of so many tokens, the first with an observation of one; the sampler's log p is -1."""
    turns = [
        Turn((5,) * n, (-1.0,) * n, "", observation_ids=(6,) * (not i))
        for i, n in enumerate(lengths)
    ]
    return Trajectory(task("t", "?"), (1, 2), tuple(turns), stop)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (trajectory(30, 29), 0.0),  # 60 of 100: where the buffer begins
        (trajectory(30, 39), 0.5),
        (trajectory(30, 69), 2.0),
        (trajectory(30, 99), 2.0),
        (trajectory(30, stop=StopReason.RESPONSE_BUDGET), 2.0),  # results filled the budget
        (trajectory(), 0.0),
    ],
)
def test_long_responses_are_punished_softly(given, taken):
    rewards = np.arange(1.0, 1 + len(given.turns))
    credit = Credit(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), rewards, 1.0, 1.0, 3.0)
    found = OverlongPenalty(limit=100, buffer=40, penalty=2.0)(credit, given)
    assert found.turn_rewards.tolist() == [*rewards[:-1], *(rewards[-1:] - taken)]
    assert (found.outcome_reward, found.total) == (1 - taken, 3 - taken)
    assert OverlongPenalty(limit=100)(credit, given) is credit


def test_a_turn_pays_for_the_kl_of_its_tokens():
    given = [trajectory(2, 1), trajectory(), trajectory(1)]
    none, mask = np.zeros((3, 2)), np.array([[1, 1], [0, 0], [1, 0]]) > 0
    rewards = RewardBatch(none, mask, np.zeros(3, int), none > 0, none[:, 0], none[:, 0])
    loss = PolicyLoss(kl_coefficient=8.0, kl_estimator="k2", kl_in="reward")
    # d = 1/2 everywhere, which k2 makes 1/8
    shaped, kl = less_kl(rewards, given, loss, 0, lambda tokens: tokens.sampler_logprobs - 0.5)
    assert shaped.turn_rewards.tolist() == [[-2, -1], [0, 0], [-1, 0]]
    assert shaped.total.tolist() == [-3, 0, -1]
    assert kl == pytest.approx(1 / 8)


def test_a_policy_is_paid_for_staying_at_its_reference(tmp_path):
    loss = {"kl_coefficient": 5.0, "kl_in": "reward", "entropy_coefficient": 0.0}
    module = trained(tmp_path, iterations=3, loss=loss, advantage=TrajectoryAdvantage(scale="none"))
    assert all(inputs.reference_logprobs is None for inputs in module.inputs)
    last = module.scored[-1]
    paid = sum(credit.total for credit in last.credits) - last.rewards.total.sum()
    assert len(module.policies) == 2 and paid > 0
    assert logged(tmp_path, "train/kl")[-1] > 0


def test_masked_stops_are_in_the_baseline_and_carry_no_loss(tmp_path):
    module = policy_gradient(masked_stops=["turn_length"], loss={"kl_coefficient": 0.0})
    whole = module.engine.script
    module.engine.script = lambda session, turn: (
        "What is " * 60 if session.split("/")[1] == "0" else whole(session, turn)
    )
    fit(module, tmp_path)
    stops = [each.stop_reason for each in module.scored[0].trajectories]
    assert stops.count(StopReason.TURN_LENGTH) == 2
    assert module.scored[0].advantages[0].any()
    assert sum(len(inputs.logprobs) for inputs in module.inputs) == 6
    assert logged(tmp_path, "train/masked") == [2 / 8]


def test_the_reference_is_reset_and_a_resumed_run_has_it(tmp_path):
    make = partial(policy_gradient, reference_reset_every=2, loss={"kl_coefficient": 0.1})
    module, seen = make(), []
    step = module.training_step

    def watched(*given):
        step(*given)
        seen.append([each.detach().clone() for each in module.policies[1].parameters()])

    module.training_step = watched
    start = [each.detach().clone() for each in module.policy.parameters()]
    fit(module, tmp_path / "whole", iterations=4)
    assert all(map(torch.equal, seen[0], start)) and all(map(torch.equal, seen[1], start))
    assert not any(map(torch.equal, seen[2], start)) and all(map(torch.equal, seen[2], seen[3]))
    kl = logged(tmp_path / "whole", "train/kl")
    assert kl[1] > 1e-8 and kl[2] == pytest.approx(0, abs=1e-9)
    _, resumed = broken_and_resumed(make, tmp_path, behind=3)
    assert all(map(torch.equal, resumed.policies[1].parameters(), seen[3]))
    assert logged(tmp_path / "resumed", "train/kl") == [pytest.approx(kl[3])]


def test_tokens_are_held_back_in_every_mini_batch(tmp_path):
    control = CovarianceControl(share=0.1, coefficient=1.0)
    module = trained(tmp_path, mini_batches=2, micro_batch_tokens=1, loss={"covariance": control})
    chosen = sum(int(inputs.chosen.sum()) for inputs in module.inputs)
    sampled = sum(int(inputs.sampled.sum()) for inputs in module.inputs)
    assert chosen == pytest.approx(0.1 * sampled, abs=2)
    assert not any((inputs.chosen & ~inputs.sampled).any() for inputs in module.inputs)
