"""Estimators against the exact gradient, over every group that can be drawn: no chance in it."""

import json
from itertools import product

import numpy as np
import pytest

from scripts import credit_toy

TOY = credit_toy.Toy(turns=3, seed=1)
GROUPS = np.array(list(product(range(len(TOY.mask)), repeat=3)))  # of three attempts


def expected(command):
    """The expectation of the gradient that the advantages of one group make."""
    batch = TOY.batch(GROUPS.ravel(), np.repeat(np.arange(len(GROUPS)), 3))
    chance = TOY.probability[GROUPS].prod(axis=1)
    advantages = credit_toy.estimator(command)(batch) * np.repeat(chance, 3)[:, None]
    return TOY.estimate(advantages, GROUPS.ravel()) * len(GROUPS)


def aside(gradient):
    """Length at right angles to the exact gradient, in lengths along it."""
    along = gradient @ TOY.gradient / np.linalg.norm(TOY.gradient)
    return np.sqrt(gradient @ gradient - along**2) / abs(along)


def test_the_exact_gradient_is_that_of_the_expected_reward():
    assert TOY.probability.sum() == pytest.approx(1.0)
    state, action, step = 0, credit_toy.RIGHT, 1e-5
    rewards = []
    for sign in (-1, 1):
        other = credit_toy.Toy(turns=3, seed=1)
        other.policy[state, action] *= np.exp(sign * step)
        other.policy[state] /= other.policy[state].sum()
        rewards.append(other.probability @ other.padded(2).sum(axis=1))
    numeric = (rewards[1] - rewards[0]) / (2 * step)
    assert TOY.gradient[state * 3 + action] == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize(
    ("command", "terms"),
    [
        ("advantage=rloo singleton=raw", 1),
        ("advantage=turn turn_scale=none turn_baseline=others", 1),
        ("advantage=turn turn_scale=none turn_baseline=absorbing", 1),
        ("advantage=turn turn_scale=none turn_baseline=others turn_groups=state", 1),
        # in a group of three a third of A_g is its own
        (f"advantage=dual {credit_toy.NO_SCALE} turn_baseline=absorbing", 5 / 3),
    ],
)
def test_what_others_did_leaves_the_gradient_as_it_is(command, terms):
    assert expected(command) == pytest.approx(terms * TOY.gradient, abs=1e-12)


@pytest.mark.parametrize(
    ("command", "least"),
    [
        ("advantage=turn turn_scale=none", 0.01),  # a return in its own mean, of few or of many
        ("advantage=turn turn_scale=none turn_baseline=others singleton=zero", 0.02),
        ("advantage=turn turn_scale=none turn_baseline=others turn_groups=kind_and_index", 0.1),
        ("advantage=turn", 0.1),
        ("advantage=dual", 0.05),
    ],
)
def test_what_the_turn_itself_decides_bends_it(command, least):
    assert aside(expected(command)) > least


def test_the_table_finds_the_same_by_sampling(capsys):
    credit_toy.main(["--rounds", "40", "--turns", "3"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("RESULT "))
    for command in ("advantage=rloo", "advantage=turn turn_scale=none turn_baseline=absorbing"):
        low, high = result[command]["interval"]
        assert low < 0 < high
    assert result["advantage=turn turn_scale=none turn_groups=kind_and_index"]["interval"][0] > 0.1
