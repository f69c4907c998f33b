"""Supervised fine-tuning: the mean loss of the assistant's tokens in gold solutions."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from matchtir.policy.batching import collate
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.training.sft import SupervisedModule
from matchtir.types import SubAnswer
from tests.training.training_parts import GOLD, fit, logged, parts, tasks


def with_outputs(count):
    """Tasks that know the output of their gold call, each of another length."""
    return [
        replace(task, sub_answers=(SubAnswer(GOLD.name, "beta " * n + "beta"),))
        for n, task in enumerate(tasks(count))
    ]


def supervised(**settings):
    return SupervisedModule(**parts(scripted=False, **settings))


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 1])
def test_the_loss_is_the_mean_over_all_tokens_of_gold_turns(tmp_path, micro_batch_tokens):
    module, given = supervised(micro_batch_tokens=micro_batch_tokens), with_outputs(2)
    model = deepcopy(module.policy.model)
    batch = collate([gold_trajectory(task, module.renderer) for task in given], 0)
    logits = model(input_ids=batch.input_ids).logits[:, :-1]
    logprobs = logits.log_softmax(dim=-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    expected = -logprobs[batch.sampled[:, 1:]].mean()
    expected.backward()
    fit(module, tmp_path, given)
    assert logged(tmp_path, "train/loss") == [pytest.approx(expected.item(), rel=1e-5)]
    assert logged(tmp_path, "train/entropy")[0] > 0
    norm = torch.stack([each.grad.norm() for each in model.parameters()]).norm()
    assert logged(tmp_path, "train/grad_norm") == [pytest.approx(norm.item(), rel=1e-4)]
    for moved, own in zip(module.policy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(moved, own - 0.1 * own.grad, atol=1e-5, rtol=1e-5)


def test_it_is_validated_by_attempts_of_its_own(tmp_path):
    module = supervised()
    module.policy.eval()
    fit(module, tmp_path, with_outputs(2), validate=True)
    assert module.policy.training  # though it was loaded at rest
    for measure in ("solve_f1", "answer_f1", "answered"):
        assert len(logged(tmp_path, f"val/{measure}")) == 1


def test_a_task_with_a_user_is_refused_before_the_first_step(tmp_path):
    good, other = with_outputs(2)
    for given in ([good, replace(other, user=("Yes.",))], [replace(good, user_goal="Go."), other]):
        with pytest.raises(ValueError, match="with a user are not demonstrated; warm_start=none"):
            fit(supervised(), tmp_path, given, batch_size=1)
    assert not (tmp_path / "metrics.csv").exists()
