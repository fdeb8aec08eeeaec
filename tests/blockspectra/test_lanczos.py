"""Sees what only matrices with prescribed eigenvalues can show: a wrong coefficient, weight or
breakdown in Lanczos itself, without any model or loss around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspectra.lanczos import Lanczos, lanczos
from blockspectra.quadrature import gauss_quadrature

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


def quadrature(run):
    """Nodes and weights of a run's coefficients."""
    return map(torch.from_numpy, gauss_quadrature(*(x.numpy() for x in run[:3])))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_gauss_moments_are_exact_up_to_2m_minus_1(name, steps):
    matrix = symmetric(SPECTRA[name])
    start = gaussian(3, 40)
    nodes, weights = quadrature(lanczos(lambda v: v @ matrix, start, steps))
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
    nodes, weights = quadrature(run)
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


@given(rank=st.integers(1, 6), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_low_rank_operator_breaks_down_at_the_exact_krylov_space(rank, seed):
    eigenvalues = torch.zeros(30, dtype=torch.float64)
    eigenvalues[:rank] = torch.arange(1, rank + 1)
    matrix = symmetric(eigenvalues, seed)
    run = lanczos(lambda v: v @ matrix, gaussian(30, seed=seed + 100), 20)
    assert run.taken <= rank + 2  # the distinct eigenvalues are 1…rank and zero
    nodes, weights = quadrature(run)
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
    nodes, weights = quadrature(run)
    assert nodes[0].tolist() == [0] * 5
    torch.testing.assert_close(nodes[1, :3], torch.tensor([1.0, 2, 3]).double())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))


@given(shift=st.floats(-5, 5), factor=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_nodes_follow_a_shift_and_a_factor_and_weights_stay(shift, factor):
    matrix = symmetric(SPECTRA["uniform"])
    changed = factor * (matrix + shift * torch.eye(40, dtype=torch.float64))
    runs = [lanczos(lambda v, a=a: v @ a, gaussian(40), 8) for a in (matrix, changed)]
    (n0, w0), (n1, w1) = (quadrature(run) for run in runs)
    torch.testing.assert_close(n1, factor * (n0 + shift), atol=1e-10 * factor * 10, rtol=1e-9)
    torch.testing.assert_close(w1, w0, atol=1e-9, rtol=0)


# a basis in float32, or none

BASES = [torch.float64, torch.float32]
EASY = {
    "uniform": torch.linspace(-1, 1, 300, dtype=torch.float64),
    "one outlier": torch.cat([torch.linspace(0, 1, 299), torch.tensor([20.0])]).double(),
}


def with_outlier(ratio, size=3000):
    """A diagonal operator: a bulk on [0, 1] and one eigenvalue far above it."""
    bulk = torch.linspace(0, 1, size - 1, dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([ratio], dtype=torch.float64)])


@pytest.mark.parametrize("name", EASY)
@pytest.mark.parametrize("products", [torch.float32, torch.float64])
def test_a_float32_basis_loses_orthogonality_to_its_rounding_and_no_further(name, products):
    matrix, start = symmetric(EASY[name]), gaussian(2, 300)
    exact = lanczos(lambda v: v @ matrix, start, 80)
    found = lanczos(lambda v: (v @ matrix).to(products), start, 80, basis=torch.float32)
    assert (found.orthogonality > 1e-10).all()
    assert (found.orthogonality < 2**-20).all()
    for left, right in zip(found[:2], exact[:2], strict=True):
        assert (left - right)[:, :20].abs().max() < 1e-4 * EASY[name].abs().max()
    (n0, w0), (n1, w1) = (quadrature(run) for run in (exact, found))
    assert ((n1 > n0[:, -1:] / 2).sum() == (n0 > n0[:, -1:] / 2).sum()).all()  # no ghost
    for k in range(1, 8):
        moment = (w0 * n0.abs() ** k).sum(-1)
        assert (((w1 * n1**k).sum(-1) - (w0 * n0**k).sum(-1)).abs() < 1e-5 * moment).all()


def test_a_float32_basis_bears_an_outlier_of_any_size():
    eigenvalues = with_outlier(1e5)
    exact, found = (
        lanczos(lambda v: v * eigenvalues, gaussian(3000), 40, basis=basis) for basis in BASES[:2]
    )
    assert found.orthogonality < 2**-21  # two or four roundings, by processor
    torch.testing.assert_close(found.alpha, exact.alpha, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.beta, exact.beta, atol=1e-5, rtol=1e-6)


def test_without_a_basis_nothing_is_known_of_orthogonality_and_low_moments_are_right():
    matrix = symmetric(EASY["one outlier"])
    exact = lanczos(lambda v: v @ matrix, gaussian(300), 80)
    found = lanczos(lambda v: v @ matrix, gaussian(300), 80, basis=None)
    assert found.orthogonality.isnan()
    (n0, w0), (n1, w1) = (quadrature(run) for run in (exact, found))
    for k in range(8):
        assert ((w1 * n1**k).sum() - (w0 * n0**k).sum()).abs() < 1e-12 * (w0 * n0**k).sum()
    assert (n1 > 10).sum() > 1  # ghosts come all the same


def test_no_basis_is_the_recurrence_without_reorthogonalisation():
    matrix = symmetric(SPECTRA["uniform"])
    start, options = gaussian(3, 40), ({"basis": None}, {"reorthogonalize": False})
    runs = [lanczos(lambda v: v @ matrix, start, 20, **option) for option in options]
    for left, right in zip(*(run[:3] for run in runs), strict=True):
        assert torch.equal(left, right)


def test_orthogonality_is_that_of_the_whole_basis_however_many_columns_are_converted(monkeypatch):
    matrix, start = symmetric(SPECTRA["both signs"]), gaussian(3, 40)
    options = {"basis": torch.float32, "reorthogonalize": False}
    whole = lanczos(lambda v: v @ matrix, start, 15, **options)
    run = Lanczos(start, 15, **options)
    while not run.done:
        run.absorb(run.current @ matrix)
    exact = (run.basis.double() @ run.basis.double().mT - torch.eye(15)).abs().amax((1, 2))
    torch.testing.assert_close(whole.orthogonality, exact, atol=1e-14, rtol=0)
    monkeypatch.setattr("blockspectra.lanczos.COLUMNS", 7)
    parts = lanczos(lambda v: v @ matrix, start, 15, **options)
    torch.testing.assert_close(parts.orthogonality, exact, atol=1e-14, rtol=0)


@pytest.mark.parametrize("basis", BASES)
def test_runs_of_a_batch_agree_with_runs_by_themselves(basis):
    matrix = torch.diag(torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 7])).double()
    start = torch.tensor([[1.0] * 8, [1, 0, 0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]]).double()
    together = lanczos(lambda v: v @ matrix, start, 8, basis=basis)
    for i, row in enumerate(start):
        alone = lanczos(lambda v: v @ matrix, row, 8, basis=basis)
        m = int(alone.taken)
        assert together.taken[i] == m
        torch.testing.assert_close(together.alpha[i, :m], alone.alpha[:m], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.beta[i, :m], alone.beta[:m], atol=1e-6, rtol=0)


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
