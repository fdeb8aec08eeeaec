"""Sees a check of a bound that cannot fail, or that compares what rounding or underflow made."""

import numpy as np
import pytest
import torch

from companion.experiments import theory_bounds as bound_runs
from companion.quadratics.convergence import adam_upper_bound, gd_lower_bound
from companion.quadratics.quadratic import Quadratic, eigenvalues


@pytest.fixture
def small():
    """κ = 9, where both bounds are far from 1."""
    return Quadratic.draw([torch.tensor([1.0, 9])], seed=1)


def test_gd_meets_its_bound_at_the_best_step_and_nowhere_else(small):
    table = bound_runs.gd_contractions(small, np.array([0.5, 0.9, 1.0, 1.05]), 20)
    assert table["ratio"][2] == pytest.approx(0.64)  # (8/10)²
    assert (table["ratio"].drop(2) > 0.6405).all()
    assert table["with_square"].tolist() == [0, 0, 0, 0]
    assert table["without_square"][2] == 20


def test_a_bound_that_is_too_high_is_violated(small, monkeypatch):
    monkeypatch.setattr(bound_runs, "gd_lower_bound", lambda kappa: gd_lower_bound(kappa) + 1e-6)
    table = bound_runs.gd_contractions(small, np.array([0.5, 1.0]), 20)
    assert table["with_square"].tolist() == [0, 20]


def test_gaps_from_the_worst_start_lie_on_the_bound(small):
    table = bound_runs.gd_gaps(small, 50, 40).set_index(["curve", "step"])["median"]
    worst, bound = table["from the worst start"], table["bound with the square"]
    np.testing.assert_allclose(worst, bound, rtol=1e-9)
    np.testing.assert_allclose(bound, 0.64**bound.index, rtol=1e-9)
    np.testing.assert_allclose(table["bound without it"], 0.8**bound.index, rtol=1e-9)
    # at the best step all modes shrink alike, if only there are no others than the extremes
    np.testing.assert_allclose(table["from Gaussian starts"], bound, rtol=1e-9)


@pytest.mark.parametrize("case", [3, 4])
def test_adams_bounds_hold_and_the_squared_one_is_the_weaker(case):
    runs = bound_runs.adam_contractions(case, 20, 500)
    assert runs.draws[["plain", "squared"]].to_numpy().sum() == 0
    assert (runs.draws["slack"] >= 1).all()
    last = runs.curves[runs.curves["step"] == 500].set_index("curve")["median"]
    assert last["measured"] < last["bound with r"] < last["bound with r²"]


def test_a_bound_on_adam_that_is_too_low_is_violated(monkeypatch):
    def tight(quadratic, start):
        bound = adam_upper_bound(quadratic, start)
        return bound._replace(rate=bound.rate**8)

    monkeypatch.setattr(bound_runs, "adam_upper_bound", tight)
    runs = bound_runs.adam_contractions(3, 20, 500)
    assert (runs.draws["plain"] > 100).any()
    assert (runs.draws["slack"] < 1).any()


def test_slack_is_the_ratio_of_the_rates_that_runs_end_with():
    draws = bound_runs.adam_contractions(3, 20, 3000)
    quadratic = Quadratic.draw(eigenvalues(3), draws=20)
    start = quadratic.gaussian_start()
    bound = adam_upper_bound(quadratic, start)
    gap = bound_runs.frozen_adam(quadratic, start, 1500, step=bound.step).gap
    rate = (gap[:, 1500] / gap[:, 1000]).log() / 500
    normal = (gap[:, 1500] > 1e-200).numpy()
    measured = (rate / bound.rate[:, 0].log()).numpy()
    assert normal.sum() > 10
    np.testing.assert_allclose(draws.draws["slack"][normal], measured[normal], rtol=0.05)


def test_underflow_is_not_compared():
    draws = bound_runs.adam_contractions(3, 20, 6000).draws
    fast = draws["ratio"].idxmin()
    assert draws["compared"][fast] < 6000
    assert draws["compared"].max() == 6000


def test_r_of_the_runs_is_r_of_the_distribution():
    runs = bound_runs.adam_contractions(4, 15, 2)
    assert runs.draws["ratio"].tolist() == pytest.approx(bound_runs.ratios(4, 40)[:15].tolist())


def test_one_dimension_is_measured_in_units_of_half_a_step():
    path = bound_runs.adam_in_one_dimension([0.5, -0.05], 0.9, step=0.1, steps=400)
    assert path[:, 0].tolist() == pytest.approx([10, 1])
    assert path[:, 1].tolist() == pytest.approx([8, 1])  # the first step has length η
    np.testing.assert_allclose(path[:, -1], 1, rtol=1e-6)
