"""Predictors of the gap between SGD and AdamW, measured at initialisation (chapter 22)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from blockspectra.blocks import partition
from blockspectra.diagnosis.advice import CLEARLY_WORSE
from blockspectra.distance import js0, log_spread, without_zeros
from blockspectra.gradient_graph import gradients
from blockspectra.statistics import ValueWithError, combine, jackknife
from companion import setups
from companion.experiments import optimizer_comparison
from companion.experiments.optimizer_comparison import OptimizerComparison
from companion.experiments.preconditioned_spectra import mini_batches
from companion.rate_search import gap
from companion.store import Job, Store, declare

ROUNDING = 1e-3  # values of a predictor that differ by a smaller share are equal
#: predictors that are statistics of a model's block spectra
SPECTRAL = {
    "JS⁰, un-normalised sum": partial(js0, measure="sum", axis="raw"),
    "JS⁰ (nats)": js0,
    "spread of RMS eigenvalue (decades)": partial(log_spread, of="rms"),
    "spread of λ_max (decades)": log_spread,
}
#: what C9 is asked of under other definitions of JS⁰
DEFINITIONS = {
    "the divergence in nats, signed-log axis": js0,
    "the same without zeros": without_zeros,
    "its square root": partial(js0, measure="sqrt"),
    "earth mover's distance": partial(js0, measure="w1"),
    "the divergence in nats, raw axis": partial(js0, axis="raw"),
}


@dataclass(frozen=True)
class GradientStatistics(Job):
    """Squared gradients of each block of a model at initialisation, over mini-batches.

    ``gradients`` mini-batches of ``batch`` samples; the seed draws initialisation and data.
    """

    NAME = "gradients-{model}"

    model: str
    size: str = "medium"
    batch: int = 64
    gradients: int = 16
    seed: int = 0
    device: str = "cpu"

    data_key = setups.data_key

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a block: block, entries, mean_square, square_of_mean, imbalance.

        Both are sums over the block's entries: the squared norm of the gradient, mean over the
        mini-batches, and that of the mean gradient. ``imbalance`` (nats, the same in all rows) is
        by how much the targets' entropy falls short of that of equally frequent classes.
        """
        made = mini_batches(self, self.batch, self.seed)
        problem, blocks = made.problem, partition(made.problem.model)
        squares, means = [0.0] * len(blocks), [0.0] * len(blocks)
        with problem.curvature_mode():
            for batch in problem.batches:
                for i, gradient in enumerate(gradients(problem, batch, blocks)):
                    squares[i] += float(gradient.square().sum()) / self.gradients
                    means[i] = means[i] + gradient / self.gradients
        return pd.DataFrame(
            {
                "block": [block.name for block in blocks],
                "entries": [block.size for block in blocks],
                "mean_square": squares,
                "square_of_mean": [float(mean.square().sum()) for mean in means],
                "imbalance": math.log(made.data.classes) - made.data.entropy,
            }
        )


def comparisons(variant_seeds: int, **settings: Any) -> list[OptimizerComparison]:
    """Declare the comparisons that the gaps come from: those of chapter 06, and of variants.

    Variants have ``variant_seeds`` fresh seeds, and one seed less at the best rates of the search.
    """
    return [
        replace(job, seeds=variant_seeds, repeats=1) if job.model in setups.VARIANTS else job
        for job in declare(optimizer_comparison.jobs, settings)
    ]


def statistics(
    model: str, size: str, batch: int, seeds: int, device: str = "cpu"
) -> list[GradientStatistics]:
    """Declare the gradients of several models, each at several initialisations."""
    return [
        GradientStatistics(name, size, batch, seed=seed, device=device)
        for seed in range(seeds)
        for name in setups.names(model)
    ]


def noise_scale(table: pd.DataFrame, batch: int, gradients: int) -> float:
    """Gradient noise of a table of `GradientStatistics`: log10 of samples (arXiv 1812.06162).

    The batch whose gradient has as much noise as signal, tr(covariance of a sample) / ‖mean‖²; both
    unbiased, which leaves a negative signal (then nan) where noise is all there is.
    """
    square, of_mean = table["mean_square"].sum(), table["square_of_mean"].sum()
    variance = (square - of_mean) * gradients / (gradients - 1)
    signal = of_mean - variance / gradients
    return math.log10(batch * variance / signal) if signal > 0 else math.nan


def by_gradients(jobs: Sequence[GradientStatistics], tables: Sequence[pd.DataFrame]) -> dict:
    """Predictors from the gradients: name → title → value, averaged over initialisations."""
    found: dict[str, dict[str, list[ValueWithError]]] = {}
    for job, table in zip(jobs, tables, strict=True):
        rms = (table["mean_square"] / table["entries"]) ** 0.5
        values = {
            "spread of RMS gradient (decades)": np.log10(rms[rms > 0]).std(ddof=1),
            "class imbalance (nats)": table["imbalance"].iloc[0],
            "gradient noise (log₁₀ samples)": noise_scale(table, job.batch, job.gradients),
        }
        title = setups.ARCHITECTURES[job.model].title
        for name, value in values.items():
            found.setdefault(name, {}).setdefault(title, []).append(ValueWithError(value, 0.0))
    return {
        name: {title: combine(several) for title, several in by.items()}
        for name, by in found.items()
    }


def collected(
    runs: dict[str, pd.DataFrame], predictors: dict[str, dict[str, ValueWithError]]
) -> pd.DataFrame:
    """Put gaps beside predictors, one row a model and predictor.

    ``runs``: name of a model → its comparison; ``predictors``: name → title → value. Columns:
    model, base, held_out, gap, gap_error, predictor, value, value_error. Whether a model has
    attention is a predictor too: what must be beaten.
    """
    rows = []
    for name, table in runs.items():
        one, base = setups.ARCHITECTURES[name], setups.base(name)
        held_out = setups.VARIANTS.get(name, {}).get("held_out", False)
        about = (one.title, setups.ARCHITECTURES[base].title, held_out, *gap(table))
        known = {key: by[one.title] for key, by in predictors.items() if one.title in by}
        known["attention (0 or 1)"] = (float(one.family == "Transformer"), 0.0)
        rows += [(*about, key, *value) for key, value in known.items()]
    columns = "model base held_out gap gap_error predictor value value_error".split()
    return pd.DataFrame(rows, columns=columns)


def ordered(table: pd.DataFrame, pairs: str = "all") -> tuple[ValueWithError, int]:
    """Share of the pairs of models that a predictor orders as their gaps are, and of how many.

    ``table`` holds one predictor's rows of `collected`. A pair counts if its gaps differ by two
    standard errors and the predictor of both is known; values that are equal but for rounding are
    half right, so chance is one half. ``pairs``: "all"; "alike", of one base; "chosen on", none
    held out; or "held out", at least one held out. The error is the jackknife's over models.
    """
    rows = list(table.itertuples())
    wanted = {
        "all": lambda a, b: True,
        "alike": lambda a, b: a.base == b.base,
        "chosen on": lambda a, b: not (a.held_out or b.held_out),
        "held out": lambda a, b: a.held_out or b.held_out,
    }[pairs]

    def side(a: Any, b: Any) -> float:
        alike = math.isclose(a.value, b.value, rel_tol=ROUNDING)
        return 0.0 if alike else np.sign(a.value - b.value) * np.sign(a.gap - b.gap)

    def hits(kept: Sequence[int]) -> list[float]:
        return [
            (1 + side(a, b)) / 2
            for a, b in combinations([rows[i] for i in kept], 2)
            if wanted(a, b)
            and abs(a.gap - b.gap) > 2 * np.hypot(a.gap_error, b.gap_error)
            and math.isfinite(a.value + b.value)
        ]

    def share(kept: Sequence[int]) -> float:
        return float(np.mean(hits(kept) or [np.nan]))

    return jackknife(share, len(rows)), len(hits(range(len(rows))))


def called(table: pd.DataFrame) -> tuple[int, int]:
    """Of the models held out, how many are called right, and how many there are.

    Called clearly worse for SGD (gap above `CLEARLY_WORSE`) where the predictor lies above a
    threshold: that which is right most often on the others, halfway between two of them.
    """
    chosen, held = table[~table["held_out"]], table[table["held_out"]]
    values = np.sort(chosen["value"])
    cuts = [-np.inf, *(values[1:] + values[:-1]) / 2, np.inf]
    right = [((chosen["value"] > cut) == (chosen["gap"] > CLEARLY_WORSE)).sum() for cut in cuts]
    cut = cuts[int(np.argmax(right))]
    return int(((held["value"] > cut) == (held["gap"] > CLEARLY_WORSE)).sum()), len(held)
