"""Only this file sees an eigenvalue that is counted twice, not at all, or as many others.

A weight that is exact for a single eigenvalue is wrong for a multiple one, for zeros, for a Ritz
value that has not converged, and for a ghost copy; the spectrum stays normalised and smooth in each
case. Oracles: matrices with prescribed eigenvalues, a dense Hessian, and counting.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

import prescribed_spectra
from blockspectra import Spectra
from blockspectra.lanczos import lanczos
from blockspectra.quadrature import deflated_quadrature, gauss_quadrature, ritz, single
from prescribed_spectra import rms, semicircle

PROBES = 20


def runs_of(eigenvalues, steps, probes=PROBES, *, seed=0, dtype=torch.float64, **kept):
    """α, β and steps taken of Lanczos on a dense matrix with these eigenvalues, (probe, step)."""
    random = np.random.default_rng(seed)
    axis = torch.from_numpy(random.standard_normal(len(eigenvalues)))
    axis = (axis / axis.norm()).to(dtype)
    values = torch.from_numpy(eigenvalues).to(dtype)

    def reflected(x):
        return x - 2 * (x @ axis)[..., None] * axis

    start = torch.from_numpy(random.standard_normal((probes, len(eigenvalues))))
    run = lanczos(lambda v: reflected(values * reflected(v.to(dtype))), start, steps, **kept)
    return tuple(x.numpy() for x in run[:4])


SPECTRA = prescribed_spectra.SPECTRA | {
    "low rank, both signs": lambda: np.append(np.zeros(480), np.linspace(-3, 5, 20)),
}
FALLS = {  # to which share of the distance to the exact spectrum
    "zeros, a bulk and outliers": 0.3,
    "a power law": 0.2,
    "a convolution": 0.1,
    "low rank, both signs": 1e-9,
}


def distances(eigenvalues, nodes, weights):
    """Wasserstein-1 distance to the exact spectrum, per probe, over the rms eigenvalue."""
    pairs = zip(nodes, weights + 1e-300, strict=True)
    return np.array([wasserstein_distance(eigenvalues, n, None, w) for n, w in pairs]) / rms(
        eigenvalues
    )


def both(eigenvalues, steps, probes=PROBES, together=1, **settings):
    """Distances of Gauss quadrature and of the deflated one, ``together`` probes at a time."""
    alpha, beta, taken, _ = runs_of(eigenvalues, steps, probes, **settings)
    gauss = gauss_quadrature(alpha, beta, taken)
    groups = [x.reshape(-1, together, *x.shape[1:]) for x in (alpha, beta, taken)]
    deflated = deflated_quadrature(*groups, [len(eigenvalues)] * len(groups[0]))
    pooled = [[x.reshape(len(groups[0]), -1) for x in pair] for pair in (gauss, deflated)]
    return [distances(eigenvalues, nodes, weights).mean() for nodes, weights in pooled]


# Ritz values


@given(steps=st.integers(1, 30), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_ritz_values_are_the_gauss_nodes_and_an_eigenvalue_is_within_each_residual(steps, seed):
    eigenvalues = np.random.default_rng(seed).standard_normal(30) ** 3
    alpha, beta, taken, _ = runs_of(eigenvalues, steps, 1, seed=seed)
    run = ritz(alpha[0], beta[0])
    nodes, weights = gauss_quadrature(alpha, beta, taken)
    np.testing.assert_allclose(run.nodes, nodes[0], atol=1e-12)
    np.testing.assert_allclose(run.weights, weights[0], atol=1e-12)
    away = np.abs(run.nodes[:, None] - eigenvalues).min(1)
    assert (away <= run.residuals + 1e-12).all()
    if steps == 30:
        assert (run.residuals == 0).all()


# what is exact


def test_as_many_steps_as_parameters_know_the_whole_spectrum_multiple_eigenvalues_too():
    eigenvalues = np.array([-2.0, 0, 0.5, 0.5 + 1e-9, 3, 8])
    alpha, beta, taken, _ = runs_of(eigenvalues, 6, 1)
    assert taken.tolist() == [6]
    nodes, weights = deflated_quadrature(alpha[None], beta[None], taken[None], [6])
    np.testing.assert_allclose(nodes[0, 0], eigenvalues, atol=1e-12)
    assert (weights == 1 / 6).all()


def test_a_single_probe_of_a_matrix_of_low_rank_gives_its_spectrum_exactly():
    eigenvalues = SPECTRA["low rank, both signs"]()
    gauss, deflated = both(eigenvalues, 30)
    assert gauss > 0.02
    assert deflated < 1e-12


@pytest.mark.parametrize(("name", "share"), FALLS.items())
@pytest.mark.parametrize("together", [1, 4])
def test_the_distance_to_the_exact_spectrum_falls(name, share, together):
    gauss, deflated = both(SPECTRA[name](), 40, together=together)
    assert deflated < share * gauss


def test_traces_stay_unbiased_and_scatter_far_less():
    eigenvalues = np.append(semicircle(140) + 1, np.geomspace(4, 50, 10))
    alpha, beta, taken, _ = (x.reshape(20, 3, *x.shape[1:]) for x in runs_of(eigenvalues, 30, 60))
    deflated = deflated_quadrature(alpha, beta, taken, [150] * 20)
    gauss = gauss_quadrature(alpha, beta, taken)
    means = [(n * w).reshape(20, -1).sum(1) / 3 for n, w in (gauss, deflated)]
    scatter = [mean.std(ddof=1) for mean in means]
    assert scatter[1] < scatter[0] / 5
    for mean, error in zip(means, scatter, strict=True):
        assert abs(mean.mean() - eigenvalues.mean()) < 4 * error / 20**0.5


@given(steps=st.integers(1, 25), probes=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_weights_are_those_of_a_probability_and_nodes_stay_where_they_are(steps, probes, seed):
    random = np.random.default_rng(seed)
    eigenvalues = random.choice([0.0, 1.0, *random.standard_cauchy(20)], 40)
    alpha, beta, taken, _ = runs_of(eigenvalues, steps, probes, seed=seed)
    nodes, weights = deflated_quadrature(alpha[None], beta[None], taken[None], [40])
    gauss = gauss_quadrature(alpha, beta, taken)[0]
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(nodes[0], gauss, atol=1e-10 * np.abs(eigenvalues).max())
    for k in range(probes):
        assert not weights[0, k, taken[k] :].any()


# what must keep its Gauss weight


def found(eigenvalues, steps, probes):
    """Ritz values that count as single, of each probe, all probes judged together."""
    alpha, beta, taken, _ = runs_of(eigenvalues, steps, probes)
    runs = [ritz(a[:m], b[:m]) for a, b, m in zip(alpha, beta, taken, strict=True)]
    masks = single(runs, len(eigenvalues))
    return [run.nodes[mask] for run, mask in zip(runs, masks, strict=True)]


@pytest.mark.parametrize("zeros", [2, 3, 300])
def test_zeros_are_never_single_even_a_few_of_them(zeros):
    eigenvalues = np.append(np.zeros(zeros), np.geomspace(1, 1e3, 20))
    for nodes in found(eigenvalues, 21, PROBES):
        assert len(nodes) >= 15
        assert np.abs(nodes[:, None] - eigenvalues[zeros:]).min(1).max() < 0.01


def test_ritz_values_within_a_bulk_are_not_eigenvalues():
    for nodes in found(semicircle(500), 30, PROBES):
        assert len(nodes) <= 1


@pytest.mark.parametrize(("times", "probes"), [(60, 1), (8, 6), (5, 10)])
def test_a_multiple_eigenvalue_is_told_by_its_weight(times, probes):
    eigenvalues = np.concatenate([np.zeros(400), np.full(times, 3.0), np.arange(4.0, 10)])
    for nodes in found(eigenvalues, 9, probes):
        assert np.abs(nodes - 3).min() > 0.5
        assert len(nodes) == 6


@pytest.mark.parametrize(("copies", "probes"), [(10, 1), (3, 3), (2, 10)])
def test_a_hessian_that_is_the_same_for_every_output_is_told_by_all_its_weights(copies, probes):
    """A last layer under a squared loss is I ⊗ A: no eigenvalue of it is single."""
    eigenvalues = np.repeat(np.geomspace(1e-3, 1, 60), copies)
    assert not any(len(nodes) for nodes in found(eigenvalues, 30, probes))


@pytest.mark.parametrize("copies", [2, 3])
def test_where_nothing_is_left_for_the_other_eigenvalues_some_must_be_multiple(copies):
    eigenvalues = np.append(np.repeat([5.0, 7.0], copies), np.arange(8.0, 14))
    gauss, deflated = both(eigenvalues, 8)
    assert deflated == pytest.approx(gauss, rel=1e-12)


def test_with_ragged_multiplicities_ten_probes_are_no_further_from_the_truth_than_before():
    eigenvalues = np.concatenate(
        [np.zeros(250), semicircle(220), np.repeat(np.geomspace(1.5, 20, 20), [1, 1, 2, 6] * 5)]
    )
    gauss, deflated = both(eigenvalues, 60, 60, together=10)
    assert deflated < 1.1 * gauss


# rounding


@pytest.mark.parametrize("name", SPECTRA)
def test_float32_products_and_basis_find_the_same_eigenvalues(name):
    eigenvalues = SPECTRA[name]()
    exact, rounded = (
        both(eigenvalues, 40, **kept)[1]
        for kept in ({}, {"dtype": torch.float32, "basis": torch.float32})
    )
    assert rounded < 1.05 * exact + 1e-5
    loss = runs_of(eigenvalues, 20, 2, dtype=torch.float32, basis=torch.float32)[3]
    assert (loss < 1e-5).all()


def test_ghost_copies_would_count_so_a_basis_that_is_not_orthogonal_is_refused():
    eigenvalues = SPECTRA["a power law"]()
    _, kept = both(eigenvalues, 80)
    _, ghosts = both(eigenvalues, 80, reorthogonalize=False)
    assert ghosts > 10 * kept
    arrays = [x[None] for x in runs_of(eigenvalues, 80, 2, reorthogonalize=False)]
    spectra = Spectra(["block"], [len(eigenvalues)], *arrays)
    with pytest.raises(ValueError, match="compute the spectra again with basis"):
        spectra.deflated()
    arrays = [x[None] for x in runs_of(eigenvalues, 80, 2)]
    assert Spectra(["block"], [len(eigenvalues)], *arrays).deflated().meta["deflated"]


def test_missing_probes_stay_empty_and_do_not_matter():
    eigenvalues = SPECTRA["zeros, a bulk and outliers"]()
    alpha, beta, taken, _ = (x[None].copy() for x in runs_of(eigenvalues, 30, 3))
    two = deflated_quadrature(alpha[:, :2], beta[:, :2], taken[:, :2], [500])
    for x in (alpha, beta, taken):
        x[:, 2] = 0
    three = deflated_quadrature(alpha, beta, taken, [500])
    for part, whole in zip(two, three, strict=True):
        assert np.array_equal(part, whole[:, :2])
        assert not whole[:, 2].any()
