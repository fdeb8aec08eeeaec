"""The full Hessian spectrum of a model at several stages of its training."""

from dataclasses import asdict, dataclass

import numpy as np

from blockspectra.problem import Problem, cross_entropy
from blockspectra.slq import full_spectrum
from blockspectra.spectra import Spectra, concat
from companion import datasets, setups
from companion.setups import setup
from companion.store import Job, Store
from companion.training import OPTIMIZERS, train


@dataclass(frozen=True)
class SpectraDuringTraining(Job):
    """One training run of a model of the paper, its full Hessian spectrum measured on the way.

    The model trains as it should, BatchNorm by the statistics of each batch; its Hessian is taken
    in evaluation mode, BatchNorm by its running statistics, as the released code does. Every stage
    uses the same samples, drawn from the training data, and the same start vectors.

    Attributes
    ----------
    model, size, device : str
        As in `setup`.
    optimizer : str
        A key of `OPTIMIZERS`.
    rate : float
        Largest learning rate; `schedule` says how it rises and falls.
    training, batch : int
        Training steps, and images or sequences in the batch of each.
    samples : int
        Images or sequences that there are to train on.
    shares : tuple of float
        Stages, as shares of the training steps: 0 is initialisation, 1 the end.
    hessian : int
        Images or sequences that the Hessian is averaged over.
    steps, probes : int
        As in `full_spectrum`.
    seed : int
        Of initialisation, data, order of the batches and start vectors.
    """

    NAME = "stages-{model}"
    TITLE = "{model}"

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

    def data_key(self) -> str:
        """Digest of the files of the model's data set."""
        return setups.data_key(self.model, self.size)

    def moments(self) -> dict[int, str]:
        """Training steps to measure at, and what each is called.

        Raises
        ------
        ValueError
            If a share is outside [0, 1], or two of them fall on one step.
        """
        found = {
            round(share * self.training): f"{100 * share:g} %" if share else "init"
            for share in self.shares
        }
        inside = all(0 <= share <= 1 for share in self.shares)
        if not self.shares or not inside or len(found) < len(self.shares):
            raise ValueError(
                f"Stages must be shares of the training from 0 to 1, each of them another one of "
                f"its {self.training} steps, not {list(self.shares)}."
            )
        return found

    def compute(self, store: Store) -> Spectra:
        """Return the spectra, a stage a block.

        ``meta`` says what was measured, and holds ``loss`` (of the Hessian's samples, at each
        stage) and ``training_loss`` (of the batch of each training step).

        Raises
        ------
        ValueError
            If training diverges, or the stages are none.
        """
        made = setup(
            self.model, self.size, samples=self.samples, seed=self.seed, device=self.device
        )
        model, moments = made.problem.model, self.moments()
        samples = datasets.batches(made.data, self.hessian, 1, self.seed, device=self.device)
        problem = Problem(model, cross_entropy, samples)
        measured, values = {}, []

        def observe(step: int) -> None:
            if step in moments:
                training = model.training
                model.eval()
                values.append(float(problem.value(samples[0]).detach()))
                measured[moments[step]] = full_spectrum(
                    problem, steps=self.steps, probes=self.probes, seed=self.seed
                )
                model.train(training)

        losses = train(
            [model],
            cross_entropy,
            [datasets.stream(made.data, self.batch, self.seed, device=self.device)],
            OPTIMIZERS[self.optimizer],
            [self.rate],
            steps=self.training,
            observe=observe,
        )[0]
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
    size: str,
    stages: list[float],
    training: int,
    batch: int,
    samples: int,
    sgd_rate: float,
    adamw_rate: float,
    hessian: int,
    steps: int,
    probes: int,
    seeds: int,
    device: str = "cpu",
) -> list[SpectraDuringTraining]:
    """Declare chapter 03's runs: CNNs by SGD with momentum, Transformers by AdamW.

    Parameters are those of the chapter.
    """
    rules = {"CNN": ("momentum", sgd_rate), "Transformer": ("adamw", adamw_rate)}
    return [
        SpectraDuringTraining(
            name,
            *rules[setups.ARCHITECTURES[name].family],
            size=size,
            training=training,
            batch=batch,
            samples=samples,
            shares=tuple(stages),
            hessian=hessian,
            steps=steps,
            probes=probes,
            seed=seed,
            device=device,
        )
        for seed in range(seeds)
        for name in setups.names(model)
    ]
