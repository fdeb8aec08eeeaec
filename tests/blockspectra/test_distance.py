"""Only this file sees a number called a distance that is not one, or not the mean it claims to be.

A sum instead of a mean, a divergence above ln 2, a result that moves with the grid or the loss's
units, or an error bar that covers nothing would each look like a finding about a model. Oracles:
scipy, formulas by hand, and simulated probes of known spectra.
"""

from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from blockspectra import Spectra, heterogeneity, js0, js_matrix
from blockspectra.distance import (
    AXES,
    MEASURES,
    binned_density,
    jackknife,
    log_spread,
    noise_floor,
    pairwise,
    shift_divergence,
    signed_log,
    zero_share,
)
from blockspectra.lanczos import lanczos
from prescribed_spectra import ragged

LN2 = log(2)


def points(*blocks, sizes=None):
    """Spectra of one Lanczos step: each probe of each block sees one eigenvalue, (block, probe)."""
    alpha = np.array(blocks, dtype=np.float64)[..., None]
    count, probes = alpha.shape[:2]
    names = [f"b{i}" for i in range(count)]
    taken = np.ones((count, probes), dtype=np.int64)
    settings = (alpha, np.zeros_like(alpha), taken, np.zeros((count, probes)))
    return Spectra(names, sizes or [10] * count, *settings)


def simulated(eigenvalues, probes, steps=6, seed=0):
    """Spectra of diagonal matrices by real Lanczos runs, (block, d) → (block, probe, step)."""
    random = np.random.default_rng(seed)
    diagonal = torch.from_numpy(np.array(eigenvalues))[:, None]  # (block, 1, d)
    start = torch.from_numpy(random.standard_normal((len(diagonal), probes, diagonal.shape[-1])))
    run = lanczos(lambda v: diagonal * v, start, steps)
    names, sizes = [f"b{i}" for i in range(len(diagonal))], [diagonal.shape[-1]] * len(diagonal)
    return Spectra(names, sizes, *(x.numpy() for x in run[:4]))


THREE = simulated([np.logspace(-3, 0, 40), np.logspace(-5, 1, 40), np.linspace(-1, 2, 40)], 6)


def dirichlet(seed, rows=4, bins=12):
    """Rows of a simplex, with exact zeros among the entries."""
    random = np.random.default_rng(seed)
    mass = random.dirichlet(np.full(bins, 0.3), rows) * (random.random((rows, bins)) < 0.7)
    mass[:, 0] += 1e-3
    return mass / mass.sum(1, keepdims=True)


# the measures


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_js_is_scipys_squared_and_in_its_bounds_symmetric_and_zero_on_the_diagonal(seed):
    mass = dirichlet(seed)
    js = pairwise(mass, 0.1)
    expected = [[jensenshannon(p, q) ** 2 for q in mass] for p in mass]
    np.testing.assert_allclose(js, np.nan_to_num(expected), atol=1e-12)
    assert ((js >= 0) & (js <= LN2)).all()
    assert (js == js.T).all()
    assert (np.diag(js) == 0).all()


@given(seed=st.integers(0, 10_000), measure=st.sampled_from(["sqrt", "w1"]))
@settings(max_examples=50, deadline=None)
def test_the_square_root_and_wasserstein_are_metrics(seed, measure):
    d = pairwise(dirichlet(seed), 0.1, measure)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-12).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_wasserstein_is_scipys_on_the_bins_centres(seed):
    mass, centres = dirichlet(seed), np.arange(12) * 0.25
    expected = [[wasserstein_distance(centres, centres, p, q) for q in mass] for p in mass]
    np.testing.assert_allclose(pairwise(mass, 0.25, "w1"), expected, atol=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_two_spectra_far_apart_are_ln_2_nats_apart(axis):
    matrix = js_matrix(points([-1e4], [1e4]), axis=axis)
    assert matrix.loc["b0", "b1"] == pytest.approx(LN2, abs=1e-12)
    assert list(matrix.index) == list(matrix.columns) == ["b0", "b1"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("measure", MEASURES)
def test_every_matrix_is_symmetric_with_a_zero_diagonal(axis, measure):
    matrix = js_matrix(THREE, axis=axis, measure=measure).to_numpy()
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12)
    assert (np.diag(matrix) == 0).all()
    assert (matrix[np.triu_indices(3, 1)] > 0).all()
    if measure == "js":
        assert matrix.max() <= LN2


def test_wasserstein_with_a_narrow_sigma_is_that_of_the_raw_eigenvalues():
    nodes, weights = THREE.quadrature
    matrix = js_matrix(THREE, axis="raw", measure="w1", sigma=2e-3).to_numpy()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        values = [nodes[i].ravel(), nodes[j].ravel(), weights[i].ravel(), weights[j].ravel()]
        assert matrix[i, j] == pytest.approx(wasserstein_distance(*values), abs=2e-3)


def test_the_sum_is_js_over_the_bin_width_and_grows_as_the_grid_is_refined():
    sums, widths = [], []
    for sigma in (0.4, 0.2, 0.1):
        binned = binned_density(THREE, sigma=sigma)
        js, total = (js_matrix(THREE, sigma=sigma, measure=m).to_numpy() for m in ("js", "sum"))
        np.testing.assert_allclose(total, js / binned.width, rtol=1e-12)
        widths.append(binned.width)
    for bins in (200, 400, 800):  # one smoothed spectrum, three grids
        edges = np.linspace(-5, 15, bins + 1)
        mass = THREE.mass(edges, 0.3).mean(1)
        sums.append([pairwise(mass, 20 / bins, m)[0, 1] for m in ("js", "sum")])
    (js, total) = np.array(sums).T
    np.testing.assert_allclose(js, js[0], rtol=0.01)
    np.testing.assert_allclose(total[1:] / total[:-1], 2, rtol=0.01)
    assert (np.diff(widths) < 0).all()


# the axes


@given(factor=st.floats(-6, 6).map(lambda x: 10**x))
@settings(max_examples=25, deadline=None)
def test_the_signed_log_axis_does_not_see_a_common_factor(factor):
    scaled = scale(THREE, factor)
    for measure in MEASURES:
        left, right = (js_matrix(s, measure=measure).to_numpy() for s in (THREE, scaled))
        np.testing.assert_allclose(right, left, rtol=1e-7, atol=1e-9)


def scale(spectra, factor):
    arrays = (spectra.taken, spectra.orthogonality)
    scaled = (spectra.alpha * factor, spectra.beta * factor)
    return Spectra(spectra.names, spectra.sizes, *scaled, *arrays)


def test_the_raw_axis_does_see_a_common_factor():
    small, large = (js0(scale(THREE, f), axis="raw", sigma=0.1).mean for f in (1e-3, 10))
    assert 100 * small < large


def test_the_signed_log_is_odd_linear_below_the_scale_and_counts_decades_above():
    values = np.array([-1e3, -1e-6, 0, 1e-6, 1e3])
    found = signed_log(values, 1e-3)
    assert (found == -found[::-1]).all()
    assert found[4] == pytest.approx(6, abs=1e-6)
    assert found[3] == pytest.approx(1e-3 / log(10), rel=1e-3)


@pytest.mark.parametrize("axis", AXES)
def test_all_blocks_share_one_uniform_grid_that_holds_all_of_them(axis):
    binned = binned_density(THREE, axis=axis, sigma=0.05)
    np.testing.assert_allclose(np.diff(binned.edges), binned.width, rtol=1e-9)
    assert 0 < binned.width <= 0.05 / 2
    assert binned.mass.shape == (3, 6, len(binned.edges) - 1)
    np.testing.assert_allclose(binned.mass.sum(-1), 1, atol=1e-12)
    assert binned.mass[..., [0, -1]].max() < 1e-6  # nothing is piled up at the ends


def test_a_very_wide_spectrum_gets_no_more_bins_than_the_released_code_has():
    wide = binned_density(points([0.0], [1e6]), axis="raw")
    assert wide.mass.shape[-1] == 50_000
    assert js_matrix(points([0.0], [1e6]), axis="raw").loc["b0", "b1"] == pytest.approx(LN2)


def test_zero_hessians_are_equal_to_each_other_and_not_to_others():
    blocks = points([0.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    matrix = js_matrix(blocks).to_numpy()
    assert matrix[0, 1] == 0
    assert matrix[0, 2] == pytest.approx(shift_divergence(np.log10(1 + 1e3)), abs=3e-5)
    assert js_matrix(blocks, sigma=0.1).to_numpy()[0, 2] == pytest.approx(LN2, abs=1e-9)
    assert js0(points([0.0, 0.0], [0.0, 0.0])) == (0, 0)


# JS⁰ and its uncertainty


def test_js0_is_the_mean_over_unordered_pairs():
    here, there = [1.0, 1.0], [-1.0, -1.0]
    assert js0(points(here, here, there)).mean == pytest.approx(2 / 3 * LN2, abs=1e-12)
    assert js0(points(here, here, here, there)).mean == pytest.approx(LN2 / 2, abs=1e-12)
    matrix = js_matrix(THREE).to_numpy()
    exact = (matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3
    assert js0(THREE).mean == pytest.approx(exact, rel=1e-12)


def test_js0_has_no_standard_error_with_one_probe_and_none_where_all_agree():
    assert np.isnan(js0(points([1.0], [2.0])).standard_error)
    assert js0(points([1.0] * 4, [2.0] * 4)).standard_error == pytest.approx(0, abs=1e-12)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_jackknife_of_a_mean_has_its_standard_error(values):
    found = jackknife(lambda kept: float(np.mean([values[k] for k in kept])), len(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    exact = np.std(values, ddof=1) / len(values) ** 0.5
    assert found.standard_error == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_two_standard_errors_cover_what_many_probes_give():
    eigenvalues = [np.logspace(-3, 0, 60), np.logspace(-2, 0.5, 60), np.linspace(0, 1, 60)]
    many = simulated(eigenvalues, 1200)
    truth = js0(many.select(probes=range(0, 1200, 3))).mean
    estimates = [js0(many.select(probes=range(k, k + 20))) for k in range(0, 1200, 20)]
    means, errors = np.array(estimates).T
    assert (np.abs(means - truth) < 2 * errors).mean() > 0.85
    assert 0.6 < errors.mean() / means.std(ddof=1) < 1.6


def test_the_noise_floor_is_zero_for_equal_probes_and_far_below_a_real_difference():
    assert noise_floor(points([1.0] * 4, [50.0] * 4)) == 0
    assert np.isnan(noise_floor(points([1.0], [2.0])))
    apart = points([1.0, 5.0, 1.0, 5.0], [2.0, 2.0, 2.0, 2.0])
    assert noise_floor(apart, axis="raw") == pytest.approx(LN2 / 2, abs=1e-9)  # even against odd
    assert 0 < noise_floor(THREE) < js0(THREE).mean / 5


# the spread of λ_max and of the trace


def test_log_spread_is_the_standard_deviation_of_decades_over_blocks():
    spectra = points([1.0, 0.5], [10.0, 5.0], [100.0, 50.0], sizes=[4, 4, 4])
    assert log_spread(spectra, "largest").mean == pytest.approx(1)
    assert log_spread(spectra, "trace").mean == pytest.approx(1)
    sizes = points([1.0, 1.0], [1.0, 1.0], sizes=[1, 100])
    assert log_spread(sizes, "largest").mean == 0
    assert log_spread(sizes, "trace").mean == pytest.approx(2**0.5)  # std of 0 and 2 decades


def test_log_spread_leaves_out_zero_hessians_and_negative_ones():
    spectra = points([1.0, 1.0], [100.0, 100.0], [0.0, 0.0], [-1.0, -1.0])
    assert log_spread(spectra, "largest").mean == pytest.approx(2**0.5)
    assert np.isnan(log_spread(points([0.0, 0.0], [1.0, 1.0])).mean)


def test_the_largest_is_over_probes_and_its_error_the_jackknifes():
    spectra = points([1.0, 10.0], [1.0, 1.0])
    found = log_spread(spectra, "largest")
    assert found.mean == pytest.approx(1 / 2**0.5)
    left = np.array([1, 0]) / 2**0.5  # without the second probe and without the first
    assert found.standard_error == pytest.approx((1 / 2 * ((left - left.mean()) ** 2).sum()) ** 0.5)


def test_heterogeneity_lists_every_measure_with_its_error_and_unit():
    table = heterogeneity(THREE)
    assert list(table.columns) == ["value", "standard_error", "unit"]
    assert table.loc["js, signed-log", "value"] == js0(THREE).mean
    assert table.loc["w1, raw", "value"] == js0(THREE, axis="raw", measure="w1").mean
    assert table.loc["w1, signed-log", "unit"] == "decades"
    assert table.loc["spread of λ_max", "value"] == log_spread(THREE).mean
    assert {f"{m}, {a}" for m in MEASURES for a in AXES} <= set(table.index)
    assert np.isfinite(table[["value", "standard_error"]].to_numpy()).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: js_matrix(THREE, axis="log"), "Unknown axis 'log': choose one of signed-log, raw"),
        (lambda: js0(THREE, measure="kl"), "Unknown measure 'kl': choose one of js, sqrt, sum, w1"),
        (lambda: js0(THREE, sigma=0), "sigma must be positive, not 0"),
        (lambda: js0(THREE, sigma=-1.0), "sigma must be positive, not -1"),
        (lambda: js0(THREE, sigma=float("nan")), "sigma must be positive, not nan"),
        (lambda: js0(THREE.select([0])), "compares blocks: give at least two"),
        (lambda: log_spread(THREE, "median"), "Unknown quantity 'median'"),
        (lambda: js0(THREE, sigmma=1), "^Unknown setting 'sigmma': choose one of axis, sigma, "),
        (lambda: js_matrix(THREE, zero=False), "^Unknown setting 'zero': choose"),
        (lambda: noise_floor(THREE, measures="w1"), "^Unknown setting 'measures': choose"),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


# without the zeros, and what a number means


def test_without_its_zeros_a_spectrum_is_compared_by_the_rest():
    few, many = np.repeat([0.0, 1.0], [10, 30]), np.repeat([0.0, 1.0], [30, 10])
    spectra = simulated([few, many], probes=3, steps=2)
    assert js0(spectra).mean > 0.05
    assert js0(spectra, zeros=False).mean == pytest.approx(0, abs=1e-9)
    mass = binned_density(spectra, zeros=False).mass
    np.testing.assert_allclose(mass.sum(-1), 1, atol=1e-12)
    with pytest.raises(ValueError, match="all zeros: leave it out, or keep the zeros"):
        js0(points([0.0, 0.0], [1.0, 1.0]), zeros=False)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_zeros_are_those_of_the_model_whatever_unit_the_loss_has(factor):
    few, many = np.repeat([0.0, 3e-7, 1.0], [10, 5, 35]), np.repeat([0.0, 3e-6, 1.0], [25, 5, 20])
    spectra = simulated([factor * few, factor * many], probes=3, steps=3)
    zeros = [
        [(w[n < 1e-6 * factor]).sum() for n, w in zip(*rows, strict=True)]
        for rows in zip(*spectra.quadrature, strict=True)
    ]
    np.testing.assert_allclose(zero_share(spectra), np.mean(zeros, 1), rtol=1e-9)
    assert 0 < zero_share(spectra)[0] < 1
    kept = binned_density(spectra, zeros=False)
    centres = (kept.edges[1:] + kept.edges[:-1]) / 2
    # all that is left of the first block is its one large eigenvalue, of the second 3e-6 too
    top = np.log10(1 + 1e3)
    assert kept.mass[0] @ centres == pytest.approx(top, abs=0.01)
    assert (kept.mass[1] @ centres < 0.95 * top).all()


def test_a_block_seven_decades_below_another_is_all_zeros():
    apart = points([1e-7, 1e-7], [1.0, 1.0])
    assert zero_share(apart).tolist() == [1, 0]
    assert zero_share(apart.select([0])).tolist() == [0]  # zero is relative to what is compared
    with pytest.raises(ValueError, match="all zeros: leave it out, or keep the zeros"):
        binned_density(apart, zeros=False)


def test_heterogeneity_of_a_model_with_a_zero_hessian_is_a_table_all_the_same():
    table = heterogeneity(points([0.0, 0.0], [1.0, 2.0], [1.0, 3.0]))
    assert table.loc["js, signed-log", "value"] > 0
    assert np.isnan(table.loc["js, signed-log, no zeros", "value"])


def test_shift_divergence_is_that_of_two_eigenvalues_decades_apart():
    values = [shift_divergence(d) for d in (0, 0.1, 0.3, 1, 3, 10)]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(values) > 0).all()
    assert values[-1] == pytest.approx(LN2, abs=1e-6)
    measured = js_matrix(points([1.0], [10.0])).loc["b0", "b1"]
    assert shift_divergence(1) == pytest.approx(measured, rel=0.01)


# blocks with different numbers of probes


UNEVEN = ragged(THREE, [6, 3, 2])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("measure", MEASURES)
def test_blocks_are_compared_by_the_mean_over_the_probes_that_each_has(axis, measure):
    grid = {"axis": axis, "scale": 0.01, "sigma": 0.1}
    binned = binned_density(UNEVEN, **grid)
    assert np.isnan(binned.mass).any(-1).sum(1).tolist() == [0, 3, 4]
    move = None if axis == "raw" else lambda x: signed_log(x, 0.01)
    mass = THREE.mass(binned.edges, 0.1, move)
    means = np.stack([mass[i, :count].mean(0) for i, count in enumerate([6, 3, 2])])
    by_hand = pairwise(means, binned.width, measure)
    found = js_matrix(UNEVEN, measure=measure, **grid).to_numpy()
    np.testing.assert_allclose(found, by_hand, rtol=1e-10, atol=1e-14)
    estimate = js0(UNEVEN, measure=measure, **grid)
    assert estimate.mean == pytest.approx(by_hand[np.triu_indices(3, 1)].mean(), rel=1e-10)
    assert 0 < estimate.standard_error < estimate.mean


def test_zeros_floor_and_spread_count_the_probes_that_a_block_has():
    alone = [THREE.select([i], probes=range(count)) for i, count in enumerate([6, 3, 2])]
    values = np.array([one.largest[0] for one in alone])
    assert log_spread(UNEVEN).mean == pytest.approx(np.log10(values).std(ddof=1), rel=1e-12)
    traces = np.array([one.traces().mean() for one in alone])
    found = log_spread(UNEVEN, "trace").mean
    assert found == pytest.approx(np.log10(np.abs(traces)).std(ddof=1), rel=1e-12)
    assert 0 < noise_floor(THREE) < noise_floor(UNEVEN)
    settings = {"axis": "raw", "sigma": 0.1}
    bare = ragged(THREE, [6, 1, 1])  # the floor is that of the one block with probes to split
    assert noise_floor(bare, **settings) == pytest.approx(
        noise_floor(THREE.select([0]), **settings), rel=0.05
    )
    zeros = simulated([np.repeat([0.0, 1.0], [10, 30]), np.repeat([0.0, 1.0], [30, 10])], 4, 2)
    shares_of = [zero_share(zeros.select([i], probes=range(n)))[0] for i, n in enumerate([4, 2])]
    np.testing.assert_allclose(zero_share(ragged(zeros, [4, 2])), shares_of, rtol=1e-12)
    assert js0(ragged(zeros, [4, 2]), zeros=False).mean == pytest.approx(0, abs=1e-9)


def test_a_table_of_uneven_blocks_is_complete_but_has_no_errors_with_a_single_probe():
    table = heterogeneity(UNEVEN)[["value", "standard_error"]].to_numpy()
    assert np.isfinite(table).all()
    single = heterogeneity(ragged(THREE, [6, 3, 1]))
    assert np.isfinite(single["value"]).all()
    assert np.isnan(single["standard_error"]).all()


def test_the_jackknife_of_uneven_blocks_errs_on_the_large_side_by_at_most_n_over_n_minus_1():
    few, many = [1.0, 5.0], [3.0, 4.0, 8.0, 9.0, 2.0, 0.0, 7.0, 1.0, 5.0, 6.0]

    def mean(kept):
        blocks = ([x[k] for k in kept if k < len(x)] for x in (few, many))
        return float(np.mean([np.mean(block) for block in blocks]))

    found = jackknife(mean, 10, 2).standard_error ** 2
    exact = (np.var(few, ddof=1) / 2 + np.var(many, ddof=1) / 10) / 4
    assert exact < found < 2 * exact
    assert np.isnan(jackknife(mean, 10, 1).standard_error)


def test_two_standard_errors_of_uneven_blocks_cover_what_many_probes_give():
    eigenvalues = [np.logspace(-3, 0, 60), np.logspace(-2, 0.5, 60), np.linspace(0, 1, 60)]
    many = simulated(eigenvalues, 1200)
    parts = [ragged(many.select(probes=range(k, k + 20)), [20, 5, 3]) for k in range(0, 1200, 20)]
    means, errors = np.array([js0(part) for part in parts]).T
    assert (np.abs(means - means.mean()) < 2 * errors).mean() > 0.85
    assert 0.9 < errors.mean() / means.std(ddof=1) < 1.6
