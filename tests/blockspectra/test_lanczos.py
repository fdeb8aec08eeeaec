"""Sees what only matrices with prescribed eigenvalues can show: a wrong coefficient, weight or
breakdown in Lanczos itself, without any model or loss around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspectra.lanczos import Lanczos, gauss_quadrature, lanczos

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


# a basis kept in fewer bits, or not at all

BASES = [torch.float64, torch.float32, torch.bfloat16]
EASY = {
    "uniform": torch.linspace(-1, 1, 300, dtype=torch.float64),
    "one outlier": torch.cat([torch.linspace(0, 1, 299), torch.tensor([20.0])]).double(),
}


def with_outlier(ratio, size=3000):
    """A diagonal operator: a bulk on [0, 1] and one eigenvalue far above it."""
    bulk = torch.linspace(0, 1, size - 1, dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([ratio], dtype=torch.float64)])


@pytest.mark.parametrize("name", EASY)
@pytest.mark.parametrize(("basis", "rounding"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
def test_orthogonality_is_lost_to_the_rounding_of_the_basis_and_no_further(name, basis, rounding):
    matrix = symmetric(EASY[name])
    exact = lanczos(lambda v: v @ matrix, gaussian(300), 80)
    found = lanczos(lambda v: v @ matrix, gaussian(300), 80, basis=basis)
    assert 0.01 * rounding < found.orthogonality < rounding
    (n0, w0), (n1, w1) = (gauss_quadrature(*run[:3]) for run in (exact, found))
    assert (n1 > n0[-1] / 2).sum() == (n0 > n0[-1] / 2).sum()  # no ghost
    assert (n1[[0, -1]] - n0[[0, -1]]).abs().max() < rounding * n0[-1]
    for k in range(1, 8):
        moment = (w0 * n0.abs() ** k).sum()
        assert ((w1 * n1**k).sum() - (w0 * n0**k).sum()).abs() < rounding * moment


@pytest.mark.parametrize("name", EASY)
def test_sums_are_in_float32_where_products_and_basis_are_and_lose_no_more_than_they(name):
    matrix = symmetric(EASY[name])
    exact = lanczos(lambda v: v @ matrix, gaussian(2, 300), 80)
    found = lanczos(
        lambda v: (v @ matrix).float(), gaussian(2, 300), 80, basis=torch.float32
    )  # products are rounded, and so are the sums
    assert (found.orthogonality < 2**-20).all()
    for left, right in zip(found[:2], exact[:2], strict=True):
        assert (left - right)[:, :20].abs().max() < 1e-4 * EASY[name].abs().max()
    (n0, w0), (n1, w1) = (gauss_quadrature(*run[:3]) for run in (exact, found))
    for k in range(1, 8):
        moment = (w0 * n0.abs() ** k).sum(-1)
        assert (((w1 * n1**k).sum(-1) - (w0 * n0**k).sum(-1)).abs() < 1e-5 * moment).all()


def test_a_float32_basis_bears_an_outlier_of_any_size():
    eigenvalues = with_outlier(1e5)
    exact, found = (
        lanczos(lambda v: v * eigenvalues, gaussian(3000), 40, basis=basis) for basis in BASES[:2]
    )
    assert found.orthogonality < 2**-23
    torch.testing.assert_close(found.alpha, exact.alpha, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.beta, exact.beta, atol=1e-5, rtol=1e-6)


def test_a_bfloat16_basis_that_does_not_bear_an_outlier_says_so():
    eigenvalues = with_outlier(200.0, 100_000)
    run = lanczos(lambda v: v * eigenvalues, gaussian(100_000), 40, basis=torch.bfloat16)
    nodes, _ = gauss_quadrature(*run[:3])
    assert (nodes > 100).sum() > 1  # ghosts
    assert run.orthogonality > 0.1


def test_without_a_basis_nothing_is_known_of_orthogonality_and_low_moments_are_right():
    matrix = symmetric(EASY["one outlier"])
    exact = lanczos(lambda v: v @ matrix, gaussian(300), 80)
    found = lanczos(lambda v: v @ matrix, gaussian(300), 80, basis=None)
    assert found.orthogonality.isnan()
    (n0, w0), (n1, w1) = (gauss_quadrature(*run[:3]) for run in (exact, found))
    for k in range(8):
        assert ((w1 * n1**k).sum() - (w0 * n0**k).sum()).abs() < 1e-12 * (w0 * n0**k).sum()
    assert (n1 > 10).sum() > 1  # ghosts come all the same


def test_no_basis_is_the_recurrence_without_reorthogonalisation():
    matrix = symmetric(SPECTRA["uniform"])
    start, options = gaussian(3, 40), ({"basis": None}, {"reorthogonalize": False})
    runs = [lanczos(lambda v: v @ matrix, start, 20, **option) for option in options]
    for left, right in zip(*(run[:3] for run in runs), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("basis", BASES)
def test_a_basis_taken_in_parts_gives_what_it_gives_in_one(basis, monkeypatch):
    matrix = symmetric(SPECTRA["both signs"])
    start = gaussian(3, 40)
    whole = lanczos(lambda v: v @ matrix, start, 15, basis=basis)
    monkeypatch.setattr("blockspectra.lanczos.COPIED", 7 * 3 * 15)  # seven columns of forty
    parts = lanczos(lambda v: v @ matrix, start, 15, basis=basis)
    torch.testing.assert_close(parts.alpha, whole.alpha, atol=1e-11, rtol=0)
    torch.testing.assert_close(parts.beta, whole.beta, atol=1e-11, rtol=0)
    torch.testing.assert_close(parts.orthogonality, whole.orthogonality, atol=1e-14, rtol=0)
    assert torch.equal(parts.taken, whole.taken)


# a run that rests between two steps


def advance(run, matrix, steps):
    while not run.done and steps:
        run.absorb(run.current @ matrix)
        steps -= 1


def copied(state):
    """As a file would give it back: the run goes on in the tensors it is given."""
    return {key: tensor.clone() for key, tensor in state.items()}


def same(left, right):
    """Equal to the bit, nan included."""
    return all(
        torch.equal(a.view(torch.int64), b.view(torch.int64))
        for a, b in zip(left, right, strict=True)
    )


@given(
    rests=st.lists(st.integers(0, 5), max_size=5),
    basis=st.sampled_from([*BASES, None]),
    batch=st.sampled_from([(), (3,), (2, 2)]),
    rank=st.sampled_from([2, 40]),
)
@settings(max_examples=40, deadline=None)
def test_a_run_restored_from_its_parts_ends_in_the_same_bits(rests, basis, batch, rank):
    eigenvalues = SPECTRA["uniform"].clone()
    eigenvalues[rank:] = 0  # of rank two all runs break down, of rank forty none
    matrix, start = symmetric(eigenvalues), gaussian(*batch, 40)
    undisturbed = lanczos(lambda v: v @ matrix, start, 12, basis=basis)
    states, since = [], 0
    for rest in rests:
        run = Lanczos(start, 12, basis=basis)
        if states:
            run.restore(list(map(copied, states)))
        advance(run, matrix, rest)
        if run.step > since and not run.done:
            states.append(copied(run.state(since)))
            since = run.step
    last = Lanczos(start, 12, basis=basis)
    if states:
        last.restore(list(map(copied, states)))
        assert last.step == since
    advance(last, matrix, 12)
    assert same(last.result(), undisturbed)


def test_a_run_restored_after_some_of_its_batch_broke_down_goes_on_with_the_others():
    matrix = torch.diag(torch.tensor([1.0, 2, 3, 4, 0])).double()
    start = torch.tensor([[0.0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).double()
    run = Lanczos(start, 5)
    advance(run, matrix, 2)
    assert run.alive.tolist() == [False, True, False]
    assert not run.done
    again = Lanczos(start, 5)
    again.restore([copied(run.state())])
    for one in (run, again):
        advance(one, matrix, 5)
    assert same(run.result(), again.result())
    assert run.result().taken.tolist() == [1, 5, 1]
    assert (run.result().orthogonality < 1e-14).all()


def test_a_product_that_is_not_finite_leaves_the_run_where_it_was():
    matrix = symmetric(SPECTRA["uniform"])
    run, undisturbed = Lanczos(gaussian(40), 6), lanczos(lambda v: v @ matrix, gaussian(40), 6)
    advance(run, matrix, 3)
    with pytest.raises(ValueError, match="not finite"):
        run.absorb(run.current * float("inf"))
    advance(run, matrix, 6)
    assert same(run.result(), undisturbed)


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
