r"""How far a Lanczos spectrum still is from the exact one, told by the Lanczos runs alone.

The error is the Wasserstein-1 distance :math:`\int |\hat F - F|\,dλ` between the estimated and the
exact distribution of a block's eigenvalues, in units of its root mean square eigenvalue. It has two
causes. After :math:`m` steps a probe :math:`v` is known by :math:`m` Ritz values instead of its own
distribution :math:`F_v` (`steps_error`). And :math:`F_v` is not :math:`F`: for :math:`v` uniform
on the sphere of :math:`d` dimensions, :math:`F_v(λ)` has a beta distribution with

.. math:: \mathrm{Var}\,F_v(λ) = \frac{2\,F(λ)\,(1 - F(λ))}{d + 2},

which gives `probes_error` before a second probe is taken. Eigenvalues that deflation weighs exactly
do not count there.

These are estimates, no bounds: eigenvalues that share one Ritz value look like one.
"""

import math

import numpy as np

from blockspectra.quadrature import deflate, ritz

EVERY = 10  # steps between two looks at whether there are enough
FEWEST = 2  # probes of a block under a tolerance: with one the spread between them is not known
BY_STEPS = 0.9  # share of a tolerance that too few steps may take up where more were not allowed:
# no number of probes makes up for all of it


def steps_error(alpha: np.ndarray, beta: np.ndarray, size: int) -> float:
    """Error of one probe from stopping after m steps, as a share of the rms eigenvalue.

    ``alpha`` and ``beta`` are the first m coefficients of a run, ``size`` the parameters of its
    block; 0 where the Krylov space is exhausted.

    At each Ritz value the exact :math:`F_v` passes between the cumulative weights before and after
    it (Chebyshev, Markov, Stieltjes). If it passes half way and is as smooth as the Ritz values can
    tell, the area between it and their staircase is :math:`gω/4` on a gap :math:`g` between two
    of weight :math:`ω`; here :math:`ω` is the geometric mean of both weights. No share of a Ritz
    value is moved further than its residual, so that those that have converged add nothing.
    """
    if len(alpha) >= size or not beta.all():
        return 0.0
    nodes, weights, residuals = ritz(alpha, beta)
    area = np.diff(nodes) * np.sqrt(weights[1:] * weights[:-1]) / 8  # of either half of a gap
    outer = area if len(area) else np.array([np.inf])
    sides = np.stack([np.append(outer[:1], area), np.append(area, outer[-1:])])
    moved = np.minimum(sides, weights * residuals / 2).sum()
    return float(moved / np.sqrt(weights @ nodes**2))


def probes_error(alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, size: int) -> float:
    r"""Error expected from a block's finite number of probes, as a share of the rms eigenvalue.

    Coefficients, (probe, step), as in `Tridiagonal`; ``taken`` is 0 for a missing probe.

    :math:`\sqrt{2/π} \int \mathrm{sd}\,\hat F(λ)\,dλ`: what a Gaussian error of that standard
    deviation has as its mean size. With k of d eigenvalues deflated, a probe's other weights are
    :math:`(d-k)/d` times those of a uniform vector in :math:`d - k` dimensions.
    """
    probes = deflate(alpha, beta, taken, size)
    grid = np.sort(np.concatenate([run.nodes for run, *_ in probes]))
    variance, square = np.zeros(len(grid)), 0.0
    for run, exact, weights in probes:
        left = size - exact.sum()
        square += weights @ run.nodes**2 / len(probes)
        if left:
            rest = np.append(0, np.where(exact, 0, weights).cumsum()) * size / left
            below = rest[np.searchsorted(run.nodes, grid, side="right")].clip(0, 1)
            share = left / size / len(probes)
            variance += share**2 * 2 * below * (1 - below) / (left + 2)
    spread = np.sqrt(variance[:-1]) @ np.diff(grid)
    return math.sqrt(2 / math.pi) * float(spread / np.sqrt(square)) if square else 0.0


def probes_needed(
    alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, size: int, tolerance: float
) -> int:
    """Probes with which `probes_error` would be about ``tolerance``; its other arguments."""
    each = probes_error(alpha, beta, taken, size) ** 2 * np.count_nonzero(taken)
    return max(1, math.ceil(each / tolerance**2))


def enough_steps(alpha: np.ndarray, beta: np.ndarray, size: int, tolerance: float) -> bool:
    """Say whether further steps of a run would save no probes under a tolerance.

    Both errors are independent and add as squares. Once the steps' is below the tolerance, some
    number of probes brings the other one down to what is left; more steps leave more. They are
    taken as long as they cost less than the probe that they save, were the error to fall as 1/m.
    ``alpha``, ``beta`` and ``size`` as for `steps_error`; `FEWEST` probes are taken in any case.
    """
    steps = steps_error(alpha, beta, size)
    if steps >= tolerance:
        return False
    one = probes_error(alpha[None], beta[None], np.array([len(alpha)]), size)
    probes = math.ceil(one**2 / (tolerance**2 - steps**2))
    if probes <= FEWEST:
        return True
    left = tolerance**2 - one**2 / (probes - 1)  # for the steps' error, with one probe less
    return left <= 0 or steps / math.sqrt(left) >= probes / (probes - 1)


def spectrum_error(
    alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, size: int
) -> tuple[float, float]:
    """Error of a finished block by its steps (the mean over probes) and by its probes.

    Arguments as for `probes_error`. The whole error is at most about their sum.
    """
    rows = zip(alpha, beta, taken, strict=True)
    steps = [steps_error(a[:m], b[:m], size) for a, b, m in rows if m]
    return float(np.mean(steps)), probes_error(alpha, beta, taken, size)


def probes_wanted(
    alpha: np.ndarray, beta: np.ndarray, taken: np.ndarray, size: int, tolerance: float
) -> int:
    """Probes that a block needs in all under a tolerance, judged by those it has.

    `FEWEST` at least, and those it has, unless one of them knows all eigenvalues.
    """
    have = np.count_nonzero(taken)
    if taken.max() == size:
        return have
    by_steps = min(spectrum_error(alpha, beta, taken, size)[0], BY_STEPS * tolerance)
    left = math.sqrt(tolerance**2 - by_steps**2)
    return max(have, FEWEST, probes_needed(alpha, beta, taken, size, left))
