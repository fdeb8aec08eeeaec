"""Experiments on the man-made MLP of one c: its curvature, and each optimizer at its best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from blockspectra.blocks import partition
from blockspectra.problem import Problem, cross_entropy
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from blockspectra.statistics import ValueWithError
from companion import datasets
from companion.datasets.images import FASHION, MNIST
from companion.datasets.sources import digest_of
from companion.models.man_made import man_made, multipliers
from companion.rate_search import last, search
from companion.store import Job, Store, declare
from companion.training import OPTIMIZERS, train_together

#: exponents (see `rate_of`) in the middle of the grids at c = 1: rates 0.3, 0.1 and 0.01
MIDDLE = {"sgd": -1, "momentum": -2, "adam": -4}


@lru_cache(maxsize=2)  # resized once in a process
def load(images: str, split: str, side: int) -> datasets.Data:
    """Load "mnist", or "fashion", which has three times as many images and 28 pixels a side."""
    if images == "fashion" and side != 28:
        raise ValueError(f"Fashion-MNIST has 28 pixels a side, not {side}.")
    return datasets.fashion(split) if images == "fashion" else datasets.mnist(split, side)


def rate_ratio(c: float, optimizer: str) -> float:
    """Ratio of the largest to the smallest of the layers' rates, seen as rates of the plain MLP."""
    s = multipliers(c)
    return (max(s) / min(s)) ** (1 if OPTIMIZERS[optimizer].adaptive else 2)


class OnImages:
    """A job on the data set that its field ``images`` names: "mnist" or "fashion"."""

    ADDED = {"images": "mnist"}  # noqa: RUF012  a class attribute of `Job`

    def data_key(self) -> str:
        """Digest of the data set's file."""
        return digest_of({"mnist": MNIST, "fashion": FASHION}[self.images])


@dataclass(frozen=True)
class ManMadeSpectra(OnImages, Job):
    """Blockwise spectra of the man-made MLP at initialisation, on training images.

    Fields as in `man_made` and `block_spectra`; ``samples`` images, drawn by the seed.
    """

    NAME = "man-made-spectra"

    c: float
    seed: int = 0
    side: int = 28
    width: int = 64
    samples: int = 256
    steps: int = 30
    probes: int = 3
    device: str = "cpu"
    images: str = "mnist"

    def compute(self, store: Store) -> Spectra:
        """Return the spectra of the four weight matrices; ``meta`` says what was measured."""
        data = load(self.images, "train", self.side)
        model = man_made(self.c, self.side, self.width, self.seed).to(self.device).eval()
        batches = datasets.batches(data, self.samples, 1, self.seed, device=self.device)
        problem = Problem(model, cross_entropy, batches)
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        result = block_spectra(problem, partition(model), **settings)
        result.meta.update(self.settings(), data=data.checksum, title=f"{self.c:g}", name=data.name)
        return result


@dataclass(frozen=True)
class ManMadeRuns(OnImages, Job):
    """All rates × seeds of one optimizer on the man-made MLP of one c, trained at once.

    Fields as in `ManMadeComparison`.
    """

    NAME = "man-made-runs-{optimizer}"
    FOLDER = "runs"

    c: float
    optimizer: str
    at: tuple[float, ...]  #: learning rates
    seeds: tuple[int, ...]
    layer: int | None = None
    side: int = 28
    width: int = 64
    batch: int = 64
    steps: int = 300
    device: str = "cpu"
    images: str = "mnist"

    def compute(self, store: Store) -> pd.DataFrame:
        """Train and test; one row a run, with the columns of `ManMadeComparison.compute`."""
        pairs = [(rate, seed) for rate in self.at for seed in self.seeds]
        train_data, test_data = (load(self.images, s, self.side) for s in ("train", "test"))
        models = [man_made(self.c, self.side, self.width, s).to(self.device) for _, s in pairs]
        if self.layer is not None:
            for model in models:
                model.requires_grad_(False).layers[self.layer].requires_grad_(True)
        streams = [datasets.stream(train_data, self.batch, s, self.device) for _, s in pairs]
        optimizer, rates = OPTIMIZERS[self.optimizer], [rate for rate, _ in pairs]
        losses = train_together(models, cross_entropy, streams, optimizer, rates, steps=self.steps)
        table = pd.DataFrame(pairs, columns=["rate", "seed"])
        table["loss"] = [last(one) for one in losses]
        table["diverged"] = np.isinf(losses[:, -1])
        table["accuracy"] = [accuracy(model, test_data, self.device) for model in models]
        table.loc[table["diverged"], "accuracy"] = 1 / test_data.classes
        table["score"] = (1 - table["accuracy"]).mask(table["diverged"], float("inf"))
        return table.assign(c=self.c, optimizer=self.optimizer)


@dataclass(frozen=True)
class ManMadeComparison(OnImages, Job):
    """SGD, SGD with momentum and Adam on the man-made MLP of one c, each at the best of a search.

    ``steps`` steps on batches of ``batch`` images; ``searched`` seeds choose the rate out of grids
    of ``rates`` or more, ``seeds`` others report. Seeds draw weights and order: the same for all c.
    With ``layer`` (0 … 3) the others stay as they are drawn: the limit of a c far from 1.
    """

    NAME = "man-made"
    MADE_OF = (ManMadeRuns,)

    c: float
    layer: int | None = None
    side: int = 28
    width: int = 64
    batch: int = 64
    steps: int = 300
    rates: int = 7
    searched: int = 2
    seeds: int = 6
    device: str = "cpu"
    images: str = "mnist"

    def grid(self, optimizer: str) -> range:
        """Exponents to begin with: a guess, from where the search goes on if it is wrong.

        A rate that is stable in the stiffest layer alone goes with the inverse of its own rate on
        the plain MLP; the best one lies between that and what the other layers would take, so the
        grid moves half as many decades.
        """
        decades = math.log10(rate_ratio(self.c, optimizer)) / 2  # stiffest above geometric mean
        first = MIDDLE[optimizer] - round(decades) - self.rates // 2
        return range(first, first + self.rates)

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs, one row each.

        Columns: c, optimizer, rate, seed, part (see `search`), accuracy (share of test images; 0.1
        where the run has diverged: it counts as guessing), score (1 − accuracy, ``inf`` where
        diverged), loss (training, mean of the last tenth of the steps, nats), diverged.
        """

        def runs(optimizer: str, rates: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
            chosen = {"optimizer": optimizer, "at": tuple(rates), "seeds": tuple(seeds)}
            return store.get(declare(ManMadeRuns, vars(self), **chosen))

        grids = {name: self.grid(name) for name in MIDDLE}
        fresh = range(self.searched, self.searched + self.seeds)
        return search(runs, grids, searched=range(self.searched), fresh=fresh)


def comparisons(c: list[float], **settings: Any) -> list[ManMadeComparison]:
    """Declare chapter 07's comparisons: each c, then c = 1 with the first or last layer alone."""
    ways = [(value, None) for value in c] + [(1.0, 0), (1.0, 3)]
    return [declare(ManMadeComparison, settings, c=value, layer=layer) for value, layer in ways]


def spectra(
    c: list[float], lanczos_steps: int, initialisations: int, **settings: Any
) -> list[ManMadeSpectra]:
    """Declare chapter 07's spectra: several initialisations of each c."""
    return [
        declare(ManMadeSpectra, settings, c=value, seed=seed, steps=lanczos_steps)
        for value in c
        for seed in range(initialisations)
    ]


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: datasets.Data, device: str = "cpu") -> float:
    """Share of the images that the model classifies right."""
    guesses = model(data.inputs.to(device)).argmax(1)
    return float((guesses == data.targets.to(device)).double().mean())


def accuracy_lost(table: pd.DataFrame, optimizer: str, c: float) -> ValueWithError:
    """Test accuracy lost between c = 1 and c, in points, with its standard error over seeds.

    Only the fresh seeds of `ManMadeComparison` for 1 and for c count, each against itself: its
    weights and batches are the same for all c. The error is nan with a single seed.
    """
    best = table[(table["part"] == "best") & (table["optimizer"] == optimizer)]
    by_seed = 100 * best.pivot_table("accuracy", "seed", "c")
    drop = by_seed[1.0] - by_seed[c]
    return ValueWithError(float(drop.mean()), float(drop.sem()))
