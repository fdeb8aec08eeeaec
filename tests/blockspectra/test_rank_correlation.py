"""Only this file sees a correlation that looks surer than a handful of models can make it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from blockspectra.statistics import Estimate, critical_value, rank_correlation


def exactly(values):
    return [Estimate(v, 0.0) for v in values]


@given(st.lists(st.integers(0, 5), min_size=3, max_size=8), st.integers(0, 100))
def test_the_value_is_scipys(values, seed):
    other = np.random.default_rng(seed).permutation(len(values))
    found = rank_correlation(exactly(values), exactly(other), draws=50).value
    if len(set(values)) > 1:
        assert found == pytest.approx(spearmanr(values, other).statistic)
    else:
        assert np.isnan(found)


def test_exact_numbers_have_no_noise_but_six_models_are_few():
    found = rank_correlation(exactly(range(6)), exactly([0, 2, 1, 3, 5, 4]))
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.error > 0.1
    assert -1 <= found.low < found.value < found.high <= 1


def test_errors_beyond_the_differences_drown_the_order():
    loud = [Estimate(v, 100.0) for v in range(6)]
    assert rank_correlation(loud, exactly(range(6))).noise == pytest.approx(0.447, abs=0.03)
    # 1/√(n − 1): the deviation of ρ without any relation


def test_an_unknown_error_counts_as_none():
    unknown = [Estimate(v, float("nan")) for v in range(6)]
    assert rank_correlation(unknown, unknown).noise == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("models", "value"), [(4, 1.0), (5, 0.9), (6, 0.829), (7, 0.714)])
def test_critical_values_are_those_of_the_tables(models, value):
    assert critical_value(models) == pytest.approx(value, abs=1e-3)


def test_three_models_can_never_show_anything():
    assert critical_value(3) == np.inf


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rank_correlation(exactly([1, 2]), exactly([1, 2])), "three or more models"),
        (lambda: rank_correlation(exactly([1, 2, 3]), exactly([1, 2])), "not 3 and 2"),
        (lambda: critical_value(9), "Give 3 to 8 models, not 9"),
    ],
)
def test_what_cannot_be_correlated_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
