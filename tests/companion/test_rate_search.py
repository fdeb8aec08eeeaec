"""Only this file sees an unfair search: a best rate at the edge, unequal tries, a reused seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import setups
from companion.experiments import optimizer_comparison as module
from companion.experiments.optimizer_comparison import OptimizerComparison, TrainingRun
from companion.rate_search import gap, grids_table, last, rate_of, search, steps_to, windowed


def valley(bottoms, tried=None):
    """Return runs whose score is the distance, in half-decades, from each optimizer's best rate."""

    def runs(optimizer, rates, seeds):
        rows = []
        for rate in rates:
            for seed in seeds:
                if tried is not None:
                    tried.append((optimizer, rate, seed))
                score = abs(2 * np.log10(rate) - bottoms[optimizer])
                rows.append((optimizer, rate, seed, 1, 5.0, score))
        return pd.DataFrame(rows, columns=["optimizer", "rate", "seed", "step", "loss", "score"])

    return runs


@given(
    bottom=st.integers(-12, 4),
    other=st.integers(-12, 4),
    starts=st.tuples(st.integers(-8, 0), st.integers(-8, 0)),
    repeated=st.sampled_from([(), (3,)]),
)
def test_every_search_ends_inside_grids_of_one_size(bottom, other, starts, repeated):
    bottoms = {"momentum": bottom + 0.1, "adamw": other - 0.2}
    grids = {name: range(s, s + n) for name, s, n in zip(bottoms, starts, (3, 4), strict=True)}
    table = search(valley(bottoms), grids, searched=[0], repeated=repeated, fresh=[1, 2], most=40)
    found = grids_table(table).set_index("optimizer")
    assert found["interior"].all()
    assert len(set(found["rates"])) == 1
    assert found.loc["momentum", "best"] == rate_of(bottom)
    assert found.loc["adamw", "best"] == rate_of(other)
    assert set(table["seed"]) == {0, 1, 2, *repeated}
    assert not table.duplicated(["optimizer", "rate", "seed"]).any()


@given(bottom=st.floats(-9, 3), other=st.floats(-9, 3))
def test_a_refined_search_ends_within_an_eighth_of_a_decade(bottom, other):
    bottoms = {"momentum": bottom, "adamw": other}
    grids = {name: range(-4, -1) for name in bottoms}
    table = search(valley(bottoms), grids, searched=[0], fresh=[1], most=40, refined=True)
    found = grids_table(table).set_index("optimizer")
    assert found["interior"].all()
    assert len(set(found["rates"])) == 1
    for name, best in bottoms.items():
        assert abs(2 * np.log10(found.loc[name, "best"]) - best) < 0.25 + 0.01  # rates are rounded


def test_a_better_rate_found_while_grids_are_made_equal_is_not_left_at_the_edge():
    def two_valleys(optimizer, rates, seeds):  # a second, deeper one beyond a rise
        table = valley({"momentum": -3, "adamw": 6})(optimizer, rates, seeds)
        exponents = (2 * np.log10(table["rate"])).round()
        return table.assign(score=table["score"].where(exponents != -1, -9.0))

    grids = {"momentum": range(-4, -1), "adamw": range(5, 9)}
    found = grids_table(search(two_valleys, grids, searched=[0], fresh=[1])).set_index("optimizer")
    assert found.loc["momentum", "best"] == rate_of(-1)
    assert found["interior"].all()
    assert len(set(found["rates"])) == 1


def test_a_rate_that_did_well_once_is_tried_again():
    def lucky(optimizer, rates, seeds):
        table = valley({"sgd": -3})(optimizer, rates, seeds)
        unstable = (table["rate"] == rate_of(-2)) & (table["seed"] > 0)
        lucky_once = (table["rate"] == rate_of(-2)) & (table["seed"] == 0)
        return table.assign(score=table["score"].mask(unstable, np.inf).mask(lucky_once, -1.0))

    grid = {"sgd": range(-5, 0)}
    once = search(lucky, grid, searched=[0], fresh=[9])
    again = search(lucky, grid, searched=[0], repeated=[1, 2], fresh=[9])
    assert grids_table(once)["best"].tolist() == [rate_of(-2)]
    assert grids_table(again)["best"].tolist() == [rate_of(-3)]
    assert set(again.loc[again["seed"] == 1, "rate"]) == {rate_of(-3), rate_of(-2)}


def test_two_lucky_rates_do_not_hide_a_third_in_a_refined_search():
    def lucky(optimizer, rates, seeds):
        table = valley({"sgd": -5})(optimizer, rates, seeds)
        unstable = table["rate"] > 2 * rate_of(-4)
        return table.assign(score=table["score"].mask(unstable, 5.0 * table["seed"] - 1))

    table = search(
        lucky, {"sgd": range(-6, -1)}, searched=[0], repeated=[1, 2], fresh=[9], refined=True
    )
    assert grids_table(table)["best"].tolist() == [rate_of(-5)]
    assert set(table.loc[table["rate"] == rate_of(-5), "seed"]) == {0, 1, 2, 9}


def test_the_best_rates_are_run_again_on_seeds_that_took_no_part():
    tried = []
    runs = valley({"momentum": -3, "adamw": -5}, tried)
    grids = {"momentum": range(-4, -1), "adamw": range(-6, -3)}
    table = search(runs, grids, searched=[7, 8], fresh=[1, 2, 3])
    assert len(tried) == len(set(tried)) == 2 * (3 * 2 + 3)
    best = table[table["part"] == "best"]
    assert set(best["seed"]) == {1, 2, 3}
    assert set(table[table["part"] == "search"]["seed"]) == {7, 8}
    assert best.groupby("optimizer")["rate"].unique().str[0].to_dict() == {
        "momentum": rate_of(-3),
        "adamw": rate_of(-5),
    }


def test_rates_that_diverge_lose_and_a_hopeless_search_ends():
    def runs(optimizer, rates, seeds):
        table = valley({"sgd": 2})(optimizer, rates, seeds)
        return table.assign(score=table["score"].where(table["rate"] < 0.5, np.inf))

    found = grids_table(search(runs, {"sgd": range(-6, 1)}, searched=[0], fresh=[1]))
    assert found["best"].tolist() == [rate_of(-1)]
    with pytest.raises(ValueError, match="best of 5 rates of sgd is still at the edge"):
        search(valley({"sgd": 9}), {"sgd": range(3)}, searched=[0], fresh=[1], most=5)


@pytest.mark.parametrize("seeds", [([0], [], [0]), ([], [], [1]), ([0], [], []), ([0], [1], [1])])
def test_seeds_of_the_search_are_not_reported(seeds):
    given = dict(zip(("searched", "repeated", "fresh"), seeds, strict=True))
    with pytest.raises(ValueError, match="Give seeds for the search, and others"):
        search(valley({"sgd": 0}), {"sgd": range(-1, 2)}, **given)


def best_runs(slow, fast, first=4.0):
    rows = [
        (name, seed, step, loss, score, "best")
        for name, scores in (("momentum", slow), ("adamw", fast))
        for seed, score in enumerate(scores)
        for step, loss in ((1, first), (2, score))
    ]
    columns = ["optimizer", "seed", "step", "loss", "score", "part"]
    return pd.DataFrame(rows, columns=columns)


def test_the_gap_is_the_share_of_progress_that_is_lacking():
    found = gap(best_runs([3.0, 2.0], [2.0, 2.0]))
    assert found.mean == pytest.approx(0.25)  # one half and nothing
    assert found.standard_error == pytest.approx(np.std([0.5, 0], ddof=1) / 2**0.5)
    assert gap(best_runs([1.0], [2.0])).mean == pytest.approx(-0.5)
    assert np.isnan(gap(best_runs([1.0], [2.0])).standard_error)
    assert gap(best_runs([np.inf, np.inf], [2.0, 2.0])).mean == pytest.approx(1)  # diverged
    assert np.isnan(gap(best_runs([1.0, 1.0], [2.0, 5.0])).mean)  # AdamW makes no progress


def test_the_gap_ignores_the_search():
    table = best_runs([3.0], [2.0])
    other = best_runs([9.0], [0.0]).assign(part="search")
    assert gap(pd.concat([other, table])) == pytest.approx(gap(table), nan_ok=True)


def test_steps_are_counted_to_the_other_optimizers_final_loss():
    runs = best_runs([3.0, np.inf], [2.0, 1.0])  # losses of 4, then the score, at steps 1 and 2
    assert steps_to(runs, "adamw", "momentum").tolist() == [
        2,
        1,
    ]  # any loss is below a diverged one
    assert steps_to(runs, "momentum", "adamw").tolist() == [np.inf, np.inf]
    assert steps_to(runs, "momentum", "momentum").tolist()[0] == 2


def test_curves_are_means_over_windows_and_the_score_that_of_the_last_tenth():
    losses = np.arange(20.0)
    assert last(losses) == 18.5
    curve = windowed(losses, 5)
    assert curve["step"].tolist() == [4, 8, 12, 16, 20]
    assert curve["loss"].tolist() == [1.5, 5.5, 9.5, 13.5, 17.5]
    assert windowed(losses[:2], 5)["loss"].tolist() == [0, 1]
    assert last(np.array([1.0, np.inf])) == np.inf


SMALL = OptimizerComparison("vgg", "tiny", samples=40, batch=8, steps=12, seeds=1, rates=3)


def test_a_contest_that_was_killed_goes_on_with_what_it_has(store, monkeypatch):
    whole = store.get(SMALL)
    for stored in store.path.glob("contest-vgg-*"):
        stored.unlink()
    kept = sorted((store.path / "runs").glob("*.csv"))
    kept[0].unlink()
    trained = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    pd.testing.assert_frame_equal(store.get(SMALL), whole)
    assert len(trained) == 1
    assert [name for name in store.used if name.startswith("run-")] == []


def test_a_contest_trains_what_it_says(store):
    table = store.get(SMALL)
    assert set(table["optimizer"]) == {"momentum", "adamw"}
    assert grids_table(table)["interior"].all()
    assert table["step"].max() == 12
    assert set(table.loc[table["part"] == "best", "seed"]) == {3}
    assert set(table["seed"]) == {0, 1, 2, 3}
    assert not table.isna().any(axis=None)
    size = {"size": "tiny", "samples": 40, "batch": 8, "steps": 12}
    one = TrainingRun("vgg", "adamw", 0.01, 0, windows=3, **size)
    assert store.get(one)["step"].tolist() == [4, 8, 12]


def test_fields_that_came_later_leave_the_names_of_older_results_alone():
    later = {"test_samples": 8, "repeats": 1, "refined": True}
    assert not {*later} & {*SMALL.declared()["parameters"]}
    assert {*later} <= {*replace(SMALL, **later).declared()["parameters"]}


@pytest.mark.parametrize("model", ["resnet", "bert"])
def test_a_trained_model_is_evaluated_on_the_test_part(store, model):
    size = {"size": "tiny", "samples": 40, "batch": 8, "steps": 6, "test_samples": 20}
    table = store.get(TrainingRun(model, "adamw", 0.01, 0, windows=3, **size))
    made = setups.setup(model, "tiny", samples=40)
    module.trained(made, TrainingRun(model, "adamw", 0.01, 0, windows=3, **size))
    test = setups.load(model, "tiny", 20, 0, "test")
    with torch.no_grad():
        logits = made.problem.model(test.inputs).flatten(0, -2)
    there = test.targets.flatten() >= 0
    expected = torch.nn.functional.cross_entropy(logits[there], test.targets.flatten()[there])
    assert table["test_loss"].tolist() == pytest.approx([expected.item()] * 3, rel=1e-5)
    right = (logits.argmax(-1) == test.targets.flatten())[there].double().mean().item()
    assert table["test_accuracy"].tolist() == pytest.approx([right] * 3)


def test_a_diverged_run_is_kept_with_an_infinite_loss(store):
    size = {"size": "tiny", "samples": 40, "batch": 8, "steps": 12, "test_samples": 10}
    table = store.get(TrainingRun("vgg", "momentum", 1e6, 0, windows=3, **size))
    assert np.isinf(table[["score", "test_loss"]]).all(axis=None)
    assert not table.isna().any(axis=None)
