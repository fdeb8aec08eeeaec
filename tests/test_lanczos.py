"""Sees what only matrices with prescribed eigenvalues can show: a wrong coefficient, weight or
breakdown in Lanczos itself, without any model or loss around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspectra.lanczos import gauss_quadrature, lanczos

SPECTRA = {
    "uniform": torch.linspace(-1, 2, 40, dtype=torch.float64),
    "one outlier": torch.cat([torch.linspace(0, 1e-3, 39), torch.tensor([10.0])]).double(),
    "geometric": torch.logspace(-12, 0, 40, dtype=torch.float64),
    "both signs": torch.cat([-torch.logspace(-6, 0, 20), torch.logspace(-6, 0, 20)]).double(),
}


def symmetric(eigenvalues, seed=0):
    """A dense symmetric matrix with exactly these eigenvalues, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q * eigenvalues @ q.T


def gaussian(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_gauss_moments_are_exact_up_to_2m_minus_1(name, steps):
    matrix = symmetric(SPECTRA[name])
    start = gaussian(3, 40)
    nodes, weights = gauss_quadrature(*lanczos(lambda v: v @ matrix, start, steps)[:3])
    unit = start / start.norm(dim=-1, keepdim=True)
    power = unit
    for k in range(2 * steps):
        exact = (unit * power).sum(-1)
        error = ((weights * nodes**k).sum(-1) - exact).abs()
        assert (error <= 1e-10 * (weights * nodes.abs() ** k).sum(-1)).all(), k
        power = power @ matrix


@pytest.mark.parametrize("name", ["uniform", "one outlier", "both signs"])
def test_as_many_steps_as_dimensions_give_the_exact_eigenvalues(name):
    eigenvalues = SPECTRA[name].sort().values
    run = lanczos(lambda v: v @ symmetric(SPECTRA[name]), gaussian(40), 40)
    nodes, weights = gauss_quadrature(*run[:3])
    torch.testing.assert_close(nodes, eigenvalues, atol=1e-10, rtol=0)
    assert weights.sum() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        torch.logspace(-14, 0, 300, dtype=torch.float64),
        1 + 1e-9 * torch.linspace(0, 1, 300, dtype=torch.float64),
        torch.linspace(-1, 1, 300, dtype=torch.float64),
    ],
)
def test_two_passes_keep_the_basis_orthogonal_where_the_recurrence_alone_does_not(eigenvalues):
    matrix = symmetric(eigenvalues)
    loss = {
        both: lanczos(lambda v: v @ matrix, gaussian(300), 200, reorthogonalize=both).orthogonality
        for both in (True, False)
    }
    assert loss[True] < 1e-14  # Gram-Schmidt without the recurrence loses 0.7 on the first of these
    assert loss[False] > 0.1


def test_without_reorthogonalisation_ghosts_of_the_outlier_appear():
    matrix = symmetric(torch.cat([torch.linspace(0, 1, 299), torch.tensor([20.0])]).double())
    copies = {}
    for both in (False, True):
        run = lanczos(lambda v: v @ matrix, gaussian(300), 80, reorthogonalize=both)
        nodes, _ = gauss_quadrature(*run[:3])
        copies[both] = int((nodes > 10).sum())
    assert copies[True] == 1
    assert copies[False] > 1


@given(rank=st.integers(1, 6), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_low_rank_operator_breaks_down_at_the_exact_krylov_space(rank, seed):
    eigenvalues = torch.zeros(30, dtype=torch.float64)
    eigenvalues[:rank] = torch.arange(1, rank + 1)
    matrix = symmetric(eigenvalues, seed)
    run = lanczos(lambda v: v @ matrix, gaussian(30, seed=seed + 100), 20)
    assert run.taken <= rank + 2  # the distinct eigenvalues are 1…rank and zero
    nodes, weights = gauss_quadrature(*run[:3])
    heavy = nodes[weights > 1e-12]
    torch.testing.assert_close(heavy, heavy.round(), atol=1e-8, rtol=0)
    assert set(heavy.round().int().tolist()) == set(range(rank + 1))
    assert (weights[run.taken :] == 0).all()
    assert (nodes[run.taken :] == nodes[run.taken - 1]).all()


def test_runs_of_one_batch_may_break_down_at_different_steps():
    matrix = torch.diag(torch.tensor([1.0, 2, 3, 4, 0])).double()
    start = torch.eye(5, dtype=torch.float64)[[4, 0]] + torch.tensor(
        [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
    )
    run = lanczos(lambda v: v @ matrix, start, 5)
    assert run.taken.tolist() == [1, 3]
    nodes, weights = gauss_quadrature(*run[:3])
    assert nodes[0].tolist() == [0] * 5
    torch.testing.assert_close(nodes[1, :3], torch.tensor([1.0, 2, 3]).double())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))


@given(shift=st.floats(-5, 5), factor=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_nodes_follow_a_shift_and_a_factor_and_weights_stay(shift, factor):
    matrix = symmetric(SPECTRA["uniform"])
    changed = factor * (matrix + shift * torch.eye(40, dtype=torch.float64))
    runs = [lanczos(lambda v, a=a: v @ a, gaussian(40), 8) for a in (matrix, changed)]
    (n0, w0), (n1, w1) = (gauss_quadrature(*run[:3]) for run in runs)
    torch.testing.assert_close(n1, factor * (n0 + shift), atol=1e-10 * factor * 10, rtol=1e-9)
    torch.testing.assert_close(w1, w0, atol=1e-9, rtol=0)


def test_a_float32_operator_breaks_down_at_its_own_noise():
    matrix = symmetric(torch.tensor([3.0, 2, 1] + [0.0] * 47).double())
    run = lanczos(lambda v: v.float() @ matrix.float(), gaussian(50), 30)
    assert run.taken <= 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((lambda v: v, torch.ones(3), 0), "at least one step"),
        ((lambda v: v, torch.zeros(3), 2), "start vector is zero"),
        ((lambda v: v * float("nan"), torch.ones(3), 2), "product is not finite"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        lanczos(*arguments)
