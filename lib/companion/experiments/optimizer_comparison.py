"""SGD against AdamW on the paper's models: a search of learning rates for each, kept run by run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd

from blockspectra.problem import cross_entropy
from companion import datasets, setups
from companion.rate_search import last, search, windowed
from companion.setups import Setup, setup
from companion.store import Job, Store
from companion.training import OPTIMIZERS, train

MIDDLE = {"momentum": -3, "adamw": -5}  # exponents of `rate_of` to search around: 0.03 and 0.003
ORDER = ("vgg", "mixer", "vit", "gpt", "bert", "resnet")  # by what a step takes


@dataclass(frozen=True)
class TrainingRun(Job):
    """One run of one optimizer at one rate: ``steps`` steps on batches of ``batch``.

    ``samples`` training sequences or images; the seed draws initialisation, data and order. The
    loss is kept as means over ``windows`` windows; the score is its mean over the last tenth.
    """

    NAME = "run-{model}-{optimizer}"
    FOLDER = "runs"

    model: str
    optimizer: str
    rate: float
    seed: int
    size: str = "small"
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    windows: int = 50
    device: str = "cpu"

    data_key = setups.data_key

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a window: step, loss, optimizer, rate, seed, score."""
        settings = {"samples": self.samples, "seed": self.seed, "device": self.device}
        return trained(setup(self.model, self.size, **settings), self)


@dataclass(frozen=True)
class OptimizerComparison(Job):
    """SGD with momentum against AdamW on one model, each at the best rate of a search.

    `compare` explains ``rates`` and ``seeds``; other fields as in `TrainingRun`.
    """

    NAME = "contest-{model}"
    TITLE = "{model}"

    model: str
    size: str = "small"
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    seeds: int = 3
    rates: int = 5
    windows: int = 50
    device: str = "cpu"

    data_key = setups.data_key

    @property
    def cost(self) -> float:
        """Steps, by how long they take."""
        return self.samples * self.steps * (1 + ORDER.index(self.model))

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""
        shared = asdict(self)
        seeds, rates = shared.pop("seeds"), shared.pop("rates")
        return compare(store, partial(TrainingRun, **shared), MIDDLE, rates, seeds)


def compare(
    store: Store,
    run: Callable[..., Job],
    middle: Mapping[str, int],
    rates: int,
    seeds: int,
    repeats: int = 2,
) -> pd.DataFrame:
    """Search each optimizer's rate on grids of ``rates`` exponents, or more, around its ``middle``.

    Seed 0 runs at all rates, the next ``repeats`` seeds at the two best, and ``seeds`` fresh ones
    after these at the best.
    """

    def runs(optimizer: str, rates: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
        pairs = [(rate, seed) for rate in rates for seed in seeds]
        wanted = [run(optimizer=optimizer, rate=rate, seed=seed) for rate, seed in pairs]
        return pd.concat(map(store.get, wanted), ignore_index=True)

    first = {name: exponent - rates // 2 for name, exponent in middle.items()}
    grids = {name: range(start, start + rates) for name, start in first.items()}
    repeated, fresh = range(1, 1 + repeats), range(1 + repeats, 1 + repeats + seeds)
    return search(runs, grids, searched=[0], repeated=repeated, fresh=fresh)


def trained(made: Setup, run: Any) -> pd.DataFrame:
    """Train a model as a run declares; its losses in the rows that a search reads."""
    stream = datasets.stream(made.data, run.batch, run.seed, device=run.device)
    optimizer = OPTIMIZERS[run.optimizer]
    losses = train(made.problem.model, cross_entropy, stream, optimizer, run.rate, steps=run.steps)
    return windowed(losses, run.windows).assign(
        optimizer=run.optimizer, rate=run.rate, seed=run.seed, score=last(losses)
    )


def jobs(
    model: str,
    size: str,
    train_samples: int,
    batch: int,
    train_steps: int,
    train_seeds: int,
    rates: int,
    device: str = "cpu",
) -> list[OptimizerComparison]:
    """Declare the comparisons of several models; parameters are those of chapter 06."""
    shared = (size, train_samples, batch, train_steps, train_seeds, rates)
    return [OptimizerComparison(name, *shared, device=device) for name in setups.names(model)]
