"""Only this file sees full spectra compared in the wrong unit, or families told apart wrongly.

A tenth largest eigenvalue that is the ninth, a distance that moves with the units of the loss, a
pair of one family counted as a pair of two: each would be read as a finding about Transformers.
Oracles: diagonal matrices, whose quadrature with a uniform start vector is exact.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspectra import Spectra, js_matrix
from blockspectra.distance import shift_divergence
from blockspectra.lanczos import lanczos
from blockspectra.spectra import concat
from companion.spectrum_similarity import (
    COUNTED,
    FLOOR,
    RAW,
    SHIFT,
    WEIGHED,
    ByCurvature,
    contrast,
    distances,
    normalised,
    ranked,
    scaled,
    truncated,
)


def diagonal(*eigenvalues, steps=None, probes=None, **meta):
    """Lanczos runs on diagonal matrices: uniform start vector, or ``probes`` Gaussian ones."""
    matrix = torch.tensor(np.array(eigenvalues), dtype=torch.float64)[:, None]  # (block, 1, d)
    blocks, _, size = matrix.shape
    start = torch.ones(blocks, 1, size, dtype=torch.float64)
    if probes:
        random = np.random.default_rng(meta.get("seed", 0))
        start = torch.from_numpy(random.standard_normal((blocks, probes, size)))
    run = lanczos(lambda v: matrix * v, start, steps or size)
    names = [f"stage {i}" for i in range(blocks)]
    return Spectra(names, [size] * blocks, *(x.numpy() for x in run[:4]), meta)


FALLING = np.geomspace(50, 0.5, 24)


@pytest.mark.parametrize("rank", [1, 2, 10, 24])
def test_ranked_is_the_eigenvalue_of_that_rank(rank):
    rising = diagonal(np.concatenate([FALLING[::-1], -FALLING]), 3 * np.concatenate([FALLING] * 2))
    tenth = ranked(rising, rank)[0]
    assert tenth == pytest.approx(FALLING[rank - 1], rel=1e-8)


def test_ranked_counts_an_eigenvalue_as_often_as_it_is_there():
    assert ranked(diagonal(np.concatenate([np.full(10, 2.0), FALLING / 100])))[0] == pytest.approx(
        2
    )


def test_ranked_lies_between_its_neighbours_when_there_are_fewer_steps_than_eigenvalues():
    eigenvalues = np.sort(np.random.default_rng(0).exponential(size=200))[::-1]
    one = diagonal(eigenvalues, steps=14)
    nodes = one.nodes(0)[0]
    at = int(np.argmin(np.abs(nodes - ranked(one)[0])))
    assert nodes[at - 1] <= eigenvalues[9] <= nodes[min(at + 1, 13)]


def test_ranked_averages_over_probes():
    several = diagonal(np.linspace(1, 0.01, 400), steps=20, probes=40)
    assert ranked(several)[0] == pytest.approx(np.linspace(1, 0.01, 400)[9], rel=0.02)


def test_ranked_refuses_what_nothing_can_be_divided_by():
    few = diagonal(np.concatenate([FALLING[:5], -FALLING]))
    with pytest.raises(ValueError, match="'stage 0' shows fewer than 10 positive"):
        ranked(few)


def test_truncated_is_a_shorter_run():
    eigenvalues = np.linspace(-1, 3, 60)
    longer, shorter = (diagonal(eigenvalues, steps=k, probes=2) for k in (20, 8))
    cut = truncated(longer, 8)
    np.testing.assert_allclose(cut.alpha, shorter.alpha, rtol=1e-9)
    np.testing.assert_allclose(cut.quadrature[0], shorter.quadrature[0], rtol=1e-9)
    assert (cut.taken == 8).all()


def test_by_curvature_counts_eigenvalues_by_their_size():
    one = diagonal([-6.0, -1, 0, 0.5, 2, 3])
    arrays = (one.alpha, one.beta, one.taken, one.orthogonality)
    nodes, weights = ByCurvature(one.names, one.sizes, *arrays).quadrature
    np.testing.assert_allclose(nodes[0, 0], [-6, -1, 0, 0.5, 2, 3], atol=1e-9)
    np.testing.assert_allclose(weights[0, 0] * 12.5, [6, 1, 0, 0.5, 2, 3], atol=1e-9)


def run(title, family, seed, scale=1.0, shapes=((2.0, 30), (3.0, 10))):
    """A model with two stages of its own shape of spectrum."""
    random = np.random.default_rng([seed, len(title), *map(ord, title)])
    stages = [
        scale * (random.exponential(size=80) ** power - random.exponential(size=80) / low)
        for power, low in shapes
    ]
    meta = {"title": title, "family": family, "seed": seed}
    return diagonal(*stages, steps=12, probes=2, **meta)


def four(*seeds, scales=(1, 1, 1, 1)):
    titles = ("VGG", "ResNet", "ViT", "GPT")
    return [
        run(title, "CNN" if i < 2 else "Transformer", seed, scales[i])
        for seed in seeds
        for i, title in enumerate(titles)
    ]


@given(exponents=st.tuples(*[st.integers(-6, 6)] * 4))
@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize("view", [COUNTED, WEIGHED])
def test_normalised_distances_do_not_see_the_units_of_the_loss(view, exponents):
    plain, other = four(0), four(0, scales=10.0 ** np.array(exponents))
    np.testing.assert_allclose(distances(plain, view), distances(other, view), atol=1e-9)


def test_the_raw_axis_does():
    plain, other = distances(four(0), RAW), distances(four(0, scales=(1, 1, 1, 7)), RAW)
    assert np.abs(plain - other).max(axis=None) > 0.01


def test_normalised_has_its_tenth_at_one():
    np.testing.assert_allclose(ranked(normalised(run("VGG", "CNN", 0))), 1)


def test_distances_are_means_over_seeds_with_other_seeds_on_the_diagonal():
    measured = four(0, 1, 2)
    found = distances(measured, COUNTED)
    assert found.index[:3].tolist() == ["VGG, stage 0", "VGG, stage 1", "ResNet, stage 0"]
    np.testing.assert_array_equal(found, found.T)

    def js(*parts):
        unit = [normalised(part.select([0])) for part in parts]
        return js_matrix(concat(unit, ["a", "b"]), scale=FLOOR).loc["a", "b"]

    across = [js(measured[4 * s], measured[4 * s + 2]) for s in range(3)]
    assert found.loc["VGG, stage 0", "ViT, stage 0"] == pytest.approx(np.mean(across), rel=1e-2)
    other = [js(measured[s], measured[t]) for s, t in ((0, 4), (0, 8), (4, 8))]
    assert found.loc["VGG, stage 0", "VGG, stage 0"] == pytest.approx(np.mean(other), rel=1e-2)


@pytest.mark.parametrize("view", [COUNTED, WEIGHED])
def test_contrast_takes_pairs_of_one_stage_between_and_within_families(view):
    measured = four(0)
    table = contrast(measured, view).set_index(["stage", "quantity"])["mean"]
    matrix = distances(measured, view)
    for stage in ("stage 0", "stage 1"):
        vgg, resnet, vit, gpt = (f"{one.meta['title']}, {stage}" for one in measured)
        between = [matrix.loc[a, b] for a in (vgg, resnet) for b in (vit, gpt)]
        within = [matrix.loc[vgg, resnet], matrix.loc[vit, gpt]]
        # the grid also holds the shifted spectra: equal but for the place of its bins
        assert table[stage, "between"] == pytest.approx(np.mean(between), rel=0.02)
        assert table[stage, "within"] == pytest.approx(np.mean(within), rel=0.02)
        ratio = table[stage, "between"] / table[stage, "within"]
        assert table[stage, "between / within"] == pytest.approx(ratio)
        ratio = table[stage, "between"] / table[stage, "shift"]
        assert table[stage, "between / shift"] == pytest.approx(ratio)


def test_the_shift_of_a_single_peak_is_that_of_an_eigenvalue():
    peak = diagonal(np.full(12, 5.0), probes=2, title="VGG", family="CNN", seed=0)
    table = contrast([scaled(peak, 3.0)], COUNTED).set_index("quantity")["mean"]
    # at 1 and 10^0.5 the axis has not quite its full slope: c is a tenth
    assert table["shift"] == pytest.approx(shift_divergence(SHIFT), rel=0.15)
    assert np.isnan(table["between"])


def test_the_error_joins_probes_and_seeds():
    table = contrast(four(0, 1), COUNTED)
    assert (table["standard_error"] > 0).all()
    single = [one.select(probes=[0]) for one in four(0, 1)]
    assert contrast(single, COUNTED)["standard_error"].isna().all()
