"""Chapter 22: an order counted wrongly, a predictor of something else, a variant that changed.

Closed forms for shares of pairs and the noise scale; the committed results against the variants
that stood in the repository when they were computed.
"""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from companion import setups
from companion.experiments import predictors
from companion.experiments.optimizer_comparison import OptimizerComparison
from companion.experiments.predictors import GradientStatistics, called, noise_scale, ordered
from companion.jobs import declared
from companion.store import Store, repository


def table(values, gaps, error=0.0, base=None, held_out=()):
    """Rows of `collected` for one predictor."""
    count = len(values)
    return pd.DataFrame(
        {
            "model": [str(i) for i in range(count)],
            "base": base or ["a"] * count,
            "held_out": [i in held_out for i in range(count)],
            "gap": gaps,
            "gap_error": error,
            "value": values,
            "value_error": 0.0,
        }
    )


class TestOrdered:
    def test_perfect_reversed_and_constant_predictors(self):
        gaps = [0.1, 0.2, 0.3, 0.5]
        assert ordered(table(gaps, gaps)) == ((1, 0), 6)
        assert ordered(table([-gap for gap in gaps], gaps))[0].mean == 0
        assert ordered(table([1.0] * 4, gaps))[0].mean == 0.5

    def test_values_that_are_equal_but_for_rounding_order_nothing(self):
        gaps = [0.1, 0.9]
        assert ordered(table([1.0, 1.0 - 1e-6], gaps))[0].mean == 0.5
        assert ordered(table([1.0, 0.99], gaps))[0].mean == 0

    def test_pairs_within_two_errors_do_not_count(self):
        gaps = [0.1, 0.2, 0.9]  # 0.1 apart with errors of √2·0.1 are not told apart
        share, count = ordered(table([2.0, 1.0, 3.0], gaps, error=0.1))
        assert (share.mean, count) == (1, 2)

    def test_pairs_of_unknown_predictors_do_not_count(self):
        share, count = ordered(table([1.0, np.nan, 3.0], [0.1, 0.2, 0.9]))
        assert (share.mean, count) == (1, 1)

    def test_kinds_of_pairs(self):
        made = table([2, 1, 3, 4], [0.1, 0.2, 0.3, 0.4], base=["a", "a", "b", "b"], held_out=[3])
        counts = {kind: ordered(made, kind) for kind in ("all", "alike", "chosen on", "held out")}
        assert [count for _, count in counts.values()] == [6, 2, 3, 3]
        assert counts["alike"][0].mean == 0.5  # the pair of a is in the wrong order
        assert counts["chosen on"][0].mean == pytest.approx(2 / 3)

    def test_unrelated_predictor_is_at_chance(self):
        rng = np.random.default_rng(0)
        shares = [ordered(table(rng.random(12), rng.random(12)))[0].mean for _ in range(60)]
        assert abs(np.mean(shares) - 0.5) < 0.05


class TestCalled:
    def test_threshold_comes_from_the_others_alone(self):
        values, gaps = [1, 2, 3, 4, 0, 5], [0.0, 0.0, 0.3, 0.3, 0.3, 0.3]
        assert called(table(values, gaps, held_out=[4, 5])) == (1, 2)


class TestGradientStatistics:
    @pytest.fixture
    def job(self):
        return GradientStatistics("vgg-tail", batch=16, gradients=4)

    def test_sums_over_a_block_are_squared_norms_of_plain_gradients(self, job, tmp_path):
        found = job.compute(Store("smoke")).set_index("block").loc["classifier.6"]
        made = setups.setup("vgg-tail", "medium", samples=64, batches=4)
        weight = made.problem.model.classifier[6].weight
        each = []
        for batch in made.problem.batches:
            loss = made.problem.loss(made.problem.model, batch)
            each.append(torch.autograd.grad(loss, weight)[0].double())
        assert found["mean_square"] == pytest.approx(float(sum(g.square().sum() for g in each) / 4))
        mean = sum(each) / 4
        assert found["square_of_mean"] == pytest.approx(float(mean.square().sum()), rel=1e-5)

    def test_imbalance_of_a_heavy_tail(self, job):
        data = setups.load("vgg-tail", "medium", 0, 0)
        counts = torch.bincount(data.targets)
        assert (counts[0] // (torch.arange(10) + 1) == counts).all()
        share = counts.double() / counts.sum()
        assert data.entropy == pytest.approx(float(-(share * share.log()).sum()))
        assert setups.load("vgg", "medium", 12000, 0).entropy == pytest.approx(np.log(10), abs=1e-3)

    def test_noise_scale_of_known_gradients(self):
        rng, batch, many = np.random.default_rng(1), 8, 4000
        signal, deviation = np.full(50, 0.1), 2.0  # of one sample, an entry
        drawn = signal + deviation / batch**0.5 * rng.standard_normal((many, 50))
        sums = {
            "mean_square": (drawn**2).sum(1).mean(),
            "square_of_mean": (drawn.mean(0) ** 2).sum(),
        }
        wanted = np.log10(50 * deviation**2 / (signal**2).sum())
        assert noise_scale(pd.DataFrame([sums]), batch, many) == pytest.approx(wanted, abs=0.03)


class TestVariants:
    def test_entry_is_part_of_the_name(self, monkeypatch):
        job = OptimizerComparison("gpt-post", "medium")
        before = job.stem
        changed = setups.VARIANTS["gpt-post"] | {"held_out": False}
        monkeypatch.setitem(setups.VARIANTS, "gpt-post", changed)
        assert job.stem != before
        assert replace(job, model="gpt").stem == OptimizerComparison("gpt", "medium").stem

    def test_sixteen_a_third_of_them_held_out_one_of_each_base(self):
        wanted = declared("22_predictors", "full")
        names = {job.model for job in wanted if isinstance(job, OptimizerComparison)}
        held = [one["base"] for one in setups.VARIANTS.values() if one.get("held_out")]
        assert len(names) == 16
        assert set(setups.VARIANTS) < names
        assert sorted(held) == ["gpt", "mixer", "resnet", "vgg", "vit"]

    def test_variants_do_what_they_say(self):
        models = {name: setups.setup(name, "medium").problem.model for name in setups.VARIANTS}
        base = {name: setups.setup(name, "medium").problem.model for name in ("vgg", "gpt", "vit")}
        ratio = models["gpt-strong"].wpe.weight.std() / base["gpt"].wpe.weight.std()
        assert ratio.item() == pytest.approx(3)
        ratio = models["vgg-weak"].classifier[0].weight / base["vgg"].classifier[0].weight
        assert torch.allclose(ratio, torch.tensor(0.3))
        assert len(models["gpt-shallow"].h) == len(models["vit-shallow"].blocks) == 2
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in models["vgg-norm"].modules()) == 6
        for block in (models["gpt-post"].h[0], models["vit-post"].blocks[0]):
            out = block(torch.randn(2, 5, 64))
            assert torch.allclose(out, torch.nn.functional.layer_norm(out, (64,)), atol=1e-3)

    def test_stood_in_the_repository_before_their_runs(self):
        path = "lib/companion/models/variants.yaml"
        folder = repository() / "data" / "results" / "full"
        for name in setups.VARIANTS:
            for header in folder.glob(f"contest-{name}-*.json"):
                commit = json.loads(header.read_text(encoding="utf-8"))["made"]["commit"]
                shown = subprocess.run(
                    ["git", "show", f"{commit}:{path}"],
                    cwd=repository(),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if shown.returncode:
                    pytest.skip("the history of this clone does not reach back to the runs")
                assert yaml.safe_load(shown.stdout)[name] == setups.VARIANTS[name]


def test_what_is_collected_has_every_predictor():
    runs = pd.DataFrame(
        {
            "optimizer": ["adamw", "momentum"] * 2,
            "seed": [1, 1, 2, 2],
            "part": "best",
            "loss": 2.0,
            "score": [1.0, 1.5, 1.0, 1.7],
        }
    )
    found = predictors.collected({"vgg": runs}, {"x": {"VGG": (1.0, 0.1)}, "y": {"GPT": (1, 0)}})
    assert list(found["predictor"]) == ["x", "attention (0 or 1)"]
    assert found["gap"].to_list() == pytest.approx([0.6, 0.6])
