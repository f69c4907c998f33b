"""One iteration: rollout, score, update; what it learns from and what it logs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning import Callback

from matchtir.credit.advantages import DualAdvantage
from matchtir.policy.batching import collate
from matchtir.policy.losses import LossOutput, MismatchCorrection
from matchtir.rollout.engine import SamplingParams
from matchtir.training.callbacks.traces import rollout_records
from matchtir.training.module import PolicyGradientModule
from matchtir.training.optim import AdamW
from matchtir.types import StopReason
from tests.policy.tiny_policy import small
from tests.training.token_reward import TokenReward
from tests.training.training_parts import (
    ATTEMPTS,
    LIMITS,
    Breaking,
    fit,
    logged,
    policy_gradient,
    sgd,
    tasks,
    trained,
    weights,
)

SHORT = replace(LIMITS, max_turn_tokens=12)
NO_REGULARISER = {"kl_coefficient": 0.0, "entropy_coefficient": 0.0}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# -- one iteration --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def iteration(tmp_path_factory):
    """A module after one iteration, and its folder."""
    folder = tmp_path_factory.mktemp("iteration")
    return trained(folder, loss={"correction": MismatchCorrection(cap=2.0)}), folder


def test_what_an_iteration_changes_and_measures(iteration):
    """The script claims probability 1 for what it writes, which the trainer sees as a mismatch."""
    module, folder = iteration
    before, reference = weights(policy_gradient()), dict(module.policies[1].named_parameters())
    for name, after in weights(module).items():
        assert not torch.equal(before[name], after), name
        assert torch.equal(before[name], reference[name]) and not reference[name].requires_grad
    assert not any(name.startswith("_reference") for name in module.state_dict())
    expected = {
        "train/answer_f1": (1 + 1 + 0 + 0) / 4,
        "train/answered": 3 / 4,
        "train/turns": (2 + 2 + 1 + 2) / 4,
        "train/calls": (1 + 1 + 0 + 2) / 4,
        "train/stop/answer": 1.0,
        # rewards of the calls; of the answers
        "train/reward": ((1 + 1) + (2 / 3 + 1) + 0 + ((1 - 0.25) / 2 - 0.5)) / 4,
        "train/kl": 0.0,
        "train/clip_fraction": 0.0,
        "train/mismatch_truncated": 0.0,
    }
    for name, value in expected.items():
        assert logged(folder, name) == [pytest.approx(value, abs=1e-6)], name
    for name in ("solve_f1", "entropy", "loss", "grad_norm", "tokens_per_s"):
        assert math.isfinite(logged(folder, f"train/{name}")[0])
    for phase in ("sync", "rollout", "credit", "update", "tools"):
        assert logged(folder, f"time/{phase}")[0] >= 0
    assert 1 < logged(folder, "train/mismatch_kl")[0] < math.inf


def test_what_the_traces_show(iteration):
    module = iteration[0]
    assert module.last_rollout is module.scored[0]
    records = rollout_records(module)
    assert [(record["group"], record["attempt"]) for record in records] == [
        (group, attempt) for group in range(2) for attempt in range(4)
    ]
    assert [record["group"] for record in rollout_records(module, groups=1)] == [0] * 4
    for row, record in enumerate(records):
        trajectory, turns = module.scored[0].trajectories[row], record["turns"]
        advantages = [turn["advantage"] for turn in turns]
        assert advantages == module.scored[0].advantages[row, : len(turns)].tolist()
        for turn, made in zip(turns, trajectory.turns, strict=True):
            parts = turn["trajectory_advantage"] + turn["turn_advantage"]
            assert turn["advantage"] == pytest.approx(parts)
            assert len(turn["pieces"]) == len(turn["log_ratios"]) == len(made.token_ids)
            assert "".join(turn["pieces"]).removesuffix("<|im_end|>") == made.text
        rewards = [0.9**index * turn["reward"] for index, turn in enumerate(turns)]
        assert turns[0]["return"] == pytest.approx(sum(rewards))


def test_every_token_of_a_turn_gets_the_turns_advantage(iteration):
    (inputs,), scored = iteration[0].inputs, iteration[0].scored[0]
    rows = [row[mask].tolist() for row, mask in zip(inputs.advantages, inputs.sampled, strict=True)]
    assert len(set(map(len, rows))) == len(ATTEMPTS)  # attempts differ in length: they are known
    for trajectory, advantages in zip(scored.trajectories, scored.advantages, strict=True):
        expected = [
            advantages[index] for index, turn in enumerate(trajectory.turns) for _ in turn.token_ids
        ]
        assert any(each == pytest.approx(expected, abs=1e-6) for each in rows)
    assert torch.equal(inputs.old_logprobs, inputs.logprobs.detach())  # with one mini-batch
    assert not inputs.old_logprobs.requires_grad


def test_the_tokens_of_a_call_get_the_advantage_of_the_call(tmp_path):
    module = trained(tmp_path, advantage=DualAdvantage(level="call"))
    (inputs,), scored = module.inputs, module.scored[0]
    rows = [row[mask].tolist() for row, mask in zip(inputs.advantages, inputs.sampled, strict=True)]
    # The fourth attempt writes a right call and a wrong one, with a line break between them.
    turn, other = scored.trajectories[3].turns
    right, wrong = scored.call_advantages[3]
    whole, last = scored.advantages[3, :2]
    assert right > whole > wrong
    assert [span.kind for span in turn.spans] == ["call", "reasoning", "call", "reasoning"]
    own = [right, whole, wrong, whole]
    expected = [a for a, s in zip(own, turn.spans, strict=True) for _ in range(s.start, s.end)]
    expected += [last] * len(other.token_ids)
    assert sum(row == pytest.approx(expected, abs=1e-6) for row in rows) == 2  # once per task
    record = rollout_records(module)[3]["turns"][0]
    assert [call["advantage"] for call in record["calls"]] == [right, wrong]
    assert record["spans"][1] == ["reasoning", turn.spans[1].start, turn.spans[1].end]


def test_the_best_attempt_becomes_more_likely_than_the_others_do(tmp_path):
    before = policy_gradient().policy
    module = trained(tmp_path, iterations=3, loss=NO_REGULARISER)
    batch = collate(module.scored[0].trajectories[: len(ATTEMPTS)], 0)
    totals = [credit.total for credit in module.scored[0].credits[: len(ATTEMPTS)]]
    with torch.no_grad():
        then, now = (
            policy(batch.input_ids, batch.sampled).logprobs.sum(dim=1)
            for policy in (before, module.policy)
        )
    per_token = (now - then) / batch.sampled.sum(dim=1)
    assert int(per_token.argmax()) == int(np.argmax(totals))
    assert per_token.max() > 0
    # Without a KL there is no reference.
    assert module.policies == [module.policy] and module.inputs[0].reference_logprobs is None


def test_traces_say_how_far_the_update_moved_each_token(tmp_path):
    def farthest(lr):
        module = trained(tmp_path, scripted=False, optimizer=sgd(lr), reward=TokenReward())
        turns = [turn for record in rollout_records(module) for turn in record["turns"]]
        return max(abs(ratio) for turn in turns for ratio in turn["log_ratios"])

    assert farthest(lr=0.0) < 1e-4  # the sampler's own, and nothing was learned
    assert farthest(lr=10.0) > 1e-3


# -- mini-batches and micro-batches ---------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["seq_mean_token_mean", "token_mean", "turn_mean"])
def test_the_size_of_micro_batches_changes_nothing(tmp_path, aggregation):
    results = []
    for number, tokens in enumerate((10_000, 1)):
        folder = tmp_path / str(number)
        module = trained(folder, micro_batch_tokens=tokens, loss={"aggregation": aggregation})
        values = [logged(folder, f"train/{name}")[0] for name in ("grad_norm", "loss")]
        results.append((weights(module), values))
        assert len(module.inputs) == (1, 8)[number]
        # The weights of a mini-batch sum to one.
        assert sum(float(each.weights.sum()) for each in module.inputs) == pytest.approx(1)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4, abs=1e-6)
    for name, expected in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], expected, atol=1e-5, rtol=1e-5)


def test_mini_batches_are_whole_groups_and_keep_the_log_probabilities_of_the_start(tmp_path):
    start = policy_gradient().policy
    module = trained(tmp_path, mini_batches=50, max_grad_norm=1.0)
    first, second = module.inputs
    assert len(first.logprobs) == len(second.logprobs) == 4
    torch.testing.assert_close(first.logprobs, first.old_logprobs, atol=1e-5, rtol=0)
    moved = (second.logprobs - second.old_logprobs)[second.sampled].abs().max()
    assert moved > 1e-3
    batch = collate(module.scored[0].trajectories, 0)
    with torch.no_grad():
        expected = start(batch.input_ids, batch.sampled).logprobs
    found = torch.cat([inputs.old_logprobs[inputs.sampled] for inputs in module.inputs])
    torch.testing.assert_close(
        found.sort().values, expected[batch.sampled].sort().values, atol=1e-5, rtol=0
    )


def test_a_policy_does_not_differ_from_itself_by_dropout(tmp_path):
    policy = small(activation_checkpointing=True).policy
    for layer in policy.model.base_model.layers:
        layer.self_attn.attention_dropout = 0.5
    trained(tmp_path, policy=policy, mini_batches=2, optimizer=sgd(lr=0.0))
    assert logged(tmp_path, "train/clip_fraction") == [0]
    assert logged(tmp_path, "train/kl") == [pytest.approx(0, abs=1e-9)]


def test_gradients_are_clipped_and_their_norm_is_logged_as_it_was(tmp_path):
    before = weights(policy_gradient())
    after = weights(trained(tmp_path, max_grad_norm=1e-4))
    moved = torch.stack([(after[name] - before[name]).norm() for name in after])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-4, rel=1e-2)  # learning rate 0.1
    assert logged(tmp_path, "train/grad_norm")[0] > 1e-2


# -- trajectories that teach nothing --------------------------------------------------------------
def test_trajectories_without_turns_are_left_out(tmp_path):
    (short,), limits = tasks(1), replace(LIMITS, max_prompt_tokens=800)
    long = replace(short, task_id="long", question="? " * 500)
    module = trained(tmp_path, [long, short], limits=limits)
    stops = [trajectory.stop_reason for trajectory in module.scored[0].trajectories]
    assert stops.count(StopReason.PROMPT_TOO_LONG) == 4
    (inputs,) = module.inputs
    assert len(inputs.logprobs) == 4
    assert len(module.last_rollout.trajectories) == 8
    assert rollout_records(module)[0]["turns"] == []


def test_an_iteration_of_prompts_over_the_budget_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="every prompt is over the budget"):
        trained(tmp_path, limits=replace(LIMITS, max_prompt_tokens=5))


@pytest.mark.parametrize("kept", ["drop", "keep"])
def test_groups_in_which_all_attempts_are_alike(tmp_path, kept):
    module = policy_gradient(zero_advantage=kept, loss=NO_REGULARISER)
    module.engine.script = lambda session, turn: ATTEMPTS[0][turn]
    before = weights(module)
    fit(module, tmp_path)
    assert logged(tmp_path, "train/zero_advantage") == [1.0]
    assert bool(module.inputs) is (kept == "keep")
    for name, after in weights(module).items():
        torch.testing.assert_close(before[name], after, atol=1e-6, rtol=0)


# -- with the policy itself as sampler ------------------------------------------------------------
@pytest.mark.parametrize(("temperature", "mini_batches"), [(1.0, 1), (0.7, 2)])
def test_on_policy_the_sampler_and_the_trainer_agree(tmp_path, temperature, mini_batches):
    settings = {"sampling": SamplingParams(temperature), "limits": SHORT}
    trained(tmp_path, iterations=3, scripted=False, mini_batches=mini_batches, **settings)
    mismatch = logged(tmp_path, "train/mismatch_kl")
    assert len(mismatch) == 3 and all(abs(value) < 1e-6 for value in mismatch)


def test_runs_of_one_seed_are_the_same_and_sample_anew_in_every_iteration(tmp_path):
    """Greedy validation in between changes nothing."""
    results = []
    for number, (seed, validate) in enumerate([(1, True), (1, False), (2, False)]):
        module = policy_gradient(scripted=False, seed=seed, limits=SHORT)
        fit(module, tmp_path / str(number), tasks(1), 2, batch_size=1, validate=validate)
        results.append(weights(module))
    assert equal(results[0], results[1]) and not equal(results[0], results[2])
    assert 0 <= logged(tmp_path / "0", "val/solve_f1")[0] <= 1
    first, second = (
        {trajectory.turns[0].token_ids for trajectory in scored.trajectories}
        for scored in module.scored
    )
    assert len(first) == 4 and not first & second  # nor are the attempts of a group alike


def test_each_hook_can_be_overridden(tmp_path):
    class Own(PolicyGradientModule):
        def rollout(self, tasks, seed):
            groups = super().rollout(tasks, seed)
            return [group[:3] for group in groups]

        def score(self, groups):
            scored = super().score(groups)
            return replace(scored, advantages=np.ones_like(scored.advantages))

        def loss(self, inputs):
            assert set(inputs.advantages[inputs.sampled].tolist()) == {1.0}
            likelihood = (inputs.weights * inputs.logprobs).sum()
            return LossOutput(-likelihood, {"own": 3 * inputs.weights.sum()})

    module = trained(tmp_path, kind=Own, micro_batch_tokens=1)
    assert len(module.last_rollout.trajectories) == 6
    assert logged(tmp_path, "train/own") == [pytest.approx(3, abs=1e-5)]
    assert not equal(weights(policy_gradient()), weights(module))


class Rates(Callback):
    """Keeps the learning rate of every iteration."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, *_):
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_run_that_becomes_longer_has_the_rates_of_its_new_length_at_once(tmp_path):
    shorter, longer = (policy_gradient(optimizer=AdamW(0.6, decay="linear")) for _ in range(2))
    fit(shorter, tmp_path, iterations=3, callbacks=[Breaking(tmp_path / "two.ckpt", 2)])
    rates = Rates()
    fit(longer, tmp_path, iterations=6, checkpoint=tmp_path / "two.ckpt", callbacks=[rates])
    assert rates.found == pytest.approx([0.4, 0.3, 0.2, 0.1])
