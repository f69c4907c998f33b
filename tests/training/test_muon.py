"""Muon: against PyTorch's own, which computes in 16 bits, and against what it promises."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matchtir.training.optim import Muon, orthogonalized


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_it_goes_where_pytorchs_muon_goes(shape: tuple[int, int]) -> None:
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
def test_singular_values_come_near_one_whatever_the_scale(
    rows: int, columns: int, scale: float, seed: int
) -> None:
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


def test_without_a_gradient_nothing_moves_and_of_zeros_there_is_no_direction() -> None:
    still, flat = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    flat.grad = torch.zeros(3, 4)
    Muon([still, flat], lr=1.0).step()
    assert torch.equal(still, torch.ones(3, 4)) and torch.equal(flat, torch.ones(3, 4))


def test_its_momentum_is_saved_and_loaded() -> None:
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


def test_a_closure_gives_its_loss() -> None:
    matrix = torch.nn.Parameter(torch.ones(2, 2))

    def closure() -> torch.Tensor:
        loss = (matrix**2).sum()
        loss.backward()
        return loss

    assert Muon([matrix], lr=0.1).step(closure) == 4
    assert matrix.sum() < 4
