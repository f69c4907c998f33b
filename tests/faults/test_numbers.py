"""Numbers that are none: rewards, losses and gradients that must not reach the weights."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.training.groups import check_rewards
from matchtir.training.sft import SupervisedModule
from matchtir.types import StopReason, Trajectory, Turn
from tests.faults.helpers import fault
from tests.training.test_sft import with_outputs
from tests.training.training_parts import (
    Recorder,
    fit,
    logged,
    parts,
    policy_gradient,
    tasks,
    weights,
)

NAN = float("nan")


@fault("C rewards", "NaN, infinite, None, text, a complex number", "refused with the task's id")
@pytest.mark.parametrize("bad", [NAN, float("inf"), None, "0.5", 1j, np.bool_(True)])
def test_a_reward_that_is_no_number_is_refused_with_its_task(bad):
    good = SimpleNamespace(turn_rewards=[0.5], total=np.float32(1), outcome_reward=0)
    turn = Turn((1,), (0.0,), "")
    trajectories = [Trajectory(task, (), (turn,), StopReason.ANSWER) for task in tasks(2)]
    check_rewards([good, good], trajectories)
    for place in ({"turn_rewards": [bad]}, {"total": bad}, {"outcome_reward": bad}):
        wrong = SimpleNamespace(**{**vars(good), **place})
        with pytest.raises(ValueError, match="task t1: its reward must be a finite number"):
            check_rewards([good, wrong], trajectories)


@fault("C too few rewards", "fewer rewards than turns", "refused with the task's id")
def test_wrong_rewards_end_the_run_before_the_update(tmp_path):
    class Bad(MatchReward):
        def __call__(self, trajectories):
            *credits, last = super().__call__(trajectories)
            return [*credits, replace(last, turn_rewards=last.turn_rewards[:1])]

    module = policy_gradient(reward=Bad(Similarity(), HardAssignment()))
    before = weights(module)
    with pytest.raises(ValueError, match="task t1: .* each of 2 turns"):
        fit(module, tmp_path)
    assert all(torch.equal(before[name], each) for name, each in weights(module).items())


class BadLoss(Recorder):
    """The loss, or its gradient alone, is not finite in the steps that `bad` names."""

    bad = range(1)
    in_gradient = False

    def loss(self, inputs):
        output = super().loss(inputs)
        if len(self.inputs) - 1 not in self.bad:
            return output
        if self.in_gradient:  # the derivative of a square root is infinite at 0
            return replace(output, loss=output.loss + (inputs.logprobs.sum() * 0).sqrt())
        return replace(output, loss=output.loss * NAN)


@fault("C loss and gradient", "a step without a finite loss or gradient", "skipped, named, counted")
@pytest.mark.parametrize("in_gradient", [False, True])
def test_a_step_that_is_not_finite_is_skipped_named_and_counted(tmp_path, caplog, in_gradient):
    module = policy_gradient(BadLoss, mini_batches=2)
    module.in_gradient = in_gradient
    before = weights(module)
    with caplog.at_level(logging.WARNING):
        fit(module, tmp_path)
    assert "['t0']" in caplog.text or "['t1']" in caplog.text  # of the first mini-batch alone
    assert logged(tmp_path, "train/skipped_steps") == [1.0]
    assert np.isfinite(logged(tmp_path, "train/loss")).all()  # the mean over the other step
    after = weights(module)
    assert all(torch.isfinite(each).all() for each in after.values())
    assert any(not torch.equal(after[name], each) for name, each in before.items())


@fault("C bad steps in a row", "max_bad_steps of them", "the run ends, with the tasks' ids")
@pytest.mark.parametrize(("bad", "ends"), [(range(3), True), (range(2), False)])
def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path, bad, ends):
    module = policy_gradient(BadLoss, max_bad_steps=3)
    module.bad = bad
    before = weights(module)
    if not ends:
        fit(module, tmp_path, iterations=4)
        assert logged(tmp_path, "train/skipped_steps") == [1.0, 1.0, 0.0, 0.0]
        return
    with pytest.raises(RuntimeError, match=r"3 steps in a row; .*\['t0', 't1'\]"):
        fit(module, tmp_path, iterations=4)
    assert all(torch.equal(before[name], each) for name, each in weights(module).items())


def test_fine_tuning_skips_too(tmp_path, caplog):
    module = SupervisedModule(**parts(scripted=False))
    with torch.no_grad():
        module.policy.model.get_input_embeddings().weight[:] = NAN
    with caplog.at_level(logging.WARNING):
        fit(module, tmp_path, with_outputs(2))
    assert "a step is skipped" in caplog.text and "['t0', 't1']" in caplog.text


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_bad_steps=0"):
        policy_gradient(max_bad_steps=0)
