"""Only this file sees a spectrum that is not the block's, or not the same the next time.

A wrong quadrature, a probe that depends on what else runs, a density that loses mass between grid
points, a file that is read although it is damaged: all of these still draw a smooth curve.
Oracle: the dense Hessian of every block of the six tiny models.
"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from blockspectra import Problem, Spectra, block_spectra, full_spectrum, partition, smoothing
from blockspectra.blocks import whole
from blockspectra.files import save_arrays
from blockspectra.hessian import dense_hessian
from blockspectra.slq import probe_vector
from blockspectra.smoothing import bin_mass
from blockspectra.spectra import ARRAYS, concat
from companion.setups import REDUCED, setup
from prescribed_spectra import ragged

MODELS = list(REDUCED)


@cache
def problem_of(name):
    return setup(name, "tiny", samples=4, dtype=torch.float64).problem


@cache
def blocks_of(name):
    return partition(problem_of(name).model)


@cache
def dense(name):
    """The exact eigenvalues and eigenvectors of every block of a model; none above 2,000."""
    blocks = blocks_of(name)
    assert max(block.size for block in blocks) <= 2000
    hessians = (dense_hessian(problem_of(name), block) for block in blocks)
    return [tuple(x.numpy() for x in torch.linalg.eigh((h + h.T) / 2)) for h in hessians]


@cache
def measured(name):
    return block_spectra(problem_of(name), blocks_of(name), steps=8, probes=3, seed=1)


def synthetic(nodes, weights=None, sizes=None):
    """Spectra with these nodes and weights, (block, probe, step), whatever (α, β) they have."""
    nodes = np.asarray(nodes, dtype=np.float64)
    weights = np.full(nodes.shape, 1 / nodes.shape[-1]) if weights is None else weights
    blocks, probes = nodes.shape[:2]
    spectra = Spectra(
        [f"b{i}" for i in range(blocks)],
        sizes or [10] * blocks,
        nodes,
        np.zeros_like(nodes),
        np.ones((blocks, probes), dtype=np.int64),
        np.zeros((blocks, probes)),
    )
    spectra.__dict__["quadrature"] = (nodes, np.asarray(weights, dtype=np.float64))
    return spectra


# against the dense Hessian


@pytest.mark.parametrize("name", MODELS)
def test_gauss_moments_up_to_2m_minus_1_are_those_of_the_dense_hessian(name):
    spectra = measured(name)
    for i, block in enumerate(blocks_of(name)):
        eigenvalues, vectors = dense(name)[i]
        nodes, weights = spectra.nodes(i), spectra.weights(i)
        for k in range(spectra.probes):
            start = probe_vector(1, block.name, k, block.size).numpy()
            share = (vectors.T @ (start / np.linalg.norm(start))) ** 2
            for order in range(2 * 8):
                # relative to vᵀ|H|ᵏv: an odd moment may cancel to nearly nothing
                size = share @ np.abs(eigenvalues) ** order
                error = weights[k] @ nodes[k] ** order - share @ eigenvalues**order
                assert abs(error) <= 1e-8 * size, (block.name, k, order)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_steps_as_parameters_find_every_eigenvalue_and_no_other(name):
    for i, block in enumerate(blocks_of(name)):
        eigenvalues, vectors = dense(name)[i]
        spectra = block_spectra(problem_of(name), [block], steps=block.size, probes=1)
        nodes, weights = spectra.nodes(0)[0], spectra.weights(0)[0]
        start = probe_vector(0, block.name, 0, block.size).numpy()
        share = (vectors.T @ (start / np.linalg.norm(start))) ** 2  # that the probe sees of each
        scale = np.abs(eigenvalues).max()
        distance = np.abs(nodes[:, None] - eigenvalues) / scale
        assert distance[weights > 1e-14].min(1).max() < 1e-8, block.name
        assert distance[:, share > 1e-12].min(0).max() < 1e-8, block.name
        gaps = np.flatnonzero(np.diff(eigenvalues) > 1e-6 * scale)
        between = (eigenvalues[gaps + 1] + eigenvalues[gaps]) / 2
        found, exact = ((x < between[:, None]) for x in (nodes, eigenvalues))
        np.testing.assert_allclose(found @ weights, exact @ share, atol=1e-8)
        assert spectra.orthogonality.max() < 1e-12


def test_the_basis_is_kept_in_the_precision_of_the_model_unless_another_is_named():
    problem = setup("gpt", "tiny", samples=2).problem
    blocks = partition(problem.model)[:2]
    auto, named, double = (
        block_spectra(problem, blocks, steps=20, probes=1, basis=basis)
        for basis in ("auto", "float32", "float64")
    )
    assert auto.meta["basis"] == named.meta["basis"] == "float32"
    assert np.array_equal(auto.alpha, named.alpha)
    assert 1e-9 < auto.orthogonality.max() < 1e-5
    assert double.orthogonality.max() < 1e-12
    first = slice(0, 5)  # before rounding has been amplified
    scale = np.abs(double.alpha).max()
    np.testing.assert_allclose(auto.alpha[..., first], double.alpha[..., first], atol=1e-5 * scale)
    assert measured("gpt").meta["basis"] == "float64"  # of a model in float64


@pytest.mark.parametrize("name", MODELS)
def test_traces_are_unbiased_and_the_largest_node_is_a_lower_bound(name):
    spectra = block_spectra(problem_of(name), blocks_of(name), steps=1, probes=24)
    traces = spectra.traces()
    error = traces.std(1, ddof=1) / 24**0.5
    exact = np.array([eigenvalues.sum() for eigenvalues, _ in dense(name)])
    assert (np.abs(traces.mean(1) - exact) < 5 * error + 1e-12).all()
    top = np.array([eigenvalues[-1] for eigenvalues, _ in dense(name)])
    assert (measured(name).largest <= top * (1 + 1e-10)).all()
    assert (measured(name).largest > 0.4 * top).all()


def test_the_full_spectrum_is_that_of_the_dense_hessian_over_all_parameters():
    problem = Problem(torch.nn.Linear(3, 4).double(), *linear_problem())
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(problem, whole(problem.model))).numpy()
    spectra = full_spectrum(problem, steps=16, probes=1)
    assert (spectra.names, spectra.sizes) == (["all parameters"], [16])
    nodes = spectra.nodes(0)[0][spectra.weights(0)[0] > 1e-13]
    assert np.abs(nodes[:, None] - eigenvalues).min(1).max() < 1e-10
    assert np.abs(nodes[:, None] - eigenvalues).min(0).max() < 1e-10


def linear_problem():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return lambda model, batch: model(batch).logsumexp(-1).mean(), [x]


# the same again


@pytest.mark.parametrize("name", MODELS)
def test_a_block_has_the_same_bits_alone_in_another_order_and_with_more_probes(name):
    problem, blocks = problem_of(name), blocks_of(name)
    together = block_spectra(problem, blocks, steps=3, probes=2)
    backwards = block_spectra(problem, blocks[::-1], steps=3, probes=2)
    more = block_spectra(problem, blocks, steps=3, probes=3)
    for i, block in enumerate(blocks):
        alone = block_spectra(problem, [block], steps=3, probes=2)
        for other, j in ((alone, 0), (backwards, len(blocks) - 1 - i), (more, i)):
            assert np.array_equal(other.alpha[j, :2], together.alpha[i]), block.name
            assert np.array_equal(other.beta[j, :2], together.beta[i]), block.name
    assert not np.array_equal(more.alpha[:, 2], more.alpha[:, 0])


def test_another_seed_or_name_draws_other_probes():
    first = probe_vector(0, "a", 0, 5)
    for other in (
        probe_vector(1, "a", 0, 5),
        probe_vector(0, "b", 0, 5),
        probe_vector(0, "a", 1, 5),
    ):
        assert not torch.isclose(first, other).any()
    assert torch.equal(first, probe_vector(0, "a", 0, 7)[:5])


def test_the_probe_of_another_machine_is_the_same():
    start = probe_vector(0, "h.0.attn.c_attn.q", 3, 10)[:3].tolist()
    drawn_here = [-0.04908382913228383, 1.7002116374028584, 0.36975057346132423]
    assert start == pytest.approx(drawn_here, rel=1e-15)


def test_steps_beyond_a_small_block_are_left_at_zero_and_counted():
    problem = problem_of("mixer")
    blocks = partition(problem.model, only=["blocks.0.token_mix.fc1", "head"])
    spectra = block_spectra(problem, blocks, steps=20, probes=2)
    assert spectra.alpha.shape == (2, 2, 20)
    assert spectra.taken.tolist() == [[16, 16], [20, 20]]
    assert not spectra.alpha[0, :, 16:].any()
    assert not spectra.beta[0, :, 15:].any()
    assert spectra.meta.items() >= {"steps": 20, "probes": 2, "seed": 0}.items()


@pytest.mark.parametrize(
    ("blocks", "arguments", "sentence"),
    [
        (lambda b: [], {}, "at least one block, and each once"),
        (lambda b: [b[0], b[0]], {}, "each once; got .'features.0', 'features.0'"),
        (lambda b: b, {"steps": 0}, "at least 1, not 0 and 10"),
        (lambda b: b, {"probes": 0}, "at least 1, not 100 and 0"),
        (
            lambda b: b,
            {"basis": "float16"},
            "Unknown basis 'float16': choose auto, or one of float64",
        ),
    ],
)
def test_nothing_to_do_gets_one_sentence(blocks, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        block_spectra(problem_of("vgg"), blocks(blocks_of("vgg")), **arguments)


def test_the_bar_is_shown_on_request_alone(capsys):
    for progress in (True, False):
        block_spectra(problem_of("vgg"), blocks_of("vgg")[:1], steps=1, probes=1, progress=progress)
        assert ("features.0" in capsys.readouterr().err) == progress


# densities

point_sets = st.lists(st.floats(-100, 100), min_size=1, max_size=8)
widths = st.floats(-9, 2).map(lambda x: 10**x)  # from far below any grid's cell to far above


@given(points=point_sets, sigma=widths, cells=st.integers(2, 60), seed=st.integers(0, 999))
@settings(max_examples=200, deadline=None)
def test_density_integrates_to_one_on_any_grid_for_any_sigma(points, sigma, cells, seed):
    random = np.random.default_rng(seed)
    grid = np.sort(random.uniform(min(points) - 1, max(points) + 1, cells))
    if (np.diff(grid) == 0).any():
        return
    density = synthetic([[points]]).density(grid, sigma)
    middle = (grid[1:] + grid[:-1]) / 2
    inner = np.diff(middle)
    cell = np.concatenate([[2 * (middle[0] - grid[0])], inner, [2 * (grid[-1] - middle[-1])]])
    assert (density >= 0).all()
    assert density[0] @ cell == pytest.approx(1, abs=1e-12)


@given(points=point_sets, sigma=st.floats(0.05, 5), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_density_on_a_fine_grid_is_the_gaussian_mixture(points, sigma, seed):
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(points)))
    grid = np.arange(min(points) - 8 * sigma, max(points) + 8 * sigma, sigma / 40)
    z = (grid[:, None] - np.array(points)) / sigma
    mixture = np.exp(-(z**2) / 2) @ weights / (sigma * (2 * np.pi) ** 0.5)
    density = synthetic([[points]], [[weights]]).density(grid, sigma)[0]
    np.testing.assert_allclose(density, mixture, atol=2e-4 * mixture.max())


def dense_mass(nodes, weights, edges, sigma):
    """Differences of normal CDFs for every pair of a node and an edge."""
    distance = edges[1:-1] - nodes[..., None]
    below = ndtr(distance / sigma) if sigma else (distance > 0).astype(float)
    cumulative = (weights[..., None] * below).sum(-2)
    total = weights.sum(-1, keepdims=True)
    return np.diff(np.concatenate([0 * total, cumulative, total], -1))


@given(
    sigma=st.just(0.0) | st.floats(-9, 3).map(lambda x: 10**x),
    bins=st.integers(1, 80),
    pairs=st.sampled_from([1, 50, 2**19]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=200, deadline=None)
def test_mass_within_windows_is_that_of_every_pair_of_a_node_and_an_edge(sigma, bins, pairs, seed):
    random = np.random.default_rng(seed)
    edges = np.unique(random.standard_cauchy(bins + 1))  # not uniform, nodes on and beyond them
    nodes = random.choice(np.append(edges, 2 * random.standard_cauchy(9)), (2, 3, 7))
    weights = random.dirichlet(np.ones(7), (2, 3)) * (random.random((2, 3, 1)) < 0.8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothing, "PAIRS", pairs)
        found = bin_mass(nodes, weights, edges, sigma)
    np.testing.assert_allclose(found, dense_mass(nodes, weights, edges, sigma), atol=1e-14)


@pytest.mark.parametrize("sigma", [1e-5**0.5, 10.0])
def test_no_more_pairs_of_a_node_and_a_bin_are_in_memory_than_a_chunk_has(monkeypatch, sigma):
    sizes, ours = [], torch.special.ndtr
    monkeypatch.setattr(torch.special, "ndtr", lambda x: (sizes.append(x.numel()), ours(x))[1])
    nodes = np.linspace(-1, 40, 1000).reshape(1, 10, 100)
    synthetic(nodes).density(np.linspace(-1, 40, 50_000), sigma)
    bins = 18 * sigma / (41 / 50_000)  # that a Gaussian can touch
    assert max(sizes) <= smoothing.PAIRS + 50_000
    assert sum(sizes) <= 1000 * (min(bins, 50_000) + 2)


def test_density_is_the_mean_over_probes():
    both = synthetic([[[0.0], [4.0]]]).density(np.arange(-2.0, 7.0), 0.3)
    each = [synthetic([[[x]]]).density(np.arange(-2.0, 7.0), 0.3) for x in (0.0, 4.0)]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2)


# keeping and choosing


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_a_saved_spectrum_is_loaded_to_the_bit(tmp_path_factory, seed):
    spectra = arbitrary(seed)
    path = spectra.save(tmp_path_factory.mktemp("spectra") / "deep" / "a.npz")
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]  # no temporary is left
    found = Spectra.load(path)
    for key in ("alpha", "beta", "taken", "orthogonality"):
        left, right = getattr(spectra, key), getattr(found, key)
        assert left.tobytes() == right.tobytes()
        assert left.dtype == right.dtype
    assert (found.names, found.sizes, found.meta) == (spectra.names, spectra.sizes, spectra.meta)


def arbitrary(seed=0):
    random = np.random.default_rng(seed)
    alpha, beta = random.standard_normal((2, 2, 3, 4)) * 10.0 ** random.integers(-300, 300)
    taken, orthogonality = np.full((2, 3), 4), random.random((2, 3))
    return Spectra(
        ["a", "h.β"], [5, 6], alpha, beta, taken, orthogonality, {"seed": seed, "σ": 1e-5}
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"a\.npz is damaged .* delete it"),
        (lambda path: save_arrays(path, {"names": []}, {}), r"a\.npz holds no spectra: delete it"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_in_one_sentence(tmp_path, content, sentence):
    content(arbitrary().save(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match=sentence):
        Spectra.load(tmp_path / "a.npz")


def test_files_are_those_of_version_0_1_0(tmp_path):
    """Its checksum, written down then: files of that version are read."""
    alpha = np.arange(4.0).reshape(1, 2, 2)
    taken, zero = np.full((1, 2), 2), np.zeros((1, 2))
    sha256 = "f0cf1f5af51ce934cabf6db13841b5ed8f6c04f8aa51146640327642f7cb1b95"
    spectra = Spectra(["h.β"], [5], alpha, alpha / 3, taken, zero, {"seed": 0})
    with np.load(spectra.save(tmp_path / "a.npz")) as file:
        assert set(file) == {"header", *ARRAYS}
        header = json.loads(str(file["header"]))
    assert header == {"names": ["h.β"], "sizes": [5], "meta": {"seed": 0}, "sha256": sha256}


def test_select_picks_blocks_by_name_or_position_and_probes():
    spectra = measured("gpt")
    picked = spectra.select(["wpe", 0], probes=[2, 0])
    assert picked.names == ["wpe", "wte=lm_head"]
    assert picked.sizes == [64, 608]
    assert np.array_equal(picked.alpha, spectra.alpha[[1, 0]][:, [2, 0]])
    assert np.array_equal(picked.nodes("wpe"), spectra.nodes(1)[[2, 0]])
    assert spectra.select().names == spectra.names
    with pytest.raises(ValueError, match="No spectrum of a block 'wqe': there are"):
        spectra.select(["wqe"])


def test_moments_and_traces_follow_from_nodes_and_weights():
    spectra = synthetic([[[1.0, 3.0], [2.0, 2.0]]], [[[0.25, 0.75], [0.5, 0.5]]], sizes=[7])
    assert spectra.moment(0).tolist() == [[1, 1]]
    assert spectra.moment(2).tolist() == [[7, 4]]
    assert spectra.traces().tolist() == [[2.5 * 7, 2 * 7]]
    assert spectra.largest.tolist() == [3]


@pytest.mark.parametrize("name", MODELS)
def test_eigenvalues_are_bounds_from_below_and_the_largest_is_near(name):
    found = measured(name).eigenvalues(top=3)
    assert list(found.columns) == [1, 2, 3]
    for (block, row), (values, _) in zip(found.iterrows(), dense(name), strict=True):
        exact = values[::-1][:3]
        known = row.dropna().to_numpy()
        assert len(known), block
        assert (known <= exact[: len(known)] + 1e-9 * np.abs(values).max()).all(), block
    np.testing.assert_array_equal(found[1], measured(name).largest)


def test_a_table_has_a_row_a_ritz_value_and_none_of_a_missing_probe():
    uneven = ragged(some(), COUNTS)
    table = uneven.to_frame()
    assert list(table.columns) == ["block", "probe", "eigenvalue", "weight"]
    assert len(table) == uneven.taken.sum()
    assert table.groupby("block", sort=False)["probe"].nunique().tolist() == COUNTS
    np.testing.assert_allclose(table.groupby(["block", "probe"])["weight"].sum(), 1)
    mean = (table["weight"] * table["eigenvalue"]).groupby([table["block"], table["probe"]]).sum()
    assert mean[uneven.names[0], 2] == pytest.approx(uneven.moment(1)[0, 2])


def test_more_eigenvalues_than_were_found_are_nan():
    found = ragged(some(), COUNTS).eigenvalues(top=7)
    assert found.shape == (3, 7)
    assert found[7].isna().all()


def test_a_plot_has_a_row_a_block():
    figure = some().plot("GPT")
    ax = figure.axes[0]
    assert len(ax.get_yticklabels()) == 3
    assert ax.get_title() == "GPT"
    formula = replace(some(), names=[r"$\frac{a}$", "$", "c"]).plot()
    formula.canvas.draw()
    assert formula.axes[0].get_yticklabels()[0].get_text() == r"\$\frac{a}\$"


# blocks with different numbers of probes


COUNTS = [3, 1, 2]


@cache
def some():
    """Three complete blocks of three probes, one of them smaller than the number of steps."""
    problem, blocks = problem_of("gpt"), blocks_of("gpt")
    return block_spectra(problem, [blocks[1], blocks[2], blocks[3]], steps=6, probes=3)


def test_a_block_with_fewer_probes_is_what_it_would_be_alone():
    uneven, grid = ragged(some(), COUNTS), np.linspace(-0.5, 0.5, 301)
    assert uneven.counts.tolist() == COUNTS
    assert uneven.probes == 3
    for i, count in enumerate(COUNTS):
        alone = some().select([i], probes=range(count))
        assert uneven.largest[i] == alone.largest[0]
        assert uneven.quadrature[0][i].min() == alone.quadrature[0].min()
        assert np.array_equal(uneven.nodes(i)[:count], alone.nodes(0))
        assert np.array_equal(uneven.weights(i)[:count], alone.weights(0))
        assert not uneven.weights(i)[count:].any()
        assert np.array_equal(uneven.density(grid, 0.01)[i], alone.density(grid, 0.01)[0])
        for of in (lambda x: x.moment(2), lambda x: x.traces(), lambda x: x.mass(grid, 0.01)):
            assert np.array_equal(of(uneven)[i, :count], of(alone)[0])
            assert np.isnan(of(uneven)[i, count:]).all()


def test_select_leaves_out_probes_that_no_block_has_and_refuses_to_leave_a_block_bare(tmp_path):
    uneven = Spectra.load(ragged(some(), COUNTS).save(tmp_path / "a.npz"))
    last = uneven.select([0, 2], probes=[2, 0])
    assert last.counts.tolist() == [2, 1]
    assert np.array_equal(last.alpha[1, 1], some().alpha[2, 0])
    assert np.array_equal(last.nodes(1)[0], last.nodes(1)[1])  # the missing one has the first's
    assert uneven.select([1, 2]).alpha.shape[1] == 2
    assert uneven.select([1]).probes == 1
    with pytest.raises(ValueError, match=r"has none of the probes \[1, 2\]: keep one it has"):
        uneven.select(probes=[1, 2])


# side by side


def test_concat_keeps_order_and_belongings_and_the_meta_that_all_share():
    first, second = arbitrary(0), arbitrary(1)
    both = concat([second, first], ["c", "d", "a", "b"])
    assert (both.names, both.sizes) == (["c", "d", "a", "b"], [5, 6, 5, 6])
    assert both.meta == {"σ": 1e-5}
    for key in ARRAYS:
        parts = np.concatenate([getattr(second, key), getattr(first, key)])
        assert np.array_equal(getattr(both, key), parts)
    assert concat([some().select([i]) for i in range(3)]).names == some().names


def test_concat_of_deflated_spectra_is_deflated():
    halves = [some().deflated().select([0]), some().deflated().select([1, 2])]
    assert np.array_equal(concat(halves).weights(2), some().deflated().weights(2))
    assert not np.array_equal(concat(halves).weights(2), some().weights(2))


@pytest.mark.parametrize(
    ("others", "names", "sentence"),
    [
        (lambda: some(), None, "Give a name of its own to each of the 6 spectra"),
        (lambda: some(), ["a"], "Give a name of its own to each of the 6 spectra"),
        (lambda: some().deflated(), list("abcdef"), "differ in probes, in steps or in being"),
        (lambda: some().select(probes=[0]), list("abcdef"), "differ in probes, in steps or in"),
    ],
)
def test_concat_refuses_what_cannot_stand_side_by_side(others, names, sentence):
    with pytest.raises(ValueError, match=sentence):
        concat([some(), others()], names)


# deflation: what it does is in test_quadrature.py


def test_deflation_outlives_a_file_and_a_choice_of_blocks(tmp_path):
    deflated = some().deflated()
    assert deflated.meta == {**some().meta, "deflated": True}
    assert "deflated" not in some().meta
    assert not np.array_equal(deflated.weights(0), some().weights(0))
    found = Spectra.load(deflated.save(tmp_path / "a.npz"))
    assert np.array_equal(found.weights(0), deflated.weights(0))
    assert np.array_equal(found.select([2, 0]).weights(1), deflated.weights(0))
    uneven = ragged(some(), COUNTS).deflated()
    np.testing.assert_allclose(uneven.weights(1).sum(-1), [1, 0, 0], atol=1e-14)
    assert np.array_equal(uneven.nodes(1)[0], uneven.nodes(1)[2])


@pytest.mark.parametrize("loss", [1e-3, 1.0, np.nan, np.inf])
def test_without_an_orthogonal_basis_there_is_no_deflation(loss):
    spectra = ragged(some(), COUNTS)
    spectra.orthogonality[1, 2] = loss  # of a missing probe: of no consequence
    spectra.deflated()
    spectra.orthogonality[0, 2] = loss
    with pytest.raises(ValueError, match="compute the spectra again with basis"):
        spectra.deflated()
