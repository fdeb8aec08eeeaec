"""How far a Lanczos spectrum is from the exact one, for blocks small enough to know it.

The estimator sees a matrix only through its eigenvalues: in the eigenbasis the matrix is diagonal
and a Gaussian start vector is Gaussian again. So the exact eigenvalues are all that is needed here,
and only the estimator's error is seen, not that of the products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.stats import wasserstein_distance

from blockspectra.blocks import Block, partition
from blockspectra.distance import pairwise
from blockspectra.hessian import dense_hessian
from blockspectra.lanczos import Tridiagonal, lanczos
from blockspectra.problem import Problem, cross_entropy
from blockspectra.quadrature import gauss_quadrature
from blockspectra.slq import full_spectrum, probe_vector
from blockspectra.smoothing import FLOOR, SIGMA, bin_mass, signed_log
from companion import datasets
from companion.datasets.images import PHOTOGRAPHS
from companion.datasets.sources import digest_of
from companion.datasets.text import PLAYS
from companion.models import gpt
from companion.setups import setup
from companion.store import Job, Store

REPEATS = 5  # draws of the probes behind each error


@dataclass(frozen=True)
class ExactEigenvalues(Job):
    """All eigenvalues of four blocks that are small enough for it: see `four_blocks`."""

    NAME = "exact-eigenvalues"

    width: int = 20
    samples: int = 32
    seed: int = 0

    def data_key(self) -> str:
        """Digest of the plays and the photographs."""
        return digest_of((*PLAYS, *PHOTOGRAPHS))

    def compute(self, store: Store) -> pd.DataFrame:
        """Return block (its title) and eigenvalue, ascending in a block."""
        return exact_eigenvalues(four_blocks(self.width, self.samples, self.seed))


@dataclass(frozen=True)
class EstimateErrors(Job):
    """Errors of Lanczos estimates of these eigenvalues, for every number of steps and probes."""

    NAME = "estimate-errors"

    exact: ExactEigenvalues
    steps: tuple[int, ...]
    probes: tuple[int, ...]

    def compute(self, store: Store) -> pd.DataFrame:
        """Return the rows of `error_table` for every block."""
        values = by_block(store.get(self.exact))
        return pd.concat([error_table(e, t, self.steps, self.probes) for t, e in values.items()])


@dataclass(frozen=True)
class HeterogeneityBias(Job):
    """JS⁰ of a small GPT from Lanczos estimates beside the exact one, on several axes."""

    NAME = "bias-of-js0"

    width: int = 12
    samples: int = 32
    seed: int = 0
    steps: tuple[int, ...] = (15, 30, 60, 100)

    def data_key(self) -> str:
        """Digest of the plays."""
        return digest_of(PLAYS)

    def compute(self, store: Store) -> pd.DataFrame:
        """Return the rows of `divergence_bias` over the blocks of up to 2,000 parameters."""
        small = small_blocks(self.width, self.samples, self.seed)
        return divergence_bias(by_block(exact_eigenvalues(small)), self.steps)


def jobs(
    width: int, samples: int, steps: list[int], probes: list[int], bias_width: int, seed: int
) -> list[Job]:
    """Declare chapter 02's measurements: exact eigenvalues, errors of estimates, bias of JS⁰."""
    exact = ExactEigenvalues(width, samples, seed)
    errors = EstimateErrors(exact, tuple(steps), tuple(probes))
    return [exact, errors, HeterogeneityBias(bias_width, samples, seed)]


def small_gpt(width: int, samples: int, seed: int) -> Problem:
    """Two layers in float64, initialised with the gain that the paper's 0.02 has at width 768."""
    text = datasets.shakespeare(context=16, windows=samples, seed=seed)
    init_std = 0.02 * (768 / width) ** 0.5
    config = replace(gpt.TINY, width=width, context=16, vocab=text.classes, init_std=init_std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = gpt.GPT(config).double().eval()
    return Problem(model, cross_entropy, datasets.batches(text, samples, 1, seed=seed))


def four_blocks(width: int, samples: int, seed: int) -> dict[str, tuple[Problem, Block]]:
    """Three blocks of a small GPT and one of a tiny VGG, each with its problem, by title."""
    problem = small_gpt(width, samples, seed)
    names = {"Query": "h.0.attn.c_attn.q", "Value": "h.0.attn.c_attn.v", "MLP": "h.0.mlp.c_fc"}
    blocks = {t: (problem, *partition(problem.model, only=name)) for t, name in names.items()}
    vgg = setup("vgg", "tiny", samples=samples, seed=seed, dtype=torch.float64).problem
    return blocks | {"Convolution": (vgg, *partition(vgg.model, only="features.3"))}


def small_blocks(width: int, samples: int, seed: int) -> dict[str, tuple[Problem, Block]]:
    """All blocks of a small GPT of up to 2,000 parameters, each with its problem, by name."""
    problem = small_gpt(width, samples, seed)
    return {b.name: (problem, b) for b in partition(problem.model) if b.size <= 2000}


def by_block(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Split a table of eigenvalues: block → eigenvalues, (d,)."""
    grouped = table.groupby("block", sort=False)["eigenvalue"]
    return {title: values.to_numpy() for title, values in grouped}


def exact_eigenvalues(blocks: Mapping[str, tuple[Problem, Block]]) -> pd.DataFrame:
    """All eigenvalues of block Hessians, by the dense matrix: block (its title), eigenvalue."""
    values = {t: torch.linalg.eigvalsh(dense_hessian(*where)) for t, where in blocks.items()}
    found = [pd.DataFrame({"block": t, "eigenvalue": v.numpy()}) for t, v in values.items()]
    return pd.concat(found, ignore_index=True)


def run(
    eigenvalues: np.ndarray, steps: int, probes: int, *, seed: int = 0, reorthogonalize: bool = True
) -> list[Tridiagonal]:
    """Lanczos on a matrix with these eigenvalues, (d,): one run a probe."""
    values = torch.tensor(eigenvalues)
    starts = (probe_vector(seed, "exact", k, len(values)) for k in range(probes))
    return [
        lanczos(lambda v: values * v, start, steps, reorthogonalize=reorthogonalize)
        for start in starts
    ]


def quadrature(runs: Sequence[Tridiagonal], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, (probe, step) each, of the first steps of some runs."""
    alpha, beta, taken = (np.stack([run[i].numpy() for run in runs]) for i in range(3))
    return gauss_quadrature(alpha[:, :steps], beta[:, :steps], taken.clip(max=steps))


def moment_error(eigenvalues: np.ndarray, steps: int, *, seed: int = 0) -> float:
    """Largest error of the Gauss moments 0…2m−1 of one probe, relative to vᵀ|H|ᵏv."""
    nodes, weights = quadrature(run(eigenvalues, steps, 1, seed=seed), steps)
    start = probe_vector(seed, "exact", 0, len(eigenvalues))
    share = (start / start.norm()).square().numpy()
    top = np.abs(eigenvalues).max()  # powers of shares of λ_max neither overflow nor vanish
    exact, estimate = eigenvalues / top, nodes[0] / top
    errors = [
        abs((weights[0] * estimate**k).sum() - (share * exact**k).sum())
        / (share * np.abs(exact) ** k).sum()
        for k in range(2 * steps)
    ]
    return float(max(errors))


def density_curves(
    eigenvalues: np.ndarray, block: str, settings: dict[str, tuple[int, int]]
) -> pd.DataFrame:
    """Exact density and Lanczos estimates on the signed-log axis, smoothed alike.

    ``settings`` maps the name of a method to (steps, probes). Columns: block, method, position
    (decades, of λ as a share of the largest |λ|), density (per decade).
    """
    top = np.abs(eigenvalues).max()
    reach = signed_log(np.array(1.0), FLOOR) + 5 * SIGMA["signed-log"]
    edges = np.linspace(-reach, reach, 301)
    uniform = np.full((1, len(eigenvalues)), 1 / len(eigenvalues))
    measures = {"exact": (eigenvalues[None], uniform)}
    measures |= {n: quadrature(run(eigenvalues, *c), c[0]) for n, c in settings.items()}
    rows = []
    for method, (nodes, weights) in measures.items():
        mass = bin_mass(signed_log(nodes / top, FLOOR), weights, edges, SIGMA["signed-log"]).mean(0)
        middle, density = (edges[1:] + edges[:-1]) / 2, mass / np.diff(edges)
        rows.append(pd.DataFrame({"position": middle, "density": density}).assign(method=method))
    return pd.concat(rows).assign(block=block)


def error_table(
    eigenvalues: np.ndarray, block: str, steps: Sequence[int], probes: Sequence[int]
) -> pd.DataFrame:
    """Error of the spectrum against the exact one, for every number of steps and probes.

    Columns: block, steps, probes, repeat; w1: Wasserstein-1 distance as a share of the spectrum's
    width; js: Jensen–Shannon divergence on the signed-log axis (nats); top: relative error of the
    largest |λ|.
    """
    exact, top = eigenvalues, np.abs(eigenvalues).max()
    width, scale, sigma = exact.max() - exact.min(), FLOOR * top, SIGMA["signed-log"]
    low, high = signed_log(np.array([exact.min(), exact.max()]), scale)
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, 400)
    uniform = np.full(len(exact), 1 / len(exact))
    reference = bin_mass(signed_log(exact, scale), uniform, edges, sigma)
    runs, rows = run(exact, max(steps), max(probes) * REPEATS), []
    for m, n, repeat in product(steps, probes, range(REPEATS)):
        nodes, weights = quadrature(runs[repeat * n : (repeat + 1) * n], m)
        flat, share = nodes.ravel(), weights.ravel() / n
        mass = bin_mass(signed_log(flat, scale), share, edges, sigma)
        js = pairwise(np.stack([mass, reference]), edges[1] - edges[0])[0, 1]
        w1 = wasserstein_distance(exact, flat, None, share) / width
        rows.append((block, m, n, repeat, w1, js, abs(np.abs(flat).max() / top - 1)))
    return pd.DataFrame(rows, columns=["block", "steps", "probes", "repeat", "w1", "js", "top"])


def errors_under_tolerance(
    eigenvalues: np.ndarray, block: str, tolerance: float, repeats: int
) -> pd.DataFrame:
    """Error of spectra taken under a ``tolerance``, beside the error expected of each.

    Both are Wasserstein-1 distances in units of the RMS eigenvalue. Columns: block,
    repeat, error, expected, steps, probes.
    """
    values, scale = torch.tensor(eigenvalues), float(np.sqrt((eigenvalues**2).mean()))
    model = torch.nn.Linear(len(values), 1, bias=False, dtype=values.dtype)
    problem = Problem(model, lambda m, _: (values @ m.weight[0].square()) / 2, [torch.ones(1)])
    settings, rows = {"steps": 200, "probes": 40, "tolerance": tolerance}, []
    for repeat in range(repeats):
        spectra = full_spectrum(problem, seed=repeat, progress=False, **settings)
        nodes, weights = (x[0][spectra.present[0]] for x in spectra.quadrature)
        share = weights.ravel() / len(weights)
        error = wasserstein_distance(eigenvalues, nodes.ravel(), None, share) / scale
        taken = spectra.taken[0]
        size = int(taken.max()), np.count_nonzero(taken)
        rows.append((block, repeat, error, float(np.hypot(*spectra.meta["error"][0])), *size))
    columns = ["block", "repeat", "error", "expected", "steps", "probes"]
    return pd.DataFrame(rows, columns=columns)


def divergence_bias(blocks: dict[str, np.ndarray], steps: Sequence[int]) -> pd.DataFrame:
    """JS⁰ of a model from Lanczos estimates (4 probes) beside the exact one, in nats.

    Columns: axis (with its c, as a share of the largest |λ|, or its σ), steps, exact, estimate.
    """
    every = np.concatenate(list(blocks.values()))
    top = np.abs(every).max()
    runs = [run(e, max(steps), 4, seed=i) for i, e in enumerate(blocks.values())]
    uniform = [(e[None], np.full((1, len(e)), 1 / len(e))) for e in blocks.values()]
    estimates = {m: [quadrature(r, min(m, len(r[0].alpha))) for r in runs] for m in steps}
    axes = {f"signed-log, c = {c:g}": (c, SIGMA["signed-log"]) for c in (1e-5, 1e-4, 1e-3, 1e-2)}
    rows = []
    for axis, (share, sigma) in (axes | {"raw, σ² = 1e-5": (None, SIGMA["raw"])}).items():
        move = (lambda x: x) if share is None else (lambda x, c=share * top: signed_log(x, c))
        low, high = move(every.min()), move(every.max())
        edges = np.arange(low - 5 * sigma, high + 5 * sigma, sigma / 4)

        def mean(measures, move=move, edges=edges, sigma=sigma):
            mass = [bin_mass(move(n), w, edges, sigma).mean(0) for n, w in measures]
            return pairwise(np.stack(mass), sigma / 4)[np.triu_indices(len(mass), 1)].mean()

        exact = mean(uniform)
        rows += [(axis, m, exact, mean(found)) for m, found in estimates.items()]
    return pd.DataFrame(rows, columns=["axis", "steps", "exact", "estimate"])


def ghost_table(eigenvalues: np.ndarray, block: str, steps: Sequence[int]) -> pd.DataFrame:
    """Ritz values that repeat an eigenvalue, with and without re-orthogonalisation.

    A Ritz value within 1e-6 (relative) of the largest one is a copy of it. Columns: block, steps,
    method, copies, loss (of orthogonality, the largest entry of ``|Q Qᵀ − I|``).
    """
    top, rows = np.abs(eigenvalues).max(), []
    for method, both in (("re-orthogonalised", True), ("recurrence alone", False)):
        for m in steps:
            done = run(eigenvalues, m, 1, reorthogonalize=both)
            nodes, _ = quadrature(done, m)
            copies = int((nodes[0].max() - nodes[0] < 1e-6 * top).sum())
            rows.append((block, m, method, copies, float(done[0].orthogonality)))
    return pd.DataFrame(rows, columns=["block", "steps", "method", "copies", "loss"])


def sampled_mass(nodes: np.ndarray, weights: np.ndarray) -> float:
    """Total mass of a density that is sampled at grid points, as the released code does.

    A uniform grid from the smallest node − 1 to the largest + 1; 1 where nothing aliases.
    """
    points, sigma = 50_000, SIGMA["raw"]
    grid = np.linspace(nodes.min() - 1, nodes.max() + 1, points)
    step = grid[1] - grid[0]
    reach = int(np.ceil(8 * sigma / step)) + 1  # beyond 8σ a Gaussian adds nothing
    near = np.searchsorted(grid, nodes)[:, None] + np.arange(-reach, reach + 1)
    values = np.exp(-0.5 * ((grid[near.clip(0, points - 1)] - nodes[:, None]) / sigma) ** 2)
    values[(near < 0) | (near >= points)] = 0
    return float((weights[:, None] * values).sum() * step / (sigma * np.sqrt(2 * np.pi)))
