"""The full Hessian spectrum of a model at several stages of its training."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from blockspectra.problem import Problem, cross_entropy
from blockspectra.slq import full_spectrum
from blockspectra.spectra import Spectra, concat
from companion import datasets, setups
from companion.setups import setup
from companion.store import Job, Store, declare
from companion.training import OPTIMIZERS, train


@dataclass(frozen=True)
class SpectraDuringTraining(Job):
    """One training run of a model of the paper, its full Hessian spectrum measured on the way.

    The model trains as it should, BatchNorm by the statistics of each batch; its Hessian is taken
    in evaluation mode, BatchNorm by its running statistics, as the released code does. Every stage
    uses the same samples, drawn from the training data, and the same start vectors.

    Stages are ``shares`` of the ``training`` steps, on batches of ``batch`` out of ``samples``
    images or sequences at the largest ``rate``; the Hessian is averaged over ``hessian`` of them.
    ``steps`` and ``probes`` are those of `full_spectrum`; the seed draws all that is random.
    """

    NAME = "stages-{model}"

    model: str
    optimizer: str
    rate: float
    size: str = "small"
    training: int = 100
    batch: int = 16
    samples: int = 2000
    shares: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    hessian: int = 8
    steps: int = 25
    probes: int = 2
    seed: int = 0
    device: str = "cpu"

    data_key = setups.data_key

    def stages(self) -> dict[int, str]:
        """Training steps to measure at, and what each is called."""
        stages = {
            round(share * self.training): f"{100 * share:g} %" if share else "init"
            for share in self.shares
        }
        inside = all(0 <= share <= 1 for share in self.shares)
        if not self.shares or not inside or len(stages) < len(self.shares):
            raise ValueError(
                f"Stages must be shares of the training from 0 to 1, each of them another one of "
                f"its {self.training} steps, not {list(self.shares)}."
            )
        return stages

    def compute(self, store: Store) -> Spectra:
        """Return the spectra, a stage a block.

        ``meta`` says what was measured, and holds ``loss`` (of the Hessian's samples, at each
        stage) and ``training_loss`` (of the batch of each training step).
        """
        made = declare(setup, vars(self), name=self.model)
        model, stages = made.problem.model, self.stages()
        samples = datasets.batches(made.data, self.hessian, 1, self.seed, device=self.device)
        problem = Problem(model, cross_entropy, samples)
        measured, values = {}, []

        def observe(step: int) -> None:
            if step in stages:
                training = model.training
                model.eval()
                values.append(float(problem.value(samples[0]).detach()))
                measured[stages[step]] = full_spectrum(
                    problem, steps=self.steps, probes=self.probes, seed=self.seed
                )
                model.train(training)

        stream = datasets.stream(made.data, self.batch, self.seed, device=self.device)
        how = OPTIMIZERS[self.optimizer], self.rate
        losses = train(model, cross_entropy, stream, *how, steps=self.training, observe=observe)
        if not np.isfinite(losses).all():
            raise ValueError(
                f"{made.title} diverges when trained by {self.optimizer} at rate "
                f"{self.rate:g}: lower the rate."
            )
        result = concat(list(measured.values()), list(measured))
        result.meta.update(asdict(self), **made.about, loss=values, training_loss=losses.tolist())
        return result


def jobs(
    model: str,
    stages: list[float],
    sgd_rate: float,
    adamw_rate: float,
    seeds: int,
    **settings: Any,
) -> list[SpectraDuringTraining]:
    """Declare chapter 03's runs: CNNs by SGD with momentum, Transformers by AdamW."""
    rules = {"CNN": ("momentum", sgd_rate), "Transformer": ("adamw", adamw_rate)}
    wanted = []
    for seed in range(seeds):
        for name in setups.names(model):
            optimizer, rate = rules[setups.ARCHITECTURES[name].family]
            chosen = {"model": name, "optimizer": optimizer, "rate": rate, "shares": tuple(stages)}
            wanted.append(declare(SpectraDuringTraining, settings, seed=seed, **chosen))
    return wanted
