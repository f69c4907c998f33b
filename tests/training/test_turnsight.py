"""Advantages weighted by hindsight: which contexts are scored, exact numbers, a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from matchtir.policy.packing import shared_prefixes
from matchtir.rollout.demonstration import written_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.training.turnsight import TurnSight, strongest
from matchtir.types import ToolResult
from tests.policy.tiny_policy import small
from tests.rollout.episode_fakes import call_text, task
from tests.training.training_parts import logged, trained

RENDERER = Renderer(small(layers=1).tokenizer, system_prompt="")


def attempt(*outputs, policy=-1.0):
    """A turn of one call for each output, and an answer; log-probabilities of the sampler alike."""
    texts = [*[call_text("alpha")] * len(outputs), "<answer>beta</answer>"]
    results = [[ToolResult(output)] for output in outputs]
    written = written_trajectory(task("t", "What is it ?"), texts, results, RENDERER)
    turns = [replace(turn, logprobs=(policy,) * len(turn.token_ids)) for turn in written.turns]
    return replace(written, turns=tuple(turns))


class Scorer:
    """Stands for a reference: the log-probability of a sequence's tokens, by its text."""

    def __init__(self, of=lambda text: -1.0):
        self.of = of
        self.texts = []
        self.batch = None

    def __call__(self, batch):
        self.batch = batch
        texts = [
            RENDERER.decode(ids[:n])
            for ids, n in zip(batch.input_ids.tolist(), batch.lengths, strict=True)
        ]
        self.texts += texts
        return torch.tensor([[self.of(text)] for text in texts]) * batch.sampled


def run(given, scorer, advantages=None, **options):
    if advantages is None:
        advantages = np.ones((len(given), max(len(each.turns) for each in given)))
    group = np.zeros(len(given), dtype=int)
    return TurnSight(**options)(advantages, given, group, RENDERER, scorer)


def test_a_view_is_the_turn_behind_the_results_of_it_and_those_after_it():
    scorer, given = Scorer(), attempt("amber", "beta", "gamma")
    _, metrics = run([given], scorer)
    first, second, third = (
        [text for text in scorer.texts if text.count(call_text("alpha")) == n] for n in (1, 2, 3)
    )
    # Depths 1, 2, 3; two of the second turn and one of the third, where the attempt ends.
    assert [len(each) for each in (first, second, third)] == [3, 2, 1]
    # What the template makes of the question and two results, and the turn behind it.
    said = [{"role": "tool", "content": output} for output in ("amber", "beta")]
    whole = RENDERER.conversation_ids([{"role": "user", "content": "What is it ?"}, *said], [])
    results = RENDERER.decode(whole).partition("What is it ?")[2]
    assert "amber" in results and first[1].endswith(f"What is it ?{results}{call_text('alpha')}")
    assert metrics["train/hindsight_sequences"] == 6
    # What stands before the hindsight is computed once for all depths.
    prefixes = shared_prefixes(scorer.batch.input_ids, scorer.batch.sampled)
    assert prefixes.number.tolist() == [0, 0, 0, 1, 1, 2]
    assert (prefixes.length[:5] > 0).all()


def test_exact_numbers():
    """Two attempts of a call and an answer; only the first's call is likelier in hindsight."""
    given = [attempt("amber"), attempt("beta")]
    scorer = Scorer(lambda text: -0.5 if "amber" in text else -2.0)
    advantages = np.array([[1.0, 1.0], [-1.0, 0.0]])
    found, _ = run(given, scorer, advantages)
    n = len(given[0].turns[0].token_ids)
    gaps = np.array([0.5] * n + [-1.0] * n)  # to the sampler's -1
    delta = 0.75 / gaps.std(ddof=1)
    # The second's is less likely, which agrees with its negative advantage.
    factor = 1 + 0.25 * math.tanh(delta)
    assert found == pytest.approx(np.array([[factor, 1.0], [-factor, 0.0]]), abs=1e-5)
    opposed, _ = run(given, scorer, -advantages)
    factor = 1 - 0.25 * math.tanh(delta)
    assert opposed == pytest.approx(np.array([[-factor, -1.0], [factor, 0.0]]), abs=1e-5)


def test_the_reference_may_be_compared_with_itself():
    given = [attempt("amber", policy=-9.0), attempt("beta", policy=-1.0)]
    scorer = Scorer(lambda text: -0.5 if "amber" in text else -2.0)
    by_itself, _ = run(given, scorer, without="reference")
    alike = Scorer(lambda text: -2.0)
    assert by_itself[0, 0] > 1 > by_itself[1, 0]
    assert (run(given, alike, without="reference")[0] == 1).all()
    assert run(given, alike)[0][0, 0] > 1  # the gap to the policy, which found it unlikely


def test_the_majority_decides_the_sign_and_the_largest_is_taken():
    given = {(0.1, 0.3, -9.0): 1, (-0.4, 0.3, -0.1): 0, (0.0, 0.0, -1.0): 0, (-2.0, 1.0): 1}
    assert {means: strongest(means) for means in given} == given


@pytest.mark.parametrize("option", ["mixing", "bound"])
def test_without_mixing_or_bound_nothing_changes(option):
    given = [attempt("amber", "beta"), attempt("beta")]
    advantages = np.random.default_rng(0).normal(size=(2, 3))
    scorer = Scorer(lambda text: -float(len(text)))
    assert not np.allclose(run(given, scorer, advantages)[0], advantages)
    assert np.allclose(run(given, scorer, advantages, **{option: 0.0})[0], advantages, atol=1e-12)


def test_signs_stay_and_weights_are_bounded():
    given = [attempt("amber", "beta"), attempt("beta"), replace(attempt(), turns=())]
    advantages = np.random.default_rng(0).normal(size=(3, 3))
    found, _ = run(given, Scorer(lambda text: -float(hash(text) % 97)), advantages)
    ratio = found / advantages
    assert ((ratio >= 0.75) & (ratio <= 1.25)).all() and ratio.std() > 0.05
    assert (ratio[1:, 2] == 1).all() and (ratio[2] == 1).all()  # answers; no turn at all
    nobody = Scorer()  # is called all the same, for processes that have some
    _, metrics = run([attempt()], nobody)
    assert nobody.texts and not metrics["train/hindsight_sequences"]
    assert metrics["train/hindsight_tokens"] == 0  # padding is none


def test_a_run_has_a_reference_and_weighs_its_advantages(tmp_path):
    settings = {"loss": {"kl_coefficient": 0.0}, "iterations": 2}
    plain = trained(tmp_path / "plain", policy=small(1, packing=True).policy, **settings)
    own = {"policy": small(1, packing=True).policy, "hindsight": TurnSight()}
    module = trained(tmp_path, **settings, **own)
    assert len(plain.policies) == 1 and len(module.policies) == 2
    before, after = (each.scored[0].advantages for each in (plain, module))
    ratio = after[before != 0] / before[before != 0]
    assert ((ratio > 0.75) & (ratio < 1.25)).all() and ratio.std() > 0.01
    assert all(inputs.reference_logprobs is None for inputs in module.inputs)
    assert logged(tmp_path, "train/hindsight_sequences")[0] == 2 * 3
    assert logged(tmp_path, "time/hindsight")[0] > 0
