"""SGD against AdamW on a model of the paper: one search each, kept run by run."""

from dataclasses import asdict, dataclass, replace

import pandas as pd

from blockspectra.problem import cross_entropy
from companion import datasets
from companion.rate_search import last, search, windowed
from companion.setups import setup
from companion.store import Store
from companion.training import OPTIMIZERS, train


@dataclass(frozen=True)
class Contest:
    """SGD with momentum against AdamW on one model of the paper, each at the best of a search.

    ``samples`` training sequences or images, batches of ``batch``, ``steps`` steps; seeds draw
    initialisation, data and order. The score of a run is its mean loss over the last tenth. The
    search uses seed 0 for all rates and seeds 1 and 2 for the two best; ``seeds`` fresh ones come
    after these.
    """

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
    def title(self) -> str:
        """The model's name."""
        return self.model

    @property
    def cost(self) -> int:
        """Order of cost: steps, by how long they take."""
        order = ("vgg", "mixer", "vit", "gpt", "bert", "resnet")
        return self.samples * self.steps * (1 + order.index(self.model))

    def result(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""
        about = asdict(self)

        def compute() -> pd.DataFrame:
            kept = store.part("runs")

            def runs(optimizer, rates, seeds):
                return pd.concat(
                    [self.run(kept, optimizer, r, s) for r in rates for s in seeds],
                    ignore_index=True,
                )

            middle = {"momentum": -3, "adamw": -5}  # 0.03 and 0.003
            half, fresh = self.rates // 2, range(3, 3 + self.seeds)
            grids = {name: range(e - half, e - half + self.rates) for name, e in middle.items()}
            return search(runs, grids, searched=[0], repeated=[1, 2], fresh=fresh)

        return store.get(f"contest-{self.model}", about, compute)

    def run(self, store: Store, optimizer: str, rate: float, seed: int) -> pd.DataFrame:
        """Train one model once; kept as soon as it is done."""
        about = asdict(replace(self, seeds=0, rates=0))  # a run does not depend on these
        about |= {"optimizer": optimizer, "rate": rate, "seed": seed}

        def compute() -> pd.DataFrame:
            made = setup(self.model, self.size, samples=self.samples, seed=seed, device=self.device)
            stream = datasets.stream(made.data, self.batch, seed, device=self.device)
            losses = train(
                [made.problem.model],
                cross_entropy,
                [stream],
                OPTIMIZERS[optimizer],
                [rate],
                steps=self.steps,
            )[0]
            curve = windowed(losses, self.windows)
            return curve.assign(optimizer=optimizer, rate=rate, seed=seed, score=last(losses))

        return store.get(f"run-{self.model}", about, compute)
