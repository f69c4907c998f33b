"""Which optimizer gets which parameter, its learning rate at every iteration, and Muon itself."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from matchtir.policy.policy import Policy
from matchtir.training.optim import AdamW, Muon, MuonAdamW, orthogonalized
from tests.policy.tiny_policy import ARCHITECTURE, small

POLICY = small().policy


def rates(scheduled, iterations):
    """The learning rate in each iteration."""
    used = []
    for _ in range(iterations):
        used.append(scheduled.optimizer.param_groups[0]["lr"])
        scheduled.optimizer.step()
        scheduled.schedule.step()
    return used


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0, "constant", [1, 1, 1, 1]),
        (2, "constant", [1 / 3, 2 / 3, 1, 1]),
        (0, "linear", [1, 3 / 4, 1 / 2, 1 / 4]),
        (1, "linear", [1 / 2, 3 / 4, 1 / 2, 1 / 4]),
        (9, "constant", [0.1, 0.2, 0.3, 0.4]),  # longer than the run
    ],
)
def test_the_learning_rate_of_every_iteration(warmup, decay, expected):
    (adamw,) = AdamW(lr=2.0, warmup=warmup, decay=decay)(POLICY, iterations=4)
    longer = [*expected, 0.0 if decay == "linear" else expected[-1]]  # behind the end: no climb
    if warmup < 4:
        assert rates(adamw, 5) == pytest.approx([2 * factor for factor in longer])
    muon, adamw = MuonAdamW(3.0, 0.5, warmup, decay)(POLICY, iterations=4)
    assert rates(muon, 4) == pytest.approx([3 * factor for factor in expected])
    assert rates(adamw, 4) == pytest.approx([0.5 * factor for factor in expected])


def test_adamw_has_its_settings_and_every_trained_parameter():
    policy = small().policy
    frozen = policy.model.get_input_embeddings().weight.requires_grad_(False)
    (scheduled,) = AdamW(lr=1.0, betas=[0.8, 0.9], weight_decay=0.3)(policy, iterations=4)
    assert type(scheduled.optimizer) is torch.optim.AdamW
    (group,) = scheduled.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.8, 0.9), 0.3)
    expected = {id(each) for each in policy.parameters()} - {id(frozen)}
    assert {id(each) for each in group["params"]} == expected


def groups(policy):
    """Names of the parameters of Muon and of AdamW."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    muon, adamw = (
        {names[id(each)] for group in scheduled.optimizer.param_groups for each in group["params"]}
        for scheduled in MuonAdamW(1.0, 1.0)(policy, iterations=4)
    )
    return muon, adamw


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_matrices_of_the_layers_and_adamw_the_rest(tied):
    config = Qwen3Config(**ARCHITECTURE, vocab_size=50, tie_word_embeddings=tied)
    policy = Policy(Qwen3ForCausalLM(config))
    muon, adamw = groups(policy)
    assert not muon & adamw
    assert muon | adamw == {name for name, _ in policy.named_parameters()}
    assert {name.split(".")[-2] for name in muon} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert ("model.lm_head.weight" in adamw) is not tied and len(muon) == 2 * 7


# -- Muon: against PyTorch's own, which computes in 16 bits, and what it promises -----------------
def random_matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_it_goes_where_pytorchs_muon_goes(shape):
    start = random_matrix(*shape, seed=0)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=1e-2),
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        ours.grad = theirs.grad = random_matrix(*shape, seed=1 + step)
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.01 and (ours - theirs).norm() < 0.02 * moved


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-4, 1e4), st.integers(0, 99))
def test_singular_values_come_near_one_whatever_the_scale(rows, columns, scale, seed):
    # Values of one size, as far apart as 1 to 5: the smallest need more steps than five.
    left, right = (torch.linalg.qr(random_matrix(n, n, seed)).Q for n in (rows, columns))
    values = torch.linspace(1, 5, min(rows, columns))
    middle = torch.zeros(rows, columns)
    middle[range(len(values)), range(len(values))] = values
    matrix = scale * left @ middle @ right
    found = orthogonalized(matrix)
    assert found.shape == matrix.shape
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.4
    turned = left.T @ found @ right.T
    torch.testing.assert_close(turned * (middle > 0), turned, atol=1e-3, rtol=0)  # directions stay


def test_without_a_gradient_nothing_moves_and_of_zeros_there_is_no_direction():
    still, flat = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    flat.grad = torch.zeros(3, 4)
    Muon([still, flat], lr=1.0).step()
    assert torch.equal(still, torch.ones(3, 4)) and torch.equal(flat, torch.ones(3, 4))


def test_its_momentum_is_saved_and_loaded():
    moved, resumed = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    first = Muon([moved], lr=1e-2)
    moved.grad = random_matrix(3, 4, seed=1)
    first.step()
    second = Muon([resumed], lr=1e-2)
    second.load_state_dict(deepcopy(first.state_dict()))
    resumed.data.copy_(moved.data)
    moved.grad = resumed.grad = random_matrix(3, 4, seed=2)
    first.step()
    second.step()
    assert torch.equal(moved, resumed)
