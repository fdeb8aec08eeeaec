"""Predictors of the gap between SGD and AdamW, measured at initialisation (chapter 22)."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from blockspectra.blocks import partition
from blockspectra.gradient_graph import gradients
from companion import setups
from companion.experiments import optimizer_comparison
from companion.experiments.optimizer_comparison import OptimizerComparison
from companion.experiments.preconditioned_spectra import mini_batches
from companion.store import Job, Store


@dataclass(frozen=True)
class GradientStatistics(Job):
    """Squared gradients of each block of a model at initialisation, over mini-batches.

    ``gradients`` mini-batches of ``batch`` samples; the seed draws initialisation and data.
    """

    NAME = "gradients-{model}"
    TITLE = "{model}"

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


def comparisons(
    model: str,
    size: str,
    train_samples: int,
    batch: int,
    train_steps: int,
    train_seeds: int,
    variant_seeds: int,
    rates: int,
    device: str = "cpu",
) -> list[OptimizerComparison]:
    """Declare the comparisons that the gaps come from: those of chapter 06, and of variants.

    Variants have ``variant_seeds`` fresh seeds, and one seed less at the best rates of the search.
    """
    settings = (size, train_samples, batch, train_steps, train_seeds, rates, device)
    return [
        replace(job, seeds=variant_seeds, repeats=1) if job.model in setups.VARIANTS else job
        for job in optimizer_comparison.jobs(model, *settings)
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
