"""The bounds of the theory, step by step over measured runs: see `convergence` for the bounds."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from companion.experiments.quadratic_runs import quantiles, thinned
from companion.quadratics.convergence import adam_upper_bound, gd_lower_bound, modes
from companion.quadratics.quadratic import Quadratic, adam, eigenvalues, frozen_adam, gd

TOLERANCE = 1e-9  # relative; a gap of GD that meets its bound exactly is rounded by less
SMALLEST = 1e-290  # gaps below this are no longer normal numbers when they shrink further


def gd_contractions(quadratic: Quadratic, shares: np.ndarray, steps: int) -> pd.DataFrame:
    """GD on a single draw from its worst start, at ``shares`` of 2/(L+μ), against the lower bound.

    Columns: share, ratio (the smallest gap(k+1)/gap(k) of the run), and how many of the run's steps
    violate the bound with and without the square.
    """
    step = torch.from_numpy(shares) * 2 / sum(quadratic.extremes)
    gap = gd(quadratic, quadratic.worst_start().expand(len(step), -1), steps, step=step).gap
    ratio = gap[:, 1:] / gap[:, :-1]
    squared = gd_lower_bound(quadratic.kappa)
    table = {"share": shares, "ratio": ratio.amin(1)}
    for name, bound in (("with_square", squared), ("without_square", squared**0.5)):
        table[name] = (ratio < bound * (1 - TOLERANCE)).sum(1)
    return pd.DataFrame({name: np.asarray(column) for name, column in table.items()})


def gd_gaps(quadratic: Quadratic, starts: int, steps: int) -> pd.DataFrame:
    """GD at 2/(L+μ) on a single draw, its gap/gap⁰ beside the bounds.

    Columns: curve, step, low, median, high; the band is over the Gaussian starts.
    """
    at, squared = thinned(steps), gd_lower_bound(quadratic.kappa)
    powers = torch.arange(steps + 1, dtype=torch.float64)[None]
    gaussian = quadratic.gaussian_start(starts=starts)
    curves = {
        "from the worst start": gd(quadratic, quadratic.worst_start(), steps).gap,
        "from Gaussian starts": gd(quadratic, gaussian, steps).gap,
        "bound with the square": squared**powers,
        "bound without it": squared ** (powers / 2),
    }
    tables = [
        quantiles((gap / gap[:, :1])[:, at], at).assign(curve=name) for name, gap in curves.items()
    ]
    return pd.concat(tables, ignore_index=True)


class AdamRuns(NamedTuple):
    """Frozen Adam at the bound's own step η = min C_{l,1}: `adam_contractions`."""

    #: one row a draw: ratio (r), compared (steps), plain, squared (violations of the bound with r
    #: and with r²), slack (rate of the slowest mode over the bound's, as −log)
    draws: pd.DataFrame
    #: curve, step, low, median, high of gap/gap⁰ over the draws
    curves: pd.DataFrame


def adam_contractions(case: int, draws: int, steps: int) -> AdamRuns:
    """Follow frozen Adam on Case 3 or 4 from Gaussian starts and hold each step to the bounds.

    Steps after the gap has underflowed are not compared.
    """
    quadratic = Quadratic.draw(eigenvalues(case), draws=draws)
    start = quadratic.gaussian_start()
    bound = adam_upper_bound(quadratic, start)
    kappa = quadratic.block_kappa.max()
    gap = frozen_adam(quadratic, start, steps, step=bound.step).gap
    normal = gap[:, 1:] > SMALLEST
    squared = (1 - 1 / (bound.ratio**2 * kappa)) ** 2
    table = {"ratio": bound.ratio[:, 0], "compared": normal.sum(1)}
    for name, rate in (("plain", bound.rate), ("squared", squared)):
        above = gap[:, 1:] > rate * gap[:, :-1] * (1 + 1e-12)  # rates differ from 1 by 1e-9 or so
        table[name] = (above & normal).sum(1)
    slowest = bound.step * modes(quadratic, start, frozen=True).rates[:, :1]
    table["slack"] = (2 * torch.log1p(-slowest) / bound.rate.log())[:, 0]
    at = thinned(steps)
    curves = {
        "measured": gap[:, at] / gap[:, :1],
        "bound with r": bound.rate**at,
        "bound with r²": squared**at,
    }
    tables = [quantiles(one, at).assign(curve=name) for name, one in curves.items()]
    return AdamRuns(
        pd.DataFrame({name: column.numpy() for name, column in table.items()}).assign(case=case),
        pd.concat(tables, ignore_index=True).assign(case=case),
    )


def ratios(case: int, draws: int) -> np.ndarray:
    """Draw r of the Adam bound: Gaussian starts, each with a rotation of its own, (draw,)."""
    quadratic = Quadratic.draw(eigenvalues(case), draws=draws)
    return adam_upper_bound(quadratic, quadratic.gaussian_start()).ratio[:, 0].numpy()


def adam_in_one_dimension(
    starts: np.ndarray, beta2: float, *, step: float, steps: int
) -> np.ndarray:
    """Follow Adam (β₁ = eps = 0) on ½w²: |w|/(η/2) at every iteration, (start, steps + 1)."""
    quadratic = Quadratic.draw([torch.ones(1)])
    start = torch.from_numpy(np.asarray(starts, dtype=np.float64))[:, None]
    path = adam(quadratic, start, steps, step=step, betas=(0.0, beta2), eps=0.0)
    return path.gradient_norm.numpy() / (step / 2)  # the curvature is 1, so ‖g‖ = |w|
