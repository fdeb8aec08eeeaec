r"""Blockwise spectra in the coordinates of an optimizer (chapter 20).

Gradient descent in coordinates scaled by :math:`P^{1/2}` takes steps with the preconditioner
:math:`P^{-1}` and meets the curvature :math:`P^{-1/2} H P^{-1/2}`. Adam's P is
:math:`\mathrm{diag}(\sqrt{\hat v} + ε)`, v̂ the mean of squared mini-batch gradients.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from blockspectra.blocks import Block, partition
from blockspectra.distance import log_spread, rms
from blockspectra.gradient_graph import gradients
from blockspectra.hessian import BlockHessians
from blockspectra.problem import Problem
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from companion import setups
from companion.experiments.initial_spectra import combined
from companion.setups import Setup, setup
from companion.spectrum_similarity import scaled
from companion.store import Job, Store, declare

EPSILON = 1e-8  # Adam's
ROW_PROBES = 16  # random signs for the norms of the Hessian's rows
ORDERS = 20  # in which one number a block is given to other blocks, as a control

#: what P is made of, and what that tells
SCALINGS = {
    "none": "the Hessian itself",
    "adam": "√v̂ + ε, a number a coordinate",
    "shuffled": "√v̂ + ε in random order within its block: sizes of blocks without the coordinates",
    "foreign": "√v̂ + ε of another initialisation: the architecture's part of v̂",
    "sign": "|g| + ε of the batch itself: sign descent, Adam without memory",
    "rows": "norm of the block's Hessian row: equilibration (Dauphin et al., 2015), no gradient",
}


@dataclass(frozen=True)
class PreconditionedSpectra(Job):
    """Spectra of the blocks of P^(−1/2) H P^(−1/2) at initialisation, P by its name in `SCALINGS`.

    v̂ is the mean over ``gradients`` mini-batches of ``samples`` each, of which the first is the
    batch that the Hessian is taken on, as Adam's v̂ holds the gradient at hand. The seed draws
    initialisation, data, probes and shuffles; other fields as in `block_spectra`.
    """

    NAME = "scaled-{model}-{scaling}"

    model: str
    scaling: str
    size: str = "small"
    samples: int = 32
    gradients: int = 16
    steps: int = 10
    probes: int = 3
    seed: int = 0
    device: str = "cpu"

    data_key = setups.data_key

    def compute(self, store: Store) -> Spectra:
        """Return the spectra; ``meta["mean_squares"]`` holds the mean of v̂ over each block."""
        if self.scaling not in SCALINGS:
            raise ValueError(
                f"Unknown scaling {self.scaling!r}: choose from {', '.join(SCALINGS)}."
            )
        made = mini_batches(self, self.samples, self.seed)
        blocks = partition(made.problem.model)
        squares = mean_squares(made.problem, blocks)
        problem = Problem(made.problem.model, made.problem.loss, made.problem.batches[:1])
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        settings["preconditioner"] = self._diagonals(problem, blocks, squares)
        spectra = block_spectra(problem, blocks, **settings, checkpoint=store.unfinished(self))
        spectra.meta.update(asdict(self), **made.about)
        spectra.meta["mean_squares"] = [float(squares[block.name].mean()) for block in blocks]
        return spectra

    def _diagonals(
        self, problem: Problem, blocks: Sequence[Block], squares: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        if self.scaling == "none":
            return None
        if self.scaling == "rows":
            return row_norms(problem, blocks, self.seed)
        if self.scaling == "sign":
            squares = mean_squares(problem, blocks)
        if self.scaling == "foreign":
            other = mini_batches(self, self.samples, self.seed + 1000).problem
            squares = mean_squares(other, partition(other.model))
        diagonals = {name: square.sqrt() + EPSILON for name, square in squares.items()}
        if self.scaling == "shuffled":
            generator = torch.Generator().manual_seed(self.seed)
            for name, diagonal in diagonals.items():
                order = torch.randperm(len(diagonal), generator=generator)
                diagonals[name] = diagonal[order.to(diagonal.device)]
        return diagonals


def mini_batches(job: Any, samples: int, seed: int) -> Setup:
    """Make a job's model at initialisation, with its mini-batches of ``samples`` each."""
    settings = {"batches": job.gradients, "seed": seed, "device": job.device}
    return setup(job.model, job.size, samples=samples * job.gradients, **settings)


def mean_squares(problem: Problem, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Mean over a problem's batches of the squared gradient, (size,) float64 by block."""
    totals = [0] * len(blocks)
    with problem.curvature_mode():  # the same kernels as in the products
        for batch in problem.batches:
            for i, gradient in enumerate(gradients(problem, batch, blocks)):
                totals[i] = totals[i] + gradient.square() / len(problem.batches)
    return {block.name: total for block, total in zip(blocks, totals, strict=True)}


def row_norms(problem: Problem, blocks: Sequence[Block], seed: int) -> dict[str, Tensor]:
    """Estimated norms of the rows of each Hessian block, (size,) float64.

    For random signs z, the mean of (Hz)ᵢ² is the square of the norm of row i.
    """
    generator, totals = torch.Generator().manual_seed(seed), {}
    with problem.curvature_mode():
        hessians = BlockHessians(problem, blocks)  # checked once, for all signs
        for _ in range(ROW_PROBES):
            signs = [
                torch.randint(0, 2, (b.size,), generator=generator).to(b.parameters[0]) * 2 - 1
                for b in blocks
            ]
            products = hessians.products(list(zip(blocks, signs, strict=True)))
            for block, product in zip(blocks, products, strict=True):
                totals[block.name] = totals.get(block.name, 0) + product.double().square()
    return {name: (total / ROW_PROBES).sqrt() + EPSILON for name, total in totals.items()}


def by_block(raw: Spectra, exponent: float = 0.5, order: Sequence[int] | None = None) -> Spectra:
    """Spectra with one number a block as P: the mean of its v̂ to a power (Adam-mini at 1/2).

    Made from the ``raw`` spectra of the Hessian itself (scaling "none"), by division. With an
    ``order``, block i takes the number of block ``order[i]``: a control.
    """
    numbers = np.array(raw.meta["mean_squares"])
    if order is not None:
        numbers = numbers[list(order)]
    return scaled(raw, numbers**-exponent)


def jobs(model: str, scalings: str, seeds: int, **settings: Any) -> list[PreconditionedSpectra]:
    """Declare the spectra of several models in several coordinates, all of seed 0 first."""
    return [
        declare(PreconditionedSpectra, settings, model=name, scaling=scaling, seed=seed)
        for seed in range(seeds)
        for scaling in setups.names(scalings)
        for name in setups.names(model)
    ]


def spreads(measured: Sequence[Spectra]) -> pd.DataFrame:
    """Spread over blocks in each of the coordinates, those with one number a block among them.

    Columns: model, family, seed, scaling (of `SCALINGS`, "block" or "moved"), of (see
    `log_spread`), mean, standard_error (over probes); decades.
    """
    rows = []
    for one in measured:
        shown = {one.meta["scaling"]: [one]}
        if one.meta["scaling"] == "none":
            generator = np.random.default_rng(one.meta["seed"])
            orders = [generator.permutation(len(one.names)) for _ in range(ORDERS)]
            shown["block"] = [by_block(one)]
            shown["moved"] = [by_block(one, order=order) for order in orders]
        for scaling, several in shown.items():
            for of in ("rms", "largest", "trace"):
                found = np.mean([log_spread(each, of) for each in several], axis=0)
                about = [one.meta[key] for key in ("title", "family", "seed")]
                rows.append((*about, scaling, of, *found))
    columns = ["model", "family", "seed", "scaling", "of", "mean", "standard_error"]
    return pd.DataFrame(rows, columns=columns)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Average `spreads` over seeds; the standard errors join those over probes with the spread."""
    return combined(table, ["model", "family", "scaling", "of"], "mean")


def by_exponent(measured: Sequence[Spectra], exponents: Sequence[float]) -> pd.DataFrame:
    """Spread of the RMS eigenvalue with a block's mean v̂ to several powers as P."""
    rows = [
        (raw.meta["title"], raw.meta["seed"], power, log_spread(by_block(raw, power), "rms").mean)
        for raw in measured
        if raw.meta["scaling"] == "none"
        for power in exponents
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "exponent", "spread"])


def block_sizes(measured: Sequence[Spectra]) -> pd.DataFrame:
    """Root mean square eigenvalue of each block beside the geometric mean of its model's, seed 0.

    Columns: model, block, number, and one a scaling.
    """
    parts = {}
    for one in measured:
        if one.meta["seed"] == 0:
            logs = np.log10(rms(one))
            table = parts.setdefault(one.meta["title"], pd.DataFrame({"block": one.names}))
            table[one.meta["scaling"]] = 10 ** (logs - logs.mean())
    named = [part.assign(model=title, number=part.index) for title, part in parts.items()]
    return pd.concat(named, ignore_index=True)
