"""Models before and after pre-training: blockwise spectra, and SGD against AdamW in tuning them."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from blockspectra.problem import cross_entropy
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from blockspectra.statistics import Estimate
from companion import datasets
from companion.pretrained.gpt2 import Checkpoint
from companion.pretrained.minilm import MiniLM
from companion.pretrained.nano_gpt import Nano
from companion.rate_search import last, search, windowed
from companion.store import Store
from companion.training import OPTIMIZERS, train

Subject = Nano | MiniLM | Checkpoint


@dataclass(frozen=True)
class Pretraining:
    """One pre-training of the nano GPT; the others find its weights among the runs."""

    subject: Nano
    seed: int = 0
    windows: int = 50

    @property
    def title(self) -> str:
        """What the progress bar says."""
        return f"pre-training {self.seed}"

    @property
    def cost(self) -> int:
        """Order of cost."""
        return self.subject.steps

    def result(self, store: Store) -> pd.DataFrame:
        """Return the losses on the way: step, loss, seed."""

        def compute() -> pd.DataFrame:
            losses = self.subject.pretraining(store, self.seed)[: self.subject.steps]
            return windowed(losses, self.windows).assign(seed=self.seed)

        return store.get(f"pretraining-{self.subject.name}", asdict(self), compute)


@dataclass(frozen=True)
class Curvature:
    """Blockwise spectra of a model, pre-trained or not, at the loss of the task it is tuned on.

    ``samples`` sequences, ``steps`` Lanczos steps, ``probes`` random start vectors a block; the
    seed draws all that is random, initialisation included.
    """

    subject: Subject
    pretrained: bool
    samples: int = 8
    steps: int = 30
    probes: int = 3
    seed: int = 0
    device: str = "cpu"

    @property
    def title(self) -> str:
        """What the progress bar says."""
        return f"spectra of {self.subject.name}"

    @property
    def cost(self) -> int:
        """Order of cost: nearer to that of a `FineTuning` for larger models."""
        return self.samples * self.steps * self.probes * (1 if self.subject.name == "nano" else 50)

    def result(self, store: Store) -> Spectra:
        """Return the spectra; ``meta`` says what was measured."""
        name, about = f"{self.subject.name}-{_start(self.pretrained)}", asdict(self)

        def compute() -> Spectra:
            made = self.subject.setup(store, self.pretrained, self.samples, self.seed, self.device)
            blocks = self.subject.blocks(made.problem.model)
            settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
            settings["checkpoint"] = store.runs(name, about)
            result = block_spectra(made.problem, blocks, **settings)
            data = {"name": made.data.name, "data": made.data.checksum}
            result.meta.update(about, title=made.title, caption=made.caption, **data)
            return result

        return store.get(name, about, compute)


@dataclass(frozen=True)
class FineTuning:
    """SGD with momentum against AdamW on a model, pre-trained or not, each at its best rate.

    As `companion.experiments.optimizer_comparison.Contest`, and from scratch on the nano GPT the
    same to the bit. The search uses seed 0 for all rates and as many seeds as ``repeats`` says for
    the two best; ``seeds`` fresh ones come after these.
    """

    subject: Subject
    pretrained: bool = True
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    seeds: int = 3
    rates: int = 5
    repeats: int = 2
    windows: int = 50
    device: str = "cpu"

    @property
    def title(self) -> str:
        """What the progress bar says."""
        return f"tuning of {self.subject.name}"

    @property
    def cost(self) -> int:
        """Order of cost: above that of all spectra."""
        return self.samples * self.steps * self.batch

    def result(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""

        def compute() -> pd.DataFrame:
            def runs(optimizer, rates, seeds):
                every = [self.run(store, optimizer, r, s) for r in rates for s in seeds]
                return pd.concat(every, ignore_index=True)

            half = self.rates // 2
            grids = {
                name: range(middle - half, middle - half + self.rates)
                for name, middle in self.subject.middle.items()
            }
            fresh = range(1 + self.repeats, 1 + self.repeats + self.seeds)
            repeated = range(1, 1 + self.repeats)
            return search(runs, grids, searched=[0], repeated=repeated, fresh=fresh)

        name = f"tuning-{self.subject.name}-{_start(self.pretrained)}"
        return store.get(name, asdict(self), compute)

    def run(self, store: Store, optimizer: str, rate: float, seed: int) -> pd.DataFrame:
        """Tune once; kept as soon as it is done."""
        about = asdict(replace(self, seeds=0, rates=0, repeats=0))  # a run does not depend on these
        about |= {"optimizer": optimizer, "rate": rate, "seed": seed}

        def compute() -> pd.DataFrame:
            made = self.subject.setup(store, self.pretrained, self.samples, seed, self.device)
            (losses,) = train(
                [made.problem.model],
                cross_entropy,
                [datasets.stream(made.data, self.batch, seed, self.device)],
                OPTIMIZERS[optimizer],
                [rate],
                steps=self.steps,
            )
            curve = windowed(losses, self.windows)
            return curve.assign(optimizer=optimizer, rate=rate, seed=seed, score=last(losses))

        return store.part("runs").get(f"run-{self.subject.name}", about, compute)


def ratio(top: Estimate, bottom: Estimate) -> Estimate:
    """Quotient of two independent estimates; its error is of first order in theirs."""
    value = top.mean / bottom.mean
    relative = np.hypot(top.standard_error / top.mean, bottom.standard_error / bottom.mean)
    return Estimate(value, abs(value) * relative)


def _start(pretrained: bool) -> str:
    return "pretrained" if pretrained else "scratch"
