"""SGD against AdamW on the paper's models: a search of learning rates for each, kept run by run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from blockspectra.problem import cross_entropy
from companion import datasets, setups
from companion.datasets import Data
from companion.rate_search import last, search, windowed
from companion.setups import Setup, setup
from companion.store import Job, Store, declare
from companion.training import OPTIMIZERS, Optimizer, train

MIDDLE = {"momentum": -3, "adamw": -5}  # exponents of `rate_of` to search around: 0.03 and 0.003
#: searches and evaluation at the size of the full preset, whose runs are long
MEDIUM = {"test_samples": 800, "repeats": 2, "refined": True}
#: batch and steps of `map_of_batches`, by what a run costs
MAP = ((16, 100), (64, 100), (16, 400), (256, 100), (256, 400))
MOST = {"gpt-bpe": 9500, "bert": 7800}  # windows that the texts have, nearly
MOST |= {name: 3200 for name, one in setups.VARIANTS.items() if one.get("tail")}  # images


@dataclass(frozen=True)
class TrainingRun(Job):
    """One run of one optimizer at one rate: ``steps`` steps on batches of ``batch``.

    ``samples`` training sequences or images; the seed draws initialisation, data and order. The
    loss is kept as means over ``windows`` windows; the score is its mean over the last tenth. The
    trained model is evaluated on ``test_samples`` of the test part, if any.
    """

    NAME = "run-{model}-{optimizer}"
    FOLDER = "runs"
    ADDED = {"test_samples": 0}  # noqa: RUF012  a class attribute of `Job`

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
    test_samples: int = 0

    data_key = setups.data_key

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a window: step, loss, optimizer, rate, seed, score.

        With test samples also test_loss (nats, ``inf`` where training diverged) and test_accuracy.
        """
        settings = {"samples": self.samples, "seed": self.seed, "device": self.device}
        made = setup(self.model, self.size, **settings)
        table = trained(made, self, self.stepper(store, made))
        if not self.test_samples:
            return table
        test = setups.load(self.model, self.size, self.test_samples, self.seed, "test")
        loss, accuracy = evaluated(made.problem.model, test, self.batch, self.device)
        loss = loss if np.isfinite([loss, table["score"].iloc[0]]).all() else np.inf
        return table.assign(test_loss=loss, test_accuracy=accuracy)

    def stepper(self, store: Store, made: Setup) -> Optimizer:
        """Return what takes the steps, by its name."""
        return OPTIMIZERS[self.optimizer]


@dataclass(frozen=True)
class OptimizerComparison(Job):
    """SGD with momentum against AdamW on one model, each at the best rate of a search.

    `compare` explains ``rates``, ``seeds``, ``repeats`` and ``refined``; other fields as in
    `TrainingRun`.
    """

    NAME = "contest-{model}"
    MADE_OF = (TrainingRun,)
    ADDED = {"test_samples": 0, "repeats": 2, "refined": False}  # noqa: RUF012

    model: str
    size: str = "small"
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    seeds: int = 3
    rates: int = 5
    windows: int = 50
    device: str = "cpu"
    test_samples: int = 0
    repeats: int = 2
    refined: bool = False

    data_key = setups.data_key

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs: the columns of `TrainingRun` and part; one row a window."""
        shared = asdict(self)
        search = {name: shared.pop(name) for name in ("rates", "seeds", "repeats", "refined")}
        return compare(store, partial(TrainingRun, **shared), MIDDLE, **search)


def compare(
    store: Store,
    run: Callable[..., Job],
    middle: Mapping[str, int],
    rates: int,
    seeds: int,
    repeats: int = 2,
    refined: bool = False,
) -> pd.DataFrame:
    """Search each optimizer's rate on grids of ``rates`` exponents, or more, around its ``middle``.

    Seed 0 runs at all rates, the next ``repeats`` seeds at the best, and ``seeds`` fresh ones after
    these at the best of all. `search` explains ``refined``.
    """

    def runs(optimizer: str, rates: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
        pairs = [(rate, seed) for rate in rates for seed in seeds]
        wanted = [run(optimizer=optimizer, rate=rate, seed=seed) for rate, seed in pairs]
        return pd.concat(map(store.get, wanted), ignore_index=True)

    first = {name: exponent - rates // 2 for name, exponent in middle.items()}
    grids = {name: range(start, start + rates) for name, start in first.items()}
    repeated, fresh = range(1, 1 + repeats), range(1 + repeats, 1 + repeats + seeds)
    return search(runs, grids, searched=[0], repeated=repeated, fresh=fresh, refined=refined)


def trained(made: Setup, run: Any, optimizer: Optimizer | None = None) -> pd.DataFrame:
    """Train a model as a run declares; its losses in the rows that a search reads."""
    stream = datasets.stream(made.data, run.batch, run.seed, device=run.device)
    optimizer = optimizer or OPTIMIZERS[run.optimizer]
    losses = train(made.problem.model, cross_entropy, stream, optimizer, run.rate, steps=run.steps)
    return windowed(losses, run.windows).assign(
        optimizer=run.optimizer, rate=run.rate, seed=run.seed, score=last(losses)
    )


@torch.no_grad()
def evaluated(model: nn.Module, data: Data, batch: int, device: str) -> tuple[float, float]:
    """Return the mean loss (nats) and the accuracy over all targets of some data."""
    loss, right, count = 0.0, 0, 0
    for inputs, targets in zip(data.inputs.split(batch), data.targets.split(batch), strict=True):
        inputs, targets = inputs.to(device), targets.to(device).flatten()
        logits = model(inputs).flatten(0, -2)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        right += (logits.argmax(-1) == targets).sum().item()
        count += (targets >= 0).sum().item()  # others are not predicted
    return loss / count, right / count


def available(model: str, samples: int) -> int:
    """Return how many of some training samples there are for a model."""
    return min(samples, MOST.get(model, samples))


def jobs(
    model: str,
    size: str,
    train_samples: int,
    batch: int,
    train_steps: int,
    train_seeds: int,
    rates: int,
    device: str = "cpu",
    job: Callable[..., Job] = OptimizerComparison,
) -> list[Job]:
    """Declare the comparisons of several models; parameters are those of chapters 06 and 21.

    Those of medium size have the settings of `MEDIUM`.
    """
    shared = {"batch": batch, "steps": train_steps, "seeds": train_seeds, "rates": rates}
    shared |= MEDIUM if size == "medium" else {}
    return [
        job(name, size, available(name, train_samples), device=device, **shared)
        for name in dict.fromkeys(setups.names(model))
    ]


def jobs_of_train_size(train_size: str, **settings: Any) -> list[Job]:
    """Declare the same where ``size`` is of other models: those of chapter 08's spectra."""
    return declare(jobs, settings, size=train_size)


def map_of_batches(preset: str, train_samples: int, rates: int) -> list[OptimizerComparison]:
    """Declare, for the full preset, where the gap begins: batches by steps, three seeds each.

    The cheapest first, and of each the model whose gap is largest; 64 by 400 steps is `jobs`'.
    """
    if preset != "full":
        return []
    settings = {"rates": rates, "seeds": 3} | MEDIUM | {"repeats": 1, "test_samples": 0}
    return [
        OptimizerComparison(name, "medium", train_samples, batch, steps, **settings)
        for batch, steps in MAP
        for name in ("gpt", "vit", "vgg")
    ]
