r"""Gauss nodes and weights of Lanczos runs, and deflation weights.

**Deflation.** With an orthonormal basis, a Ritz value :math:`θ_i` lies within its residual
:math:`r_i = |β_m s_{mi}|` of an eigenvalue, :math:`s_i` being its eigenvector of the tridiagonal
matrix. Where :math:`r_i` is far below the distance to the other Ritz values, the Ritz vector is an
eigenvector :math:`q_i`. A single eigenvalue is :math:`1/d` of the spectrum of a block of :math:`d`
parameters; Gauss quadrature gives it :math:`(q_i^\top v)^2`, which scatters as
:math:`χ^2_1/d`: by 140 % for one start vector :math:`v`. Deflation gives it :math:`1/d`. What is
left of :math:`v` is uniform on the sphere of the other dimensions, so the other weights keep their
ratios and share the rest, without bias.

A multiple eigenvalue is found once, with the sum of its weights, and must keep it: structural zeros
above all. Weights that single eigenvalues would hardly ever have are therefore left as they are.

Source: Golub & Meurant, *Matrices, Moments and Quadrature*, chapter 6; Parlett, *The Symmetric
Eigenvalue Problem*, chapter 13, for the residual; Chen & Hallman, "Krylov-aware stochastic trace
estimation", 2023, for deflation by the Krylov space itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ORTHOGONAL = 1e-4  # entries of |Q Qᵀ − I|, at most: above, there may be ghost copies
SINE = 0.1  # residual / distance to the next Ritz value: sine of an eigenvector's error, at most
NOISE = 1e-6  # of the largest |λ|: smaller differences are rounding of float32 products
# levels of the tests that eigenvalues are single, by the weights that probes see of them
P_ONE = 1e-4  # one eigenvalue, in all probes
P_ALL = 1e-2  # all that were found, in all probes
P_REST = 1e-6  # all that one probe has found, by what is left for the others
EXCESS = 1.6  # times 1/d that the first two weigh at least: single ones found early reach 1.5


class Ritz(NamedTuple):
    """Ritz values of one run, ascending; (step,) float64 each."""

    nodes: np.ndarray
    weights: np.ndarray  #: Gauss weights, sum to 1
    residuals: np.ndarray  #: an eigenvalue is no further from its node than this


def ritz(alpha: np.ndarray, beta: np.ndarray) -> Ritz:
    """Ritz values after m steps, from the first m coefficients of a run, (m,) each.

    A last ``beta`` of 0 says that the Krylov space is exhausted: every Ritz value is an eigenvalue.
    """
    matrix = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return Ritz(nodes, vectors[0] ** 2, np.abs(beta[-1] * vectors[-1]))


def gauss_quadrature(
    alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (Ritz values) and weights of the quadrature, (…, step) float64 each.

    Coefficients as in `Tridiagonal`, of any batch shape; ``taken`` is 0 for a missing probe, whose
    nodes and weights are 0. Nodes ascend, the weights of one run sum to 1. Steps after a breakdown
    repeat the largest node with weight 0, so a minimum or maximum over nodes stays right.
    """
    found = {}
    for i in map(tuple, np.argwhere(taken)):
        run = ritz(alpha[i][: taken[i]], beta[i][: taken[i]])
        found[i] = run.nodes, run.weights
    return _padded(found, alpha.shape)


def _padded(found: dict, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights by place, gathered into arrays; the last node repeats with weight 0."""
    nodes, weights = np.zeros((2, *shape))
    for i, (values, shares) in found.items():
        nodes[i] = values[-1]
        nodes[i][: len(values)], weights[i][: len(values)] = values, shares
    return nodes, weights


# deflation


def single(runs: Sequence[Ritz], size: int) -> list[np.ndarray]:
    """Say which Ritz values are single eigenvalues and not zero, (step,) bool for each run.

    The runs are the probes of one block of ``size`` parameters: together they tell multiple
    eigenvalues from single ones better. A run of as many steps knows all, and how often each
    occurs.
    """
    from scipy.special import chdtrc  # slow to import

    scale = max(np.abs(run.nodes).max() for run in runs)
    found = [_isolated(run, scale) for run in runs]
    pooled = np.hstack([np.stack(run)[:, mask] for run, mask in zip(runs, found, strict=True)])
    likely = _likely(*pooled, NOISE * scale, size)
    ends = np.cumsum([mask.sum() for mask in found])
    for mask, part in zip(found, np.split(likely, ends[:-1]), strict=True):
        mask[mask] = part
    chances = np.array([_chance(*pair, size) for pair in zip(runs, found, strict=True)])
    for mask, chance in zip(found, chances, strict=True):
        mask &= chance > P_REST
    pairs = [pair for pair in zip(runs, found, strict=True) if pair[1].any()]
    logs = np.log(chances[[mask.any() for mask in found]])
    heavy = sum(run.weights[f].sum() for run, f in pairs) * size > EXCESS * sum(map(sum, found))
    if heavy and chdtrc(2 * len(logs), -2 * logs.sum()) < P_ALL:  # Fisher's combination
        found = [np.zeros_like(mask) for mask in found]
    return [mask | (len(mask) == size) for mask in found]


class Deflated(NamedTuple):
    """Ritz values of one run with deflation weights."""

    run: Ritz
    exact: np.ndarray  #: which of them are single eigenvalues, of weight 1/d each, (step,) bool
    weights: np.ndarray  #: of all, (step,); sum to 1


def deflate(alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, size: int) -> list[Deflated]:
    """Weigh the Ritz values of a block's probes, single eigenvalues exactly.

    Coefficients, (probe, step), as in `Tridiagonal`; missing probes (``taken`` 0) are left out.
    """
    runs = [ritz(a[:m], b[:m]) for a, b, m in zip(alpha, beta, taken, strict=True) if m]
    found = []
    for run, exact in zip(runs, single(runs, size), strict=True):
        rest, others = 1 - exact.sum() / size, np.where(exact, 0, run.weights)
        scaled = others * (rest / others.sum() if rest > 0 else 0)
        found.append(Deflated(run, exact, np.where(exact, 1 / size, scaled)))
    return found


def deflated_quadrature(
    alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`gauss_quadrature` with exact weights for the single eigenvalues that were found.

    Coefficients, (block, probe, step), of blocks with ``sizes`` parameters. Only for runs that were
    re-orthogonalised: without, ghost copies would count as eigenvalues.
    """
    found = {}
    for i, size in enumerate(sizes):
        each = deflate(alpha[i], beta[i], taken[i], size)
        for k, probe in zip(np.flatnonzero(taken[i]), each, strict=True):
            found[i, k] = probe.run.nodes, probe.weights
    return _padded(found, alpha.shape)


def _isolated(run: Ritz, scale: float) -> np.ndarray:
    """Converged, separate from all others, and not zero; (step,) bool."""
    steps = np.diff(run.nodes, prepend=-np.inf, append=np.inf)
    gaps = np.minimum(steps[1:], steps[:-1])
    separate = np.minimum(gaps, np.abs(run.nodes)) > NOISE * scale
    return separate & (run.residuals <= SINE * gaps)


def _likely(
    nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, noise: float, size: int
) -> np.ndarray:
    """Whether what all probes see of an eigenvalue may well be χ²₁/d each; (node,) bool."""
    from scipy.special import chdtrc

    order = np.argsort(nodes)
    reach = residuals[order] + noise / 2
    new = np.diff(nodes[order], prepend=np.nan) > np.append(0, reach[1:] + reach[:-1])
    which = np.empty(len(nodes), dtype=np.int64)
    which[order] = new.cumsum()
    times, total = np.bincount(which), np.bincount(which, size * weights)
    return ((chdtrc(times, total) >= P_ONE) | (total <= EXCESS * times))[which]


def _chance(run: Ritz, exact: np.ndarray, size: int) -> float:
    """Chance that k dimensions of d have as large a share of a probe, or larger."""
    from scipy.special import betainc

    k, rest = exact.sum(), run.weights[~exact].sum()
    return float(betainc((size - k) / 2, k / 2, min(rest, 1))) if 0 < k < size else 1.0
