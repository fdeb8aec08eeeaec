"""Sees an uncertainty that is too small: rows of one group counted as independent."""

import numpy as np
import pandas as pd
import pytest

from blockspectra.statistics import ValueWithError, bootstrap, ratio, with_error


def grouped(groups, rows, within=0.0, seed=0):
    """Standard normal group means, each repeated over its rows with some noise."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(groups).repeat(rows)
    values = means + within * rng.standard_normal(groups * rows)
    return pd.DataFrame({"group": np.arange(groups).repeat(rows), "value": values})


def mean(table):
    return table["value"].mean()


@pytest.mark.parametrize("rows", [1, 30])
def test_error_of_a_mean_is_that_over_groups_however_many_rows_they_have(rows):
    table = grouped(100, rows)
    found = bootstrap(table, mean, group="group", draws=2000)
    assert found.mean == table["value"].mean()
    means = table.groupby("group")["value"].mean()
    assert found.standard_error == pytest.approx(means.std() / 10, rel=0.06)


def test_noise_within_groups_averages_out():
    found = bootstrap(grouped(100, 100, within=1.0), mean, group="group", draws=1000)
    assert found.standard_error == pytest.approx(0.1, rel=0.2)  # 0.01 if rows were independent


def test_error_of_a_median_is_its_own():
    table = pd.DataFrame({"group": range(2000), "value": np.random.default_rng(1).random(2000)})
    found = bootstrap(table, lambda t: t["value"].median(), group="group", draws=1000)
    assert found.standard_error == pytest.approx(0.5 / 2000**0.5, rel=0.2)


def test_is_seeded_and_does_not_depend_on_the_order_of_the_index():
    table = grouped(10, 3, within=1.0)
    first = bootstrap(table, mean, group="group")
    assert bootstrap(table.set_index(table.index[::-1]), mean, group="group") == first
    assert bootstrap(table, mean, group="group", seed=1) != first


def test_a_single_group_and_a_statistic_that_is_not_finite_have_no_error():
    table = grouped(5, 2)
    assert np.isnan(bootstrap(table[table["group"] == 0], mean, group="group").standard_error)
    infinite = bootstrap(table.assign(value=np.inf), mean, group="group")
    assert infinite.mean == np.inf
    assert np.isnan(infinite.standard_error)


def test_error_of_a_ratio_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.2, 0.01, 100_000) / rng.normal(0.5, 0.02, 100_000)
    value, error = ratio(ValueWithError(0.2, 0.01), ValueWithError(0.5, 0.02))
    assert value == pytest.approx(0.4)
    assert error == pytest.approx(draws.std(), rel=0.05)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (34.1, 19.6, "34 ± 20"),
        (394.0, 130.0, "394 ± 130"),
        (0.8595, 0.0961, "0.860 ± 0.096"),
        (1.0704, 0.0003, "1.07040 ± 0.00030"),
        (0.00557, 0.00096, "0.00557 ± 0.00096"),
        (131072.0, 0.0, "1.31e+05"),
        (0.5, float("nan"), "0.5"),
        (3e-9, 2e-10, "3e-09 ± 2.0e-10"),
    ],
)
def test_a_number_is_written_to_the_second_digit_of_its_error(value, error, text):
    assert with_error(value, error) == text
