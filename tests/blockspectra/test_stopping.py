"""Only this file sees an error estimate that is no estimate of the error.

One that is always small, or large, or that falls with the steps at another rate than the error,
still stops every run somewhere. Oracles: distributions whose Gauss quadrature is known in closed
form, matrices with prescribed eigenvalues, dense Hessians, and the beta distribution.
"""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

import prescribed_spectra
from blockspectra.lanczos import lanczos
from blockspectra.quadrature import deflated_quadrature, ritz
from blockspectra.stopping import (
    BY_STEPS,
    FEWEST,
    enough_steps,
    probes_error,
    probes_needed,
    probes_wanted,
    spectrum_error,
    steps_error,
)
from prescribed_spectra import hessian, rms, semicircle

MANY = 10**9  # parameters: as good as a continuous spectrum
ROUNDING = 1e-9  # errors below this are those of the eigenvalues themselves


SPECTRA = prescribed_spectra.SPECTRA | {
    "a semicircle": lambda: semicircle(600),
    "a bulk and outliers": lambda: np.append(semicircle(580), np.geomspace(1.5, 20, 20)),
    "both signs": lambda: np.append(np.arange(1, 301) ** -1.0, -(np.arange(1, 301) ** -1.0)),
    "decades": lambda: np.geomspace(1e-6, 1, 400),
    "two clusters": lambda: np.append(1 + 0.01 * semicircle(300), 10 + 0.1 * semicircle(300)),
    "an MLP of a GPT": lambda: hessian("gpt", "h.0.mlp.c_fc"),
}


@cache
def runs_of(name, probes=48, steps=60):
    """α, β, steps taken, (probe, step), and what each probe sees of each eigenvalue."""
    values = torch.from_numpy(SPECTRA[name]())
    random = np.random.default_rng(0)
    start = torch.from_numpy(random.standard_normal((probes, len(values))))
    alpha, beta, taken, _ = (x.numpy() for x in lanczos(lambda v: values * v, start, steps)[:4])
    share = (start / start.norm(dim=-1, keepdim=True)).square().numpy()
    return alpha, beta, taken, share


# by steps: distributions with known coefficients


def uniform(m):
    """Legendre polynomials."""
    k = np.arange(1, m + 1)
    return np.zeros(m), k / np.sqrt(4 * k**2 - 1), lambda x: (x + 1) / 2


def arcsine(m):
    """Chebyshev polynomials of the first kind."""
    return (
        np.zeros(m),
        np.append(0.5**0.5, np.full(m - 1, 0.5)),
        lambda x: 0.5 + np.arcsin(x) / np.pi,
    )


def wigner(m):
    """Chebyshev polynomials of the second kind: the semicircle law."""

    def below(x):
        return 0.5 + (x * np.sqrt(1 - x**2) + np.arcsin(x)) / np.pi

    return np.zeros(m), np.full(m, 0.5), below


def area_between(below, nodes, weights):
    x = np.linspace(-1, 1, 200_001)
    staircase = np.append(0, weights.cumsum())[np.searchsorted(nodes, x, side="right")]
    return np.abs(below(x) - staircase).mean() * 2


@pytest.mark.parametrize("family", [uniform, arcsine, wigner])
@pytest.mark.parametrize("m", [2, 5, 20, 100])
def test_the_steps_error_of_a_smooth_density_is_the_error(family, m):
    alpha, beta, below = family(m)
    nodes, weights, _ = ritz(alpha, beta)
    error = area_between(below, nodes, weights) / np.sqrt(weights @ nodes**2)
    assert steps_error(alpha, beta, MANY) == pytest.approx(error, rel={2: 0.4, 5: 0.2}.get(m, 0.05))


@pytest.mark.parametrize("family", [uniform, arcsine, wigner])
def test_the_steps_error_falls_as_one_over_the_steps_and_does_not_see_a_factor(family):
    alpha, beta, _ = family(160)
    errors = [steps_error(alpha[:m], beta[:m], MANY) for m in (20, 40, 80, 160)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.05)
    scaled = steps_error(1e-30 * alpha, 1e-30 * beta, MANY)
    assert scaled == pytest.approx(errors[-1], rel=1e-9)


def test_one_step_knows_the_mean_and_the_spread_about_it():
    assert steps_error(np.array([3.0]), np.array([0.6]), 10) == pytest.approx(0.2)


# by steps: matrices


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("m", [10, 20, 40, 60])
def test_the_steps_error_is_that_of_the_probe_within_a_factor(name, m):
    eigenvalues, (alpha, beta, taken, share) = SPECTRA[name](), runs_of(name)
    found, exact = [], []
    for k in range(8):
        steps = min(m, taken[k])
        found.append(steps_error(alpha[k, :steps], beta[k, :steps], len(eigenvalues)))
        nodes, weights, _ = ritz(alpha[k, :steps], beta[k, :steps])
        exact.append(wasserstein_distance(eigenvalues, nodes, share[k], weights))
    exact = np.mean(exact) / rms(eigenvalues)
    if exact < 1e-12:  # the Krylov space is exhausted
        assert not any(found)
    else:  # too large rather than too small, most of all where little is left to find
        assert 0.5 * exact < np.mean(found) < 6 * exact


def test_an_exhausted_krylov_space_leaves_no_error_by_steps():
    eigenvalues = torch.tensor([0.0, 0, 0, 1, 2], dtype=torch.float64)
    run = lanczos(lambda v: eigenvalues * v, torch.ones(5, dtype=torch.float64), 5)
    alpha, beta = run.alpha.numpy(), run.beta.numpy()
    assert int(run.taken) == 3
    assert steps_error(alpha, beta, 5) == steps_error(alpha[:3], beta[:3], 100) == 0
    assert steps_error(alpha[:2], beta[:2], 5) > 0
    assert steps_error(np.zeros(1), np.zeros(1), 7) == 0  # a zero Hessian


# by probes


@given(below=st.integers(1, 29), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_share_that_a_probe_sees_has_the_beta_distributions_variance(below, seed):
    start = np.random.default_rng(seed).standard_normal((20_000, 30))
    seen = (start[:, :below] ** 2).sum(1) / (start**2).sum(1)
    share = below / 30
    assert seen.var() == pytest.approx(2 * share * (1 - share) / 32, rel=0.08)


def two_values(size, outlier, probes):
    """Runs on a matrix with eigenvalues -1 and 1, half each, and perhaps one more."""
    values = torch.from_numpy(np.append(np.repeat([-1.0, 1.0], size // 2), outlier))
    random = np.random.default_rng(0)
    start = torch.from_numpy(random.standard_normal((probes, len(values))))
    run = lanczos(lambda v: values * v, start, 3)
    return *(x.numpy() for x in run[:3]), len(values)


@pytest.mark.parametrize("probes", [1, 4, 25])
def test_the_probes_error_of_two_eigenvalues_is_known_and_a_single_outlier_adds_nothing(probes):
    known = np.sqrt(2 / np.pi) * 2 * np.sqrt(2 / 4 / (402 * probes))
    error = probes_error(*two_values(400, [], probes))
    assert error == pytest.approx(known, rel=0.02)
    far = probes_error(*two_values(400, [1e3], probes))
    assert far * ((400 + 1e6) / 401) ** 0.5 == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("probes", [1, 4])
def test_the_probes_error_is_that_of_many_trials_within_a_factor_of_two(name, probes):
    eigenvalues, (alpha, beta, taken, _) = SPECTRA[name](), runs_of(name)
    groups = [x.reshape(-1, probes, *x.shape[1:]) for x in (alpha, beta, taken)]
    size = len(eigenvalues)
    nodes, weights = deflated_quadrature(*groups, [size] * len(groups[0]))
    flat = [x.reshape(len(nodes), -1) for x in (nodes, weights + 1e-300)]
    mean = [x.ravel() for x in flat]  # of all probes: only their scatter is looked at
    trials = [wasserstein_distance(n, mean[0], w, mean[1]) for n, w in zip(*flat, strict=True)]
    trials = np.mean(trials) / rms(eigenvalues) / (1 - 1 / len(nodes)) ** 0.5
    found = np.mean([probes_error(*group, size) for group in zip(*groups, strict=True)])
    assert trials / 2 - ROUNDING < found < 2 * trials + ROUNDING


def test_probes_needed_are_those_that_bring_the_error_down_to_the_tolerance():
    alpha, beta, taken, _ = (x[:4] for x in runs_of("a semicircle"))
    error = probes_error(alpha, beta, taken, 600)
    assert probes_needed(alpha, beta, taken, 600, error) in (4, 5)
    assert probes_needed(alpha, beta, taken, 600, 1.001 * error / 3) == 36
    assert probes_needed(alpha, beta, taken, 600, 10.0) == 1
    many = probes_needed(alpha, beta, taken, 600, 0.02)
    assert probes_error(*(x[:many] for x in runs_of("a semicircle")[:3]), 600) < 0.0205
    assert probes_needed(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1,), int), 9, 0.01) == 1


def test_probes_wanted_leave_to_the_probes_what_the_steps_have_not_used_up():
    runs = tuple(x[:4, ...] for x in runs_of("a semicircle")[:3])
    by_steps, by_probes = spectrum_error(*runs, 600)
    tolerance = (by_steps**2 + (by_probes / 3) ** 2) ** 0.5
    assert probes_wanted(*runs, 600, 1.001 * tolerance) == 36
    assert probes_wanted(*runs, 600, 10.0) == 4  # no fewer than there are
    assert probes_wanted(*(x[:1] for x in runs), 600, 10.0) == FEWEST
    # where steps alone exceed the tolerance, probes get a share of it all the same
    short = [x[..., :10] for x in runs[:2]] + [runs[2].clip(max=10)]
    tolerance = spectrum_error(*short, 600)[0] / 2
    left = tolerance * (1 - BY_STEPS**2) ** 0.5
    assert probes_wanted(*short, 600, tolerance) == probes_needed(*short, 600, left) > 4


def test_a_probe_that_knows_all_eigenvalues_wants_no_other():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(12))
    run = lanczos(lambda v: values * v, torch.ones(1, 12, dtype=torch.float64), 12)
    coefficients = [x.numpy() for x in run[:3]]
    assert spectrum_error(*coefficients, 12) == (0, 0)
    assert probes_wanted(*coefficients, 12, 1e-9) == 1


# both


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("steps", "probes"), [(10, 2), (20, 2), (60, 4)])
def test_the_whole_error_is_about_the_sum_of_both(name, steps, probes):
    eigenvalues, (alpha, beta, taken, _) = SPECTRA[name](), runs_of(name)
    size, found, exact = len(eigenvalues), [], []
    for first in range(0, 24, probes):
        part = slice(first, first + probes)
        block = alpha[part, :steps], beta[part, :steps], taken[part].clip(max=steps)
        found.append(sum(spectrum_error(*block, size)))
        nodes, weights = deflated_quadrature(*(x[None] for x in block), [size])
        exact.append(wasserstein_distance(eigenvalues, nodes.ravel(), None, weights.ravel()))
    exact = np.mean(exact) / rms(eigenvalues)
    assert 0.6 * exact - ROUNDING < np.mean(found) < 3 * exact + ROUNDING


@pytest.mark.parametrize("name", SPECTRA)
def test_steps_end_where_they_and_the_probes_together_cost_little_more_than_they_must(name):
    eigenvalues, (alpha, beta, taken, _) = SPECTRA[name](), runs_of(name)
    size, lengths = len(eigenvalues), range(4, int(taken[0]) + 1, 4)
    parts = [(alpha[0, :m], beta[0, :m]) for m in lengths]
    steps = np.array([steps_error(*part, size) for part in parts])
    one = [probes_error(*(x[None] for x in p), np.array([len(p[0])]), size) for p in parts]
    for tolerance in np.geomspace(max(1.1 * steps.min(), 1e-3), 0.5, 5):
        left = np.where(steps < tolerance, tolerance**2 - steps**2, np.nan)
        probes = np.maximum(np.ceil(np.square(one) / left), FEWEST)
        costs = probes * lengths
        ends = (i for i, p in enumerate(parts) if enough_steps(*p, size, tolerance))
        # twice where the error falls much faster than the 1/m that is counted on
        assert costs[next(ends, -1)] <= 2 * np.nanmin(costs)


def test_steps_are_not_enough_while_they_alone_exceed_the_tolerance():
    alpha, beta, _, _ = (x[0, :10] if x.ndim > 1 else x for x in runs_of("a power law"))
    error = steps_error(alpha, beta, 800)
    assert not enough_steps(alpha, beta, 800, error)
    assert enough_steps(alpha, beta, 800, 10 * error)


def test_missing_probes_do_not_count():
    alpha, beta, taken, _ = (x[:3].copy() for x in runs_of("a power law"))
    two = [x[:2] for x in (alpha, beta, taken)]
    for x in (alpha, beta, taken):
        x[2] = 0
    assert spectrum_error(alpha, beta, taken, 800) == spectrum_error(*two, 800)
    assert probes_needed(alpha, beta, taken, 800, 1e-4) == probes_needed(*two, 800, 1e-4)
