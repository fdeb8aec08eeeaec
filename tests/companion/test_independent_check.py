"""Only this file sees the check of stored spectra report agreement where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blockspectra.hessian import dense_hessian
from companion.experiments.independent_check import (
    IndependentCheck,
    IndependentEstimates,
    chosen,
    deviations,
    disagreement,
    largest_eigenvalue,
    trace,
)
from companion.experiments.initial_spectra import InitialSpectra

SPECTRA = InitialSpectra("gpt", "tiny", samples=4, batches=2, steps=4, probes=1)
DEEPER = replace(SPECTRA, steps=12, probes=2)
EIGENVALUES = np.array([*np.linspace(-9, 5, 99), 7.0])


def test_spectra_agree_with_differences_of_plain_gradients(store):
    found = deviations(store.get(IndependentCheck(SPECTRA)))
    assert len(found) == 3
    assert found.max() < 1e-5  # the spectra are float32


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_wrong_coefficient_shows(store, monkeypatch, name):
    plant(monkeypatch, lambda s: replace(s, **{name: getattr(s, name) * 1.01}))
    assert deviations(store.get(IndependentCheck(SPECTRA))).max() > 1e-3


def test_the_largest_eigenvalue_is_found_though_a_negative_one_is_further_from_zero():
    start = np.random.default_rng(0).standard_normal(100)
    value, residual, products = largest_eigenvalue(lambda v: EIGENVALUES * v, start)
    assert value == pytest.approx(7, rel=1e-6)
    assert residual < 0.01
    assert products <= 22


def test_with_too_few_products_the_value_is_too_low_and_the_residual_says_so():
    start = np.random.default_rng(0).standard_normal(100)
    value, residual, _ = largest_eigenvalue(lambda v: EIGENVALUES * v, start, products=5)
    assert value < 6.99
    assert np.abs(EIGENVALUES - value).min() < residual


def test_the_trace_of_a_diagonal_matrix_is_exact():
    found = trace(lambda v: EIGENVALUES * v, 100, np.random.default_rng(0))
    assert found == pytest.approx((EIGENVALUES.sum(), 0), abs=1e-9)


def test_the_error_of_the_trace_is_that_of_its_mean():
    rows = np.random.default_rng(0).standard_normal((100, 100))
    matrix = rows + rows.T
    found = trace(lambda v: matrix @ v, 100, np.random.default_rng(1), probes=400)
    expected = (2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum()) / 400) ** 0.5
    assert found.standard_error == pytest.approx(expected, rel=0.15)
    assert found.mean == pytest.approx(matrix.trace(), abs=4 * expected)


def test_new_estimates_are_those_of_the_dense_hessian_and_agree_with_the_stored_ones(store):
    table = store.get(IndependentEstimates(DEEPER))
    problem = DEEPER.setup(torch.float64).problem
    blocks = chosen(DEEPER.partition(problem.model))
    for (_, block), (_, row) in zip(blocks, table.iterrows(), strict=True):
        exact = dense_hessian(problem, block)
        assert row["block"] == block.name
        assert row["largest_anew"] == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]))
        expected = pytest.approx(float(exact.trace()), abs=4 * row["trace_error_anew"])
        assert row["trace_anew"] == expected
    found = disagreement(table)
    assert found["above"].max() < 1e-5
    assert found["largest"].max() < 1e-2
    assert found["trace"].abs().max() < 4


def test_spectra_that_are_one_per_cent_too_large_show_in_the_largest_eigenvalue(store, monkeypatch):
    plant(monkeypatch, lambda s: replace(s, alpha=s.alpha * 1.01, beta=s.beta * 1.01))
    assert disagreement(store.get(IndependentEstimates(DEEPER)))["above"].min() > 5e-3


def test_a_shift_of_all_eigenvalues_shows_in_the_trace(store, monkeypatch):
    plant(monkeypatch, lambda s: replace(s, alpha=s.alpha + 0.3))
    assert disagreement(store.get(IndependentEstimates(DEEPER)))["trace"].max() < -4


def plant(monkeypatch, fault):
    """Let spectra be stored with a fault."""
    compute = InitialSpectra.compute
    monkeypatch.setattr(InitialSpectra, "compute", lambda job, store: fault(compute(job, store)))
