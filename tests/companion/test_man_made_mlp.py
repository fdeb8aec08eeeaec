"""Only this file sees a knob that changes more, or less, than the curvature of the layers.

A multiplier left out of a bias, applied to the wrong layer or not squared still trains and still
gives a plausible curve. Oracles: the plain MLP, its dense block Hessians, and gradient descent on
it with a rate of its own in each layer.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from blockspectra import Problem, cross_entropy, partition
from blockspectra.hessian import dense_hessian
from companion import datasets
from companion.experiments.man_made_mlp import (
    MIDDLE,
    ManMadeComparison,
    ManMadeRuns,
    ManMadeSpectra,
    accuracy,
    accuracy_lost,
    rate_ratio,
)
from companion.models.man_made import ManMadeMLP, man_made, multipliers
from companion.models.mlp import MLP, MLPConfig
from companion.rate_search import grids_table, rate_of

CONFIG = MLPConfig((9, 5, 4, 5, 3))
TINY = ManMadeComparison(c=4.0, side=7, width=8, batch=16, steps=12, rates=3, searched=1, seeds=2)


def runs(job, optimizer, rates, seeds):
    """All rates x seeds of one optimizer, as a comparison makes them."""
    shared = {key: getattr(job, key) for key in ("c", "layer", "side", "width", "batch", "steps")}
    one = ManMadeRuns(optimizer=optimizer, at=tuple(rates), seeds=tuple(seeds), **shared)
    return one.compute(None)


every_c = pytest.mark.parametrize("c", [0.01, 0.3, 1.0, 100.0])


def pair(c, dtype=torch.float64):
    """The plain MLP, the man-made one with the same weights, and a batch."""
    torch.manual_seed(0)
    plain = MLP(CONFIG).to(dtype)
    rescaled = ManMadeMLP(CONFIG, c).to(dtype)
    for layer, ours, s in zip(plain.layers, rescaled.layers, rescaled.multipliers, strict=True):
        ours.weight.data, ours.bias.data = layer.weight.data / s, layer.bias.data / s
    return plain, rescaled, (torch.randn(20, 9, dtype=dtype), torch.arange(20) % 3)


def effective(model):
    """Weights and biases times the multiplier of their layer."""
    layers = zip(model.multipliers, model.layers, strict=True)
    return [s * parameter.detach() for s, layer in layers for parameter in layer.parameters()]


class TestKnob:
    @every_c
    def test_neighbouring_layers_are_a_factor_c_apart_and_the_product_is_one(self, c):
        s = np.array(multipliers(c, 4))
        np.testing.assert_allclose(s[1:] ** 2 / s[:-1] ** 2, c)
        np.testing.assert_allclose(s.prod(), 1)

    def test_one_is_the_plain_mlp(self):
        torch.manual_seed(3)
        plain = MLP(CONFIG)
        torch.manual_seed(3)
        rescaled = ManMadeMLP(CONFIG, 1.0)
        for ours, theirs in zip(rescaled.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    @every_c
    def test_the_function_at_initialisation_does_not_depend_on_it(self, c):
        images = datasets.mnist("test", 7).inputs[:50]
        expected = man_made(1.0, 7, 8, seed=5)(images)
        torch.testing.assert_close(man_made(c, 7, 8, seed=5)(images), expected)

    @every_c
    def test_block_hessians_are_those_of_the_plain_mlp_times_the_square(self, c):
        plain, rescaled, batch = pair(c)
        for one, other, s in zip(
            partition(plain, vectors=True),
            partition(rescaled, vectors=True),
            [s for s in multipliers(c, 4) for _ in range(2)],  # weights and biases alike
            strict=True,
        ):
            expected = s**2 * dense_hessian(Problem(plain, cross_entropy, [batch]), one)
            found = dense_hessian(Problem(rescaled, cross_entropy, [batch]), other)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * s**2)


class TestOptimizers:
    @pytest.mark.parametrize(("name", "power"), [("sgd", 2), ("adam", 1)])
    def test_see_one_rate_a_layer_on_the_plain_mlp(self, name, power):
        """Exact for SGD, and for Adam but for its ε, which is taken away here."""
        plain, rescaled, batch = pair(4.0)
        rates = [0.01 * s**power for s in rescaled.multipliers]
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
        settings = {} if name == "sgd" else {"eps": 1e-30, "weight_decay": 0.0}
        groups = [
            {"params": layer.parameters(), "lr": rate}
            for layer, rate in zip(plain.layers, rates, strict=True)
        ]
        steppers = [
            (kinds[name](groups, lr=0.01, **settings), plain),
            (kinds[name](rescaled.parameters(), lr=0.01, **settings), rescaled),
        ]
        start = effective(rescaled)
        for _ in range(15):
            for stepper, model in steppers:
                stepper.zero_grad()
                cross_entropy(model, batch).backward()
                stepper.step()
        for ours, theirs in zip(effective(rescaled), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        moved = zip(effective(rescaled), start, strict=True)
        assert min(float((a - b).abs().max()) for a, b in moved) > 1e-4, "steps that do nothing"


def test_adam_sees_the_square_root_of_what_sgd_sees():
    assert rate_ratio(4.0, "momentum") == pytest.approx(4.0**3)
    assert rate_ratio(0.25, "adam") == pytest.approx(8.0)


def test_accuracy_lost_pairs_the_fresh_seeds():
    """Seeds differ by 20 points, what they lose by 2: unpaired, the error would be ten times it."""
    columns = ["c", "seed", "accuracy", "part"]
    rows = [(1.0, 2, 0.9, "best"), (1.0, 3, 0.7, "best"), (5.0, 3, 0.66, "best")]
    rows += [(5.0, 2, 0.88, "best"), (5.0, 0, 0.1, "search")]
    table = pd.DataFrame(rows, columns=columns).assign(optimizer="sgd")
    other = table.assign(optimizer="adam", accuracy=0.5)
    assert accuracy_lost(pd.concat([table, other]), "sgd", 5.0) == pytest.approx((3.0, 1.0))


class TestSearch:
    @pytest.mark.parametrize("c", [0.01, 100.0])
    def test_grids_follow_the_stiffest_layer_by_half(self, c):
        """Its rate is 1000 times the mean for SGD, 31.6 times for Adam: three and 1.5 decades."""
        plain, stiff = replace(TINY, c=1.0), replace(TINY, c=c)
        moved = {name: stiff.grid(name)[0] - plain.grid(name)[0] for name in MIDDLE}
        assert moved == {"sgd": -3, "momentum": -3, "adam": -2}
        assert all(len(stiff.grid(name)) == TINY.rates for name in MIDDLE)

    def test_a_run_that_diverges_is_never_chosen_and_counts_as_guessing(self):
        table = runs(TINY, "sgd", [0.03, 1e6], [0, 1])
        lost = table[table["rate"] == 1e6]
        assert lost["diverged"].all()
        assert np.isinf(lost["score"]).all()
        assert (lost["accuracy"] == 0.1).all()
        assert not table["diverged"][table["rate"] == 0.03].any()
        assert not table.isna().any().any()

    def test_result_has_fresh_seeds_at_an_interior_rate_of_equal_searches(self, store):
        table = store.get(TINY)
        sizes = grids_table(table)
        assert sizes["interior"].all()
        assert len(set(sizes["rates"])) == 1
        best = table[table["part"] == "best"]
        assert set(best["seed"]) == {1, 2}
        assert set(table["seed"][table["part"] == "search"]) == {0}
        for name, part in best.groupby("optimizer"):
            chosen = sizes.set_index("optimizer").loc[name, "best"]
            assert list(part["rate"]) == [chosen] * 2
        assert table["rate"].isin([rate_of(e) for e in range(-20, 20)]).all()

    @pytest.mark.parametrize(("name", "rate"), [("sgd", 1.0), ("momentum", 0.3), ("adam", 0.1)])
    def test_one_layer_alone_is_the_limit_of_the_knob(self, name, rate):
        """At c = 1e8 the last layer's rate is 10⁸ or 10⁴ times the next one's: only it moves."""
        one = replace(TINY, c=1.0, layer=3)
        alone, still = (runs(one, name, [r], [0, 1])["loss"] for r in (rate, 1e-9))
        stiffest = rate_ratio(1e8, name) ** 0.5
        stiff = runs(replace(TINY, c=1e8), name, [rate / stiffest], [0, 1])["loss"]
        np.testing.assert_allclose(stiff, alone, rtol=1e-3)
        assert ((alone - still).abs() > 5e-3).all(), "steps that do nothing"

    def test_seeds_and_not_c_draw_weights_and_batches(self):
        """So differences between values of c are paired: at rates near 0 all c are one run."""
        small = [runs(replace(TINY, c=c), "sgd", [1e-9], [3]) for c in (1.0, 2.0)]
        assert small[0]["accuracy"].equals(small[1]["accuracy"])
        np.testing.assert_allclose(small[0]["loss"], small[1]["loss"], rtol=1e-5)


class TestSpectra:
    def test_largest_eigenvalues_move_with_the_squares(self, store):
        few = {"side": 7, "width": 8, "samples": 32, "steps": 12, "probes": 2}
        plain, stiff = (store.get(ManMadeSpectra(c=c, **few)) for c in (1.0, 16.0))
        expected = plain.largest * np.array(multipliers(16.0, 4)) ** 2
        np.testing.assert_allclose(stiff.largest, expected, rtol=1e-3)


def test_accuracy_is_the_share_of_right_guesses():
    class Knows(torch.nn.Module):
        """Reads the label out of the first pixel, right for six of eight images."""

        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 10)

    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    seen = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
    images = seen.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = datasets.Data("eight", images, labels, 10, "", "")
    assert accuracy(Knows(), data) == 0.75
