r"""Exact weights for the single eigenvalues that a Lanczos run has found.

With an orthonormal basis, a Ritz value :math:`θ_i` lies within its residual
:math:`r_i = |β_m s_{mi}|` of an eigenvalue, :math:`s_i` being its eigenvector of the tridiagonal
matrix. Where :math:`r_i` is far below the distance to the other Ritz values, the Ritz vector is an
eigenvector :math:`q_i`. A single eigenvalue is :math:`1/d` of the spectrum of a block of :math:`d`
parameters; Gauss quadrature gives it :math:`(q_i^\top v)^2`, which scatters as
:math:`χ^2_1/d`: by 140 % for one start vector :math:`v`. Here it gets :math:`1/d`. What is left of
:math:`v` is uniform on the sphere of the other dimensions, so the other weights keep their ratios
and share the rest, without bias.

A multiple eigenvalue is found once, with the sum of its weights, and must keep it: structural zeros
above all. Weights that single eigenvalues would hardly ever have are therefore left as they are.

Source: Parlett, *The Symmetric Eigenvalue Problem*, chapter 13, for the residual; Chen & Hallman,
"Krylov-aware stochastic trace estimation", 2023, for deflation by the Krylov space itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.special import betainc, chdtrc

ORTHOGONAL = 1e-4  # entries of |Q Qᵀ − I|, at most: above, there may be ghost copies
PURE = 0.1  # residual / distance to the next Ritz value: sine of an eigenvector's error, at most
NOISE = 1e-6  # of the largest |λ|: float32 products tell nothing smaller apart, or from zero
# chances of their weights, if they are single, below which eigenvalues are taken for multiple ones
RARE = 1e-4  # one eigenvalue, in all probes
GROUP = 1e-2  # all that were found, in all probes
BARE = 1e-6  # all that one probe has found: next to nothing is left for the others
HEAVY = 1.6  # times 1/d that the first two weigh at least: single ones found early reach 1.5


class Ritz(NamedTuple):
    """Ritz values of one run, ascending; (step,) float64 each."""

    nodes: np.ndarray
    weights: np.ndarray  #: Gauss weights, sum to 1
    residuals: np.ndarray  #: an eigenvalue is no further from its node than this


def ritz(alpha: np.ndarray, beta: np.ndarray) -> Ritz:
    """Ritz values after m steps, from the first m coefficients of a run, (m,) each.

    A last ``beta`` of 0 says that the Krylov space is exhausted: every Ritz value is an eigenvalue.
    """
    nodes, vectors = eigh_tridiagonal(alpha, beta[:-1])
    return Ritz(nodes, vectors[0] ** 2, np.abs(beta[-1] * vectors[-1]))


def single(runs: Sequence[Ritz], size: int, norm: float = 0.0) -> list[np.ndarray]:
    """Say which Ritz values are single eigenvalues and not zero, (step,) bool for each run.

    Parameters
    ----------
    runs : sequence of Ritz
        The probes of one block: together they tell multiple eigenvalues from single ones better.
    size : int
        Number of parameters d. A run of d steps knows all eigenvalues, and how often each occurs.
    norm : float
        What the norm of the operator is known to be at least, where runs were kept off a part of
        it: products are no more precise than that.
    """
    scale = max(norm, *(np.abs(run.nodes).max() for run in runs))
    found = [_isolated(run, scale) for run in runs]
    pooled = np.hstack([np.stack(run)[:, mask] for run, mask in zip(runs, found, strict=True)])
    likely = _likely(*pooled, NOISE * scale, size)
    ends = np.cumsum([mask.sum() for mask in found])
    for mask, part in zip(found, np.split(likely, ends[:-1]), strict=True):
        mask[mask] = part
    chances = np.array([_chance(*pair, size) for pair in zip(runs, found, strict=True)])
    for mask, chance in zip(found, chances, strict=True):
        mask &= chance > BARE
    pairs = [pair for pair in zip(runs, found, strict=True) if pair[1].any()]
    logs = np.log(chances[[mask.any() for mask in found]])
    heavy = sum(run.weights[f].sum() for run, f in pairs) * size > HEAVY * sum(map(sum, found))
    if heavy and chdtrc(2 * len(logs), -2 * logs.sum()) < GROUP:  # Fisher's combination
        found = [np.zeros_like(mask) for mask in found]
    return [mask | (len(mask) == size) for mask in found]


def reweighed(run: Ritz, exact: np.ndarray, size: int) -> np.ndarray:
    """Weights of a run, (step,), once those in ``exact``, (step,) bool, are 1/size."""
    rest = 1 - exact.sum() / size
    others = np.where(exact, 0, run.weights)
    return np.where(exact, 1 / size, others * (rest / others.sum() if rest > 0 else 0))


class Weighed(NamedTuple):
    """One probe's share of what is known of a block; see `weighed`."""

    run: Ritz
    exact: np.ndarray  #: which Ritz values are single eigenvalues, (step,) bool
    weights: np.ndarray  #: of all Ritz values, (step,)
    outside: np.ndarray  #: eigenvalues that the run was kept off, of weight 1/d each, (known,)

    def nodes_and_weights(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """All that the probe says, (known + step,) each; the weights sum to 1."""
        nodes = np.concatenate([self.outside, self.run.nodes])
        return nodes, np.concatenate([np.full(len(self.outside), 1 / size), self.weights])


def weighed(
    alpha: np.ndarray,
    beta: np.ndarray,
    taken: np.ndarray,
    size: int,
    outside: np.ndarray | None = None,
) -> list[Weighed]:
    """Weigh the Ritz values of a block's probes, single eigenvalues exactly.

    A run that was kept off k known eigenvectors is one of the other d - k dimensions, whose share
    of the spectrum its weights sum to.

    Parameters
    ----------
    alpha, beta : ndarray, (probe, step) float64
        As in `Tridiagonal`: ``beta[…, taken - 1]`` is the residual, 0 after a breakdown.
    taken : ndarray of int, (probe,)
        0 for a missing probe, which is left out.
    size : int
        Number of parameters of the block.
    outside : ndarray, (probe, known) float64, optional
        Eigenvalues whose eigenvectors a run was kept off; the rest 0.
    """
    found, outside = {}, np.zeros((len(taken), 0)) if outside is None else outside
    present = np.flatnonzero(taken)
    known = [row[row != 0] for row in outside]
    for k in {len(known[i]) for i in present}:  # those of one operator tell together
        same = [i for i in present if len(known[i]) == k]
        runs = [ritz(alpha[i, : taken[i]], beta[i, : taken[i]]) for i in same]
        norm = max(np.abs(known[i]).max(initial=0) for i in same)
        for i, run, exact in zip(same, runs, single(runs, size - k, norm), strict=True):
            weights = reweighed(run, exact, size - k) * (1 - k / size)
            found[i] = Weighed(run, exact, weights, known[i])
    return [found[i] for i in present]


def deflated_quadrature(
    alpha: np.ndarray,
    beta: np.ndarray,
    taken: np.ndarray,
    sizes: Sequence[int],
    outside: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights with exact weights for the single eigenvalues that were found.

    Only for runs that were re-orthogonalised: without, ghost copies would count as eigenvalues.

    Parameters
    ----------
    alpha, beta : ndarray, (block, probe, step) float64
    taken : ndarray of int, (block, probe)
        0 for a missing probe, whose nodes and weights are 0.
    sizes : sequence of int
        Numbers of parameters of the blocks.
    outside : ndarray, (block, probe, known) float64, optional
        See `weighed`.

    Returns
    -------
    nodes, weights : ndarray, (block, probe, step + known) float64
        As `gauss_quadrature` returns them: each probe's weights sum to 1.
    """
    outside = np.zeros((*taken.shape, 0)) if outside is None else outside
    shape = (*taken.shape, alpha.shape[-1] + outside.shape[-1])
    nodes, weights = np.zeros(shape), np.zeros(shape)
    for i, size in enumerate(sizes):
        each = weighed(alpha[i], beta[i], taken[i], size, outside[i])
        for k, probe in zip(np.flatnonzero(taken[i]), each, strict=True):
            found = probe.nodes_and_weights(size)
            order = np.argsort(found[0], kind="stable")
            nodes[i, k], m = found[0].max(), len(order)
            nodes[i, k, :m], weights[i, k, :m] = (x[order] for x in found)
    return nodes, weights


def _isolated(run: Ritz, scale: float) -> np.ndarray:
    """Converged, apart from all others, and not zero; (step,) bool."""
    steps = np.diff(run.nodes, prepend=-np.inf, append=np.inf)
    gaps = np.minimum(steps[1:], steps[:-1])
    apart = np.minimum(gaps, np.abs(run.nodes)) > NOISE * scale
    return apart & (run.residuals <= PURE * gaps)


def _likely(
    nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, noise: float, size: int
) -> np.ndarray:
    """Whether what all probes see of an eigenvalue may well be χ²₁/d each; (node,) bool."""
    order = np.argsort(nodes)
    reach = residuals[order] + noise / 2
    new = np.diff(nodes[order], prepend=np.nan) > np.append(0, reach[1:] + reach[:-1])
    which = np.empty(len(nodes), dtype=np.int64)
    which[order] = new.cumsum()
    times, total = np.bincount(which), np.bincount(which, size * weights)
    return ((chdtrc(times, total) >= RARE) | (total <= HEAVY * times))[which]


def _chance(run: Ritz, exact: np.ndarray, size: int) -> float:
    """Chance that k dimensions of d have as large a share of a probe, or larger."""
    k, rest = exact.sum(), run.weights[~exact].sum()
    return float(betainc((size - k) / 2, k / 2, min(rest, 1))) if 0 < k < size else 1.0
