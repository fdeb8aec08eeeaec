r"""How alike the full spectra of several models are, stage by stage of their training.

A full spectrum is divided by its 10th largest eigenvalue, λ₁₀, as the paper's plots do, and
compared on the signed-log axis of `binned_density`. Nearly all eigenvalues of a full Hessian are
next to zero, and a divergence that counts them alike sees little else: so spectra are compared a
second time with every eigenvalue counted by its size, the share of :math:`\sum|λ|` that lies at
each place of the axis.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from blockspectra.distance import binned_density, pairwise
from blockspectra.spectra import Spectra, concat
from blockspectra.statistics import combine, jackknife

RANK = 10  # the paper's
FLOOR = 0.1  # c of the signed-log axis, in units of λ₁₀: see `View`
SHIFT = 0.5  # decades: spectra that differ by less count as alike


def ranked(spectra: Spectra, rank: int = RANK) -> np.ndarray:
    """Eigenvalue of a rank in each block, counted from the largest, (block,).

    How the paper reads it off a quadrature is not known; ours: the largest node λ such that
    parameters × (weight at and above λ, averaged over probes), rounded, is at least ``rank``. With
    one probe, that rank's place in the density which the probe sees lies between the neighbours of
    that node (the inequalities of Chebyshev, Markov and Stieltjes).
    """
    nodes, weights = (x.reshape(len(x), -1) for x in spectra.quadrature)  # (block, probe·step)
    order = np.argsort(-nodes, axis=1)
    nodes, weights = (np.take_along_axis(x, order, 1) for x in (nodes, weights))
    count = weights.cumsum(1) / spectra.probes * np.array(spectra.sizes)[:, None]
    reached = count >= rank - 0.5
    at_rank = np.take_along_axis(nodes, reached.argmax(1)[:, None], 1)[:, 0]
    found = np.where(reached.any(1), at_rank, 0)
    if not (found > 0).all():
        name = spectra.names[int(np.argmin(found))]
        raise ValueError(
            f"The spectrum {name!r} shows fewer than {rank} positive eigenvalues: average the "
            f"Hessian over more samples, or take more Lanczos steps."
        )
    return found


def scaled(spectra: Spectra, factors: np.ndarray | float) -> Spectra:
    """Spectra with all eigenvalues multiplied, by one factor or one a block, > 0."""
    each = np.broadcast_to(factors, len(spectra.names))[:, None, None]
    return replace(spectra, alpha=spectra.alpha * each, beta=spectra.beta * each)


def normalised(spectra: Spectra) -> Spectra:
    """Spectra with each block divided by its 10th largest eigenvalue."""
    return scaled(spectra, 1 / ranked(spectra))


def truncated(spectra: Spectra, steps: int) -> Spectra:
    """Return what fewer Lanczos steps give, exactly: a step needs only those before it."""
    beta = spectra.beta[..., :steps].copy()
    beta[..., -1] = 0
    taken = np.minimum(spectra.taken, steps)
    return replace(spectra, alpha=spectra.alpha[..., :steps], beta=beta, taken=taken)


class ByCurvature(Spectra):
    """Spectra whose quadrature counts every eigenvalue by its size: weights ∝ weight · |node|.

    Only for densities and distances; moments and traces are those of the changed weights.
    """

    @cached_property
    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and changed weights, (block, probe, step) each; each probe's sum to 1."""
        nodes, weights = super().quadrature
        weights = weights * np.abs(nodes)
        return nodes, weights / weights.sum(-1, keepdims=True)


class View(NamedTuple):
    """One way to compare full spectra.

    The axis is linear below c = 0.1 λ₁₀ and shows nothing there: 30 Lanczos steps place the bulk no
    better. Chosen on a VGG, a ViT and a GPT with a seed that no chapter measures, so that spectra
    of 30 steps differ from those of the same model with 60 steps, on average, by less than a
    quarter of what a shift by half a decade gives; no model was compared with another.
    """

    title: str
    normalise: bool = True
    by_curvature: bool = False
    axis: str = "signed-log"

    def pooled(self, measured: Sequence[Spectra], *more: str) -> Spectra:
        """Put the stages of several runs side by side, divided by λ₁₀ if this view asks for it.

        A block is named by its model, its stage, and ``more`` entries of ``meta``.
        """
        names = [
            ", ".join([one.meta["title"], stage, *(f"{key} {one.meta[key]}" for key in more)])
            for one in measured
            for stage in one.names
        ]
        pooled = concat(measured, names)
        return normalised(pooled) if self.normalise else pooled

    def weighed(self, spectra: Spectra) -> Spectra:
        """Spectra whose quadrature counts eigenvalues as this view does."""
        if not self.by_curvature:
            return spectra
        return ByCurvature(**{f.name: getattr(spectra, f.name) for f in fields(Spectra)})

    def divergences(self, pooled: Spectra) -> np.ndarray:
        """JS divergence of each two spectra in nats, (block, block)."""
        binned = binned_density(self.weighed(pooled), axis=self.axis, scale=FLOOR)
        return pairwise(binned.mass.mean(1), binned.width)


COUNTED = View("eigenvalues counted alike")
WEIGHED = View("counted by |λ|", by_curvature=True)
RAW = View("raw axis", normalise=False, axis="raw")
VIEWS = (COUNTED, WEIGHED, RAW)


def by_seed(measured: Sequence[Spectra]) -> list[list[Spectra]]:
    """Group runs by seed; models in the order given."""
    seeds = dict.fromkeys(one.meta["seed"] for one in measured)
    return [[one for one in measured if one.meta["seed"] == seed] for seed in seeds]


def distances(measured: Sequence[Spectra], view: View) -> pd.DataFrame:
    """Divergence between each two models and stages, labelled, nats.

    Off the diagonal the mean over seeds, of runs with the same seed. On the diagonal, for want of
    anything else that means no difference, the same model and stage with two *different* seeds
    (0 with a single one): initialisation, data, start vectors and Lanczos steps all add to it.
    """
    groups = by_seed(measured)
    names = view.pooled(groups[0]).names
    seeds, n = len(groups), len(names)
    every = view.pooled([one for group in groups for one in group], "seed")
    matrix = view.divergences(every).reshape(seeds, n, seeds, n)
    mean = np.mean([matrix[s, :, s, :] for s in range(seeds)], axis=0)
    if seeds > 1:
        pairs = zip(*np.triu_indices(seeds, 1), strict=True)
        np.fill_diagonal(mean, np.mean([np.diag(matrix[s, :, t, :]) for s, t in pairs], axis=0))
    return pd.DataFrame(mean, index=names, columns=names)


QUANTITIES = ("between", "within", "shift", "between / within", "between / shift")


def contrast(measured: Sequence[Spectra], view: View) -> pd.DataFrame:
    """How far CNNs are from Transformers at each stage, and what to compare that with.

    Columns: stage, quantity, mean, standard_error. ``between``: mean divergence of a CNN and a
    Transformer; ``within``: of two models of one family (nan without such); ``shift``: mean
    divergence of these same spectra from themselves with every eigenvalue times 10^0.5; and two
    ratios. Means over seeds; the error joins the jackknife over probes, λ₁₀ included, and the
    spread over seeds.
    """

    def of(kept: Sequence[int], group: list[Spectra]) -> np.ndarray:
        return _contrast([one.select(probes=kept) for one in group], view)

    each = [jackknife(partial(of, group=group), measured[0].probes) for group in by_seed(measured)]
    seeds = np.array(each)  # (seed, value and error, stage, quantity)
    rows = [
        [stage, quantity, *combine(seeds[..., i, j])]
        for i, stage in enumerate(measured[0].names)
        for j, quantity in enumerate(QUANTITIES)
    ]
    return pd.DataFrame(rows, columns=["stage", "quantity", "mean", "standard_error"])


def _contrast(group: Sequence[Spectra], view: View) -> np.ndarray:
    """`QUANTITIES` of the models of one seed, (stage, quantity)."""
    stages = group[0].names
    pooled = view.pooled(group)
    shifted = scaled(pooled, 10**SHIFT)
    marked = [*pooled.names, *(f"{name}, shifted" for name in pooled.names)]
    matrix = view.divergences(concat([pooled, shifted], marked))
    n = len(pooled.names)
    stage = np.tile(range(len(stages)), len(group))
    family = np.repeat([one.meta["family"] for one in group], len(stages))
    first, second = np.triu_indices(n, 1)
    rows = []
    for k in range(len(stages)):
        here = (stage[first] == k) & (stage[second] == k)
        same = family[first] == family[second]
        between, within = (
            _mean(matrix[first[pick], second[pick]]) for pick in (here & ~same, here & same)
        )
        shift = _mean(np.diag(matrix[:n, n:])[stage == k])
        rows.append([between, within, shift, between / within, between / shift])
    return np.array(rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
