"""SGD against AdamW on the paper's models: a search of learning rates for each, kept run by run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from blockspectra.problem import cross_entropy
from companion import datasets, setups
from companion.rate_search import last, search, windowed
from companion.setups import setup
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

    def data_key(self) -> str:
        """Digest of the files of the model's data set."""
        return setups.data_key(self.model, self.size)

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a window: step, loss, optimizer, rate, seed, score."""
        made = setup(
            self.model, self.size, samples=self.samples, seed=self.seed, device=self.device
        )
        (losses,) = train(
            [made.problem.model],
            cross_entropy,
            [datasets.stream(made.data, self.batch, self.seed, device=self.device)],
            OPTIMIZERS[self.optimizer],
            [self.rate],
            steps=self.steps,
        )
        return curve(losses, self)


@dataclass(frozen=True)
class OptimizerComparison(Job):
    """SGD with momentum against AdamW on one model, each at the best rate of a search.

    The search uses seed 0 for all rates and seeds 1 and 2 for the two best; ``seeds`` fresh ones
    come after these. Other fields as in `TrainingRun`.
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

    @property
    def cost(self) -> float:
        """Steps, by how long they take."""
        return self.samples * self.steps * (1 + ORDER.index(self.model))

    def data_key(self) -> str:
        """Digest of the files of the model's data set."""
        return setups.data_key(self.model, self.size)

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""
        shared = asdict(self)
        del shared["seeds"], shared["rates"]

        def runs(optimizer: str, rates: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
            wanted = [
                TrainingRun(optimizer=optimizer, rate=rate, seed=seed, **shared)
                for rate in rates
                for seed in seeds
            ]
            return pd.concat(map(store.get, wanted), ignore_index=True)

        fresh = range(3, 3 + self.seeds)
        grids = grids_around(MIDDLE, self.rates)
        return search(runs, grids, searched=[0], repeated=[1, 2], fresh=fresh)


def grids_around(middle: dict[str, int], rates: int) -> dict[str, range]:
    """Give each optimizer a grid of ``rates`` exponents around its middle."""
    first = {name: exponent - rates // 2 for name, exponent in middle.items()}
    return {name: range(start, start + rates) for name, start in first.items()}


def curve(losses, run) -> pd.DataFrame:
    """Put a run's losses, (step,), into the rows that a search reads."""
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
    return [
        OptimizerComparison(
            *(name, size, train_samples, batch, train_steps, train_seeds, rates), device=device
        )
        for name in setups.names(model)
    ]
