"""Sees a table that is not what the iterations give: draws mixed up, bands over the wrong axis, a
search that is reported on the draws it was made on."""

import numpy as np
import pytest
import torch

from companion.experiments.quadratic_runs import (
    Case,
    QuadraticCounts,
    QuadraticCurves,
    quantiles,
    thinned,
)
from companion.jobs import measure
from companion.quadratics.cases import draw, fixed
from companion.quadratics.convergence import best_step, modes
from companion.quadratics.quadratic import frozen_adam, gd

CASE = fixed(3, 3)


def test_counts_are_those_of_each_draw(store):
    table = store.get(QuadraticCounts(Case(3, 3), 4))
    assert table["sample"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for sample, part in table.groupby("sample"):
        quadratic, start = draw(CASE[0], 4, sample)
        slow, fast = (modes(quadratic, start, frozen=frozen) for frozen in (False, True))
        for column, found in (("gd", slow), ("adam", fast)):
            assert part[column].tolist() == best_step(found)[1][:, 0].tolist()
        assert part["condition"].tolist() == pytest.approx(fast.condition.tolist())
        assert part[["kappa", "block_kappa"]].to_numpy().tolist() == [[5000, 3]] * 4
        slopes = quadratic.gradient(start).abs().split([len(b) for b in quadratic.blocks], 1)
        scaled = torch.cat([g / max(b) for g, b in zip(slopes, quadratic.blocks, strict=True)], 1)
        r = scaled.amax(1) / scaled.amin(1)
        assert part["bound"].tolist() == pytest.approx((3 * r).tolist())
    assert (table["gd_minimax"] >= table["gd"]).all()
    assert (table["adam_minimax"] >= table["adam"]).all()


def test_jobs_run_in_workers_and_are_found_again(store):
    jobs = [QuadraticCounts(Case(3, 3), 1), QuadraticCounts(Case(3, 1), 2)]
    first, second = measure(store, jobs, 1)
    assert (len(first), len(second)) == (3, 2)
    assert len(store.used) == 2


@pytest.fixture
def curves(store):
    return store.get(QuadraticCurves(Case(3, 3), 4, steps=300, far=1000))


def test_known_curves_are_bands_over_all_but_the_first_sample(curves):
    for optimizer, frozen in (("gd", False), ("frozen", True)):
        norms = []
        for sample in (1, 2):
            quadratic, start = draw(CASE[0], 4, sample)
            step = best_step(modes(quadratic, start, frozen=frozen))[0]
            path = (frozen_adam if frozen else gd)(quadratic, start, 1000, step=step).gradient_norm
            norms.append(path / path[:, :1])
        one = curves[curves["optimizer"] == optimizer]
        expected = np.quantile(torch.cat(norms)[:, one["step"].tolist()], [0.1, 0.5, 0.9], axis=0)
        shown = one[["low", "median", "high"]].to_numpy().T
        np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-12)
        assert one["step"].iloc[-1] == 1000


def test_searched_curves_use_the_step_that_was_best_on_other_draws(curves):
    for optimizer in ("adam", "sign"):
        runs = curves[curves["optimizer"] == optimizer]
        last = runs[runs["step"] == 300].set_index("rate")
        tried = last[last["part"] == "search"]["median"]
        chosen = last[last["part"] == "best"]
        assert list(chosen.index) == [tried.idxmin()]
        assert tried.idxmin() not in (min(tried.index), max(tried.index))
        assert chosen["median"].iloc[0] != tried.min()


def test_every_method_starts_at_one_and_gets_lower(curves):
    best = curves[curves["part"] == "best"]
    assert set(best["optimizer"]) == {"gd", "momentum", "frozen", "adam", "sign"}
    for _, one in best.groupby("optimizer"):
        assert one.iloc[0][["step", "low", "median", "high"]].tolist() == [0, 1, 1, 1]
        assert one["median"].iloc[-1] < 0.3
        assert (one["low"] <= one["median"]).all()
        assert (one["median"] <= one["high"]).all()


def test_iterations_kept_begin_at_zero_end_at_the_last_and_are_few():
    at = thinned(12_345)
    assert (at[0], at[1], at[-1]) == (0, 1, 12_345)
    assert (at.diff() > 0).all()
    assert len(at) < 65
    assert thinned(1).tolist() == [0, 1]


def test_quantiles_are_over_draws():
    norms = torch.arange(11.0)[:, None] * torch.tensor([1.0, 10.0])
    table = quantiles(norms, torch.tensor([0, 5]))
    expected = [[0, 1, 5, 9], [5, 10, 50, 90]]
    assert table[["step", "low", "median", "high"]].to_numpy().tolist() == expected
