"""Only this file sees a run that is kept off known eigenvectors find them again, or miss others.

Oracles: matrices of prescribed eigenvalues, and dense Hessians.
"""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from blockspectra import block_spectra, partition
from blockspectra.deflation import weighed
from blockspectra.hessian import dense_hessian
from blockspectra.known import known_eigenpairs
from blockspectra.lanczos import Lanczos, lanczos
from two_matrices import two_matrices


def matrix(values, seed=0):
    """Symmetric, with these eigenvalues, and its eigenvectors as rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(values), len(values)
    vectors = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0]
    return vectors * torch.as_tensor(values, dtype=torch.float64) @ vectors.T, vectors.T


def gaussian(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ritz_values(result):
    m = int(result.taken)
    alpha, beta = result.alpha[:m], result.beta[: m - 1]
    return torch.linalg.eigvalsh(alpha.diag() + beta.diag(1) + beta.diag(-1))


BULK = np.linspace(-1, 1, 60)


@pytest.mark.parametrize("basis", [torch.float64, torch.float32])
@pytest.mark.parametrize("probes", [(), (3,)])
def test_a_run_that_is_kept_off_eigenvectors_has_the_others_alone(basis, probes):
    operator, vectors = matrix([*BULK, 50, 70, -90])
    outside = vectors[-3:].to(basis).contiguous()
    start = gaussian(*probes, 63)
    found = lanczos(lambda v: v @ operator, start, 100, outside=outside, norm=90.0, basis=basis)
    assert found.alpha.shape[-1] == 60
    assert float(found.orthogonality.max()) < {torch.float64: 1e-12, torch.float32: 1e-5}[basis]
    first = found if not probes else type(found)(*(x[0] for x in found))
    expected = torch.from_numpy(BULK)
    close = {torch.float64: 1e-11, torch.float32: 1e-4}[basis]
    assert int(first.taken) == 60
    torch.testing.assert_close(ritz_values(first), expected, rtol=0, atol=close)


def test_orthogonality_counts_the_vectors_outside():
    operator, vectors = matrix([*BULK, 50])
    run = Lanczos(gaussian(61), 10, outside=vectors[-1:].contiguous())
    while not run.done:
        run.absorb(operator @ run.current)
    run.outside = run.basis[4:5] * 0.5  # as if one had come in
    assert float(run.result().orthogonality) == pytest.approx(0.5)


def test_eigenpairs_that_a_run_knows_are_those_of_the_matrix():
    values = [*BULK, 50, 70, -90, 200]
    operator, _ = matrix(values)
    run = Lanczos(gaussian(64), 30)
    while not run.done:
        run.absorb(operator @ run.current)
    known = known_eigenpairs(run, 64)
    assert {50, 70, -90, 200} <= set(known.values.round(decimals=6).tolist())
    far = known.values.abs() > 2
    torch.testing.assert_close(
        known.vectors[far] @ operator,
        known.values[far, None] * known.vectors[far],
        atol=1e-6,
        rtol=0,
    )
    gram = known.vectors @ known.vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-10, rtol=0)


def test_of_a_first_run_that_knows_nothing_nothing_is_left_out():
    operator, _ = matrix(np.zeros(20))
    run = Lanczos(gaussian(20), 5)
    run.absorb(operator @ run.current)
    assert known_eigenpairs(run, 20) is None


@pytest.mark.parametrize("together", [1, 2])
def test_under_a_tolerance_the_quadrature_is_right_whatever_the_later_probes_are_kept_off(together):
    problem = two_matrices(3)
    settings = {"tolerance": 0.2, "steps": 20, "probes": 12, "basis": "float64"}
    blocks = partition(problem.model.double())
    problem.batches = [(x.double(), y) for x, y in problem.batches]
    spectra = block_spectra(problem, blocks, together=together, **settings)
    for i, block in enumerate(blocks):
        exact = torch.linalg.eigvalsh(dense_hessian(problem, block)).numpy()
        nodes, weights = (x[spectra.present[i]] for x in (spectra.nodes(i), spectra.weights(i)))
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
        assert (np.diff(nodes, axis=1) >= 0).all()
        known = spectra.outside[i, 1:]
        for value in known[known != 0]:
            assert np.abs(exact - value).min() < 0.05 * np.abs(exact).max()
        error = wasserstein_distance(exact, nodes.ravel(), None, weights.ravel())
        assert error < 0.4 * np.sqrt(np.mean(exact**2))
    assert (spectra.outside[:, 0] == 0).all()
    assert spectra.outside.any()


def test_what_is_below_the_precision_of_products_is_no_eigenvalue_of_its_own():
    operator, vectors = matrix([*np.full(60, 0.0), 1e-5, 1.0, 50])
    run = Lanczos(gaussian(63), 20, outside=vectors[-1:].contiguous(), norm=50.0)
    while not run.done:
        run.absorb(operator @ run.current)
    result = run.result()
    rows = (x[None, : int(result.taken)].numpy() for x in (result.alpha, result.beta))
    rows = (*rows, result.taken.view(1).numpy(), 63)
    (known,) = weighed(*rows, np.array([[50.0]]))
    np.testing.assert_allclose(known.run.nodes[known.exact], [1.0])
    (alone,) = weighed(*rows[:3], 62)
    np.testing.assert_allclose(alone.run.nodes[alone.exact], [1e-5, 1.0])


def test_files_of_runs_that_were_kept_off_nothing_say_nothing_of_it(tmp_path):
    problem = two_matrices(2)
    spectra = block_spectra(problem, partition(problem.model), steps=3, probes=2)
    path = spectra.save(tmp_path / "spectra.npz")
    assert "outside" not in np.load(path).files  # as those of version 0.1.0, which stay readable
    assert spectra.load(path).outside.shape == (2, 2, 0)


def test_files_and_selections_keep_what_later_probes_were_kept_off(tmp_path):
    problem = two_matrices(2)
    spectra = block_spectra(problem, partition(problem.model), tolerance=0.01, steps=8, probes=4)
    assert spectra.outside.any()
    again = type(spectra).load(spectra.save(tmp_path / "spectra.npz"))
    for left, right in zip(again.quadrature, spectra.quadrature, strict=True):
        assert left.tobytes() == right.tobytes()
    one = spectra.select([1], probes=[1])
    width = one.quadrature[0].shape[-1]
    assert (one.nodes(0)[0] == spectra.nodes(1)[1][:width]).all()
