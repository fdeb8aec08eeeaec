r"""What closes the gap between SGD and AdamW: SGD with momentum and a rate for each block.

An *arm* is one way to train; `ARMS` lists them. Between plain SGD and AdamW, which chapter 06
compares (`optimizer_comparison`), stand arms that multiply the gradient of block b by a factor
:math:`s_b` before it enters the momentum, which is a learning rate :math:`η s_b` for that block
(weight decay aside). The factors are fixed at initialisation, by gradients or by curvature, or
follow the gradients as those of Adam-mini do (arXiv 2406.16793; it divides the momentum, and its
blocks are finer), or are one a coordinate.

From top to bottom: `BlockScales` measures gradient and curvature of each block before training;
`fixed_factors`, `coordinate_factors` and `Followed` make factors of them; `Scaled` is SGD that
multiplies by factors; `InterventionRun` trains one arm at one rate; `Interventions` searches the
best rate of every arm by `optimizer_comparison.compare`, as for SGD and AdamW, and runs fresh seeds
at it; `closed` says which share of the gap each arm closes; `jobs` and `scales` are what chapter 21
declares.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from blockspectra.blocks import Block, parameters_of, partition
from blockspectra.distance import rms
from blockspectra.problem import Problem
from blockspectra.slq import block_spectra
from blockspectra.statistics import ValueWithError, jackknife
from companion import setups
from companion.experiments import optimizer_comparison
from companion.experiments.optimizer_comparison import MEDIUM, MIDDLE, TrainingRun, compare
from companion.experiments.preconditioned_spectra import mean_squares, mini_batches
from companion.rate_search import final_losses
from companion.setups import Setup
from companion.store import Job, Store, declare
from companion.training import OPTIMIZERS, Optimizer

#: arm → what it does
ARMS = {
    "momentum": "one rate",
    "gradient": "fixed, 1/RMS gradient",
    "shuffled": "the same, shuffled",
    "sharpness-half": "fixed, 1/√λ_max",
    "followed": "followed along training",
    "followed-shuffled": "followed, shuffled",
    "followed-one": "followed, one for all",
    "coordinate": "fixed, one a coordinate",
    "adamw": "AdamW",
}
MOST_FACTOR = 100.0  # a factor is at most this many times the median: some gradients are zero
BETA_2 = 0.95  # AdamW's, for the arm that follows


@dataclass(frozen=True)
class BlockScales(Job):
    """Sizes of gradient and curvature of each block of a model at initialisation, vectors too.

    Gradients are those of ``gradients`` mini-batches of ``batch``; curvature is that on the first.
    """

    NAME = "scales-{model}"

    model: str
    size: str = "small"
    batch: int = 16
    seed: int = 0
    gradients: int = 16
    lanczos_steps: int = 8
    probes: int = 1
    device: str = "cpu"

    data_key = setups.data_key

    def problem(self) -> Problem:
        """Make the model and its mini-batches."""
        return mini_batches(self, self.batch, self.seed).problem

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a block: block, entries, square, largest, rms.

        ``square`` is the mean over entries and mini-batches of the squared gradient, ``largest``
        λ_max from below, ``rms`` the RMS eigenvalue.
        """
        problem = self.problem()
        blocks = partition(problem.model, vectors=True)
        squares = mean_squares(problem, blocks)
        first = Problem(problem.model, problem.loss, problem.batches[:1])
        lanczos = {"steps": self.lanczos_steps, "probes": self.probes, "seed": self.seed}
        spectra = block_spectra(first, blocks, **lanczos)
        return pd.DataFrame(
            {
                "block": [block.name for block in blocks],
                "entries": [block.size for block in blocks],
                "square": [squares[block.name].mean().item() for block in blocks],
                "largest": spectra.largest,
                "rms": rms(spectra),
            }
        )


def fixed_factors(table: pd.DataFrame, arm: str, seed: int = 0) -> np.ndarray:
    """Relative rates of the blocks of a table of `BlockScales`, (block,) float64.

    Each is at most `MOST_FACTOR` times their median. They are scaled so that the largest product
    of factor and λ_max is that of one rate for all, 1·λ_max: so a rate that is stable with one is
    about stable with the other, and searches can start from the same grid. ``shuffled`` draws the
    order of the blocks' factors from the seed.
    """
    column = "largest" if arm == "sharpness-half" else "square"
    with np.errstate(divide="ignore"):
        found = table[column].clip(lower=0).to_numpy() ** -0.5
    found = np.minimum(found, MOST_FACTOR * np.median(found))
    if arm == "shuffled":
        found = np.random.default_rng(seed).permutation(found)
    sharpness = table["largest"].to_numpy()
    return found * sharpness.max() / (found * sharpness).max()


def coordinate_factors(squares: Sequence[Tensor], found: np.ndarray) -> list[Tensor]:
    """Factors ∝ 1/√(mean squared gradient) of each entry, around those of the blocks.

    At most `MOST_FACTOR` times their median. Entry i of block b has the factor of b times
    √(mean square of b / mean square of i).
    """
    inverse = [1 / square.sqrt() for square in squares]
    most = MOST_FACTOR * torch.cat(inverse).median()
    unit = np.median(found * [square.mean().sqrt().item() for square in squares])
    return [(unit * one.clamp(max=most)).float() for one in inverse]


def by_parameter(
    blocks: Sequence[Block], values: Sequence[float | Tensor]
) -> dict[nn.Parameter, Tensor]:
    """Write a number, or one an entry, of each block into tensors like the parameters."""
    tensors = {p: torch.ones_like(p) for block in blocks for p in block.parameters}
    for block, value in zip(blocks, values, strict=True):
        (piece,) = block.pieces
        part = tensors[piece.parameter][piece.index]
        part.copy_(torch.as_tensor(value).expand(block.size).view(part.shape))
    return tensors


class Followed:
    """Factors ∝ 1/√v, v the running mean of each block's mean squared gradient, as in Adam-mini.

    Their median starts at that of ``first``, whatever the size of the gradients. Two controls: with
    an ``order`` block i gets the factor of block ``order[i]``; ``one`` factor for all follows all
    gradients.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        first: Sequence[float],
        order: Sequence[int] | None = None,
        one: bool = False,
    ):
        self.blocks, self.first = blocks, torch.as_tensor(first)
        self.order = list(range(len(blocks)) if order is None else order)
        self.shares = torch.tensor([block.size for block in blocks]).double() if one else None
        self.parameters = parameters_of(blocks)
        self.running, self.unit, self.steps = torch.zeros(len(blocks)).double(), None, 0

    def __call__(self) -> list[Tensor]:
        """Take the gradients in and return the factors."""
        squares = [
            block.flatten([p.grad for p in block.parameters]).double().square().mean()
            for block in self.blocks
        ]
        now = torch.stack(squares).cpu()
        if self.shares is not None:
            now = (now @ self.shares / self.shares.sum()).expand(len(now))
        self.steps += 1
        self.running = BETA_2 * self.running + (1 - BETA_2) * now
        size = (self.running / (1 - BETA_2**self.steps)).sqrt()
        inverse = (1 / size).clamp(max=MOST_FACTOR * (1 / size).median())
        if self.unit is None:  # the median block starts with its factor
            self.unit = (self.first.median() / inverse.median()).item()
        return list(by_parameter(self.blocks, self.unit * inverse[self.order]).values())


@dataclass(frozen=True)
class Scaled:
    """SGD with momentum whose gradients are multiplied by factors, in place, before each step.

    ``factors`` is called before each step and returns a tensor for each of ``parameters``.
    """

    parameters: Sequence[nn.Parameter]
    factors: Callable[[], Sequence[Tensor]]

    def at_rate_one(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make PyTorch's optimizer, whose step `train` scales by the rate."""
        stepper = OPTIMIZERS["momentum"].at_rate_one(parameters)

        def multiply(*_):
            for parameter, factor in zip(self.parameters, self.factors(), strict=True):
                parameter.grad.mul_(factor)

        stepper.register_step_pre_hook(multiply)
        return stepper


@dataclass(frozen=True)
class InterventionRun(TrainingRun):
    """One run of one of `ARMS` between SGD and AdamW; fields as in `TrainingRun`."""

    gradients: int = 16

    MADE_OF = (BlockScales,)

    def scales(self) -> BlockScales:
        """Declare what the factors are made of, at the run's own initialisation."""
        return BlockScales(
            self.model, self.size, self.batch, self.seed, self.gradients, device=self.device
        )

    def stepper(self, store: Store, made: Setup) -> Optimizer:
        """Return SGD with the arm's factors."""
        job = self.scales()
        blocks = partition(made.problem.model, vectors=True)
        found = fixed_factors(store.get(job), self.optimizer, self.seed)
        if self.optimizer.startswith("followed"):
            order = np.random.default_rng(self.seed).permutation(len(blocks))
            shuffled = order if self.optimizer == "followed-shuffled" else None
            followed = Followed(blocks, found, shuffled, self.optimizer == "followed-one")
            return Scaled(followed.parameters, followed)
        if self.optimizer == "coordinate":
            problem = job.problem()
            others = partition(problem.model, vectors=True)
            squares = mean_squares(problem, others)
            found = coordinate_factors([squares[block.name] for block in blocks], found)
        fixed = by_parameter(blocks, found)
        return Scaled(list(fixed), lambda: list(fixed.values()))


@dataclass(frozen=True)
class Interventions(Job):
    """All `ARMS` on one model, each at the best rate of a search of the same size.

    Fields as in `TrainingRun` and `OptimizerComparison`, whose runs are used where they are there.
    """

    NAME = "interventions-{model}"
    ADDED = {"refined": False}  # noqa: RUF012  a class attribute of `Job`
    MADE_OF = (TrainingRun, InterventionRun, BlockScales)

    model: str
    size: str = "small"
    samples: int = 2000
    batch: int = 16
    steps: int = 100
    seeds: int = 3
    rates: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    windows: int = 50
    device: str = "cpu"
    test_samples: int = 0
    repeats: int = 0
    refined: bool = False

    data_key = setups.data_key

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs: the columns of `TrainingRun` and part; one row a window."""
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"Unknown arm {', '.join(unknown)}: choose from {', '.join(ARMS)}.")
        names = {field.name for field in fields(TrainingRun)}
        shared = {name: value for name, value in asdict(self).items() if name in names}

        def run(optimizer: str, **point: float) -> Job:
            kind = TrainingRun if optimizer in OPTIMIZERS else InterventionRun
            return kind(optimizer=optimizer, **point, **shared)

        middle = {arm: MIDDLE.get(arm, MIDDLE["momentum"]) for arm in self.arms}
        search = (self.rates, self.seeds, self.repeats, self.refined)
        return compare(store, run, middle, *search)


def closed(table: pd.DataFrame) -> pd.DataFrame:
    """Say what each arm gains over SGD with momentum, from runs at the best rates.

    One row an arm: loss (nats), gained (nats), its standard_error, share of the gap to AdamW that
    is closed, its share_error (jackknife over the fresh seeds). A run that has diverged counts with
    the loss that AdamW began with.
    """
    ends, _ = final_losses(table)
    rows = []
    for arm, losses in ends.items():
        gained = ends["momentum"] - losses
        rows.append([arm, losses.mean(), gained.mean(), gained.sem(), *share_between(ends, arm)])
    columns = ["arm", "loss", "gained", "standard_error", "share", "share_error"]
    return pd.DataFrame(rows, columns=columns)


def share_between(ends: pd.DataFrame, better: str, worse: str = "momentum") -> ValueWithError:
    """Share of the gap from SGD with momentum to AdamW by which one arm ends below another.

    ``ends`` as `final_losses` returns them.
    """
    gained, gap = ends[worse] - ends[better], ends["momentum"] - ends["adamw"]

    def share(kept: Sequence[int]) -> float:
        return gained.iloc[list(kept)].sum() / gap.iloc[list(kept)].sum()

    return jackknife(share, len(ends))


def jobs(arms: str, **settings: Any) -> list[Interventions]:
    """Declare the comparisons of several models; parameters are those of chapter 21.

    Those of medium size share runs with chapter 06.
    """
    job = partial(Interventions, arms=tuple(setups.names(arms)))
    return declare(optimizer_comparison.jobs, settings, job=job)


def scales(
    model: str, size: str, batch: int, train_seeds: int, device: str = "cpu"
) -> list[BlockScales]:
    """Declare what the factors of the fresh seeds are made of: those that were not searched."""
    first = 1 + (MEDIUM["repeats"] if size == "medium" else 0)
    seeds = range(first, first + train_seeds)
    return [
        BlockScales(name, size, batch, seed, device=device)
        for name in setups.names(model)
        for seed in seeds
    ]
