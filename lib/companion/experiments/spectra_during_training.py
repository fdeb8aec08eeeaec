"""The Hessian spectrum of a model at several stages of its training: the full one, or by blocks."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from blockspectra.blocks import partition
from blockspectra.distance import log_spread
from blockspectra.problem import Problem, cross_entropy
from blockspectra.slq import block_spectra, full_spectrum
from blockspectra.spectra import Spectra, concat
from companion import datasets, setups
from companion.experiments.preconditioned_spectra import EPSILON, mean_squares
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

    BATCHES: ClassVar[int] = 1  #: of ``hessian`` samples each, that a stage is measured on

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
        drawn = self.hessian, self.BATCHES, self.seed
        problem = Problem(
            model, cross_entropy, datasets.batches(made.data, *drawn, device=self.device)
        )
        parts, names, values = [], [], []

        def observe(step: int) -> None:
            if step in stages:
                training = model.training
                model.eval()
                values.append(float(problem.value(problem.batches[0]).detach()))
                measured = self.measured(problem)
                parts.extend(measured.values())
                names.extend(f"{stages[step]}{name}" for name in measured)
                model.train(training)

        stream = datasets.stream(made.data, self.batch, self.seed, device=self.device)
        how = OPTIMIZERS[self.optimizer], self.rate
        losses = train(model, cross_entropy, stream, *how, steps=self.training, observe=observe)
        if not np.isfinite(losses).all():
            raise ValueError(
                f"{made.title} diverges when trained by {self.optimizer} at rate "
                f"{self.rate:g}: lower the rate."
            )
        result = concat(parts, names)
        result.meta.update(asdict(self), **made.about, loss=values, training_loss=losses.tolist())
        return result

    def measured(self, problem: Problem) -> dict[str, Spectra]:
        """Measure at one stage: spectra of one block each, by what follows the stage's name."""
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        return {"": full_spectrum(problem, **settings)}


@dataclass(frozen=True)
class BlockSpectraDuringTraining(SpectraDuringTraining):
    """The same by blocks, of the Hessian itself and in the coordinates of Adam (chapter 20).

    As in `PreconditionedSpectra`, the Hessian is that of the first of ``BATCHES`` mini-batches of
    ``hessian`` samples, over which v̂, of the weights at hand, is the mean. Names of the result's
    blocks are ``stage, coordinates, block``, the coordinates "none" or "adam".
    """

    NAME = "block-stages-{model}-{optimizer}"
    BATCHES: ClassVar[int] = 16

    def measured(self, problem: Problem) -> dict[str, Spectra]:
        """Measure all blocks in both coordinates."""
        blocks = partition(problem.model)
        squares = mean_squares(problem, blocks)
        adam = {name: square.sqrt() + EPSILON for name, square in squares.items()}
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        first = Problem(problem.model, problem.loss, problem.batches[:1])
        found = {}
        for coordinates, scales in (("none", None), ("adam", adam)):
            spectra = block_spectra(first, blocks, preconditioner=scales, **settings)
            for name in spectra.names:
                found[f", {coordinates}, {name}"] = spectra.select([name])
        return found


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


#: best rates of momentum and AdamW in chapter 06's comparisons at the preset full
BEST_RATES = {"gpt": (0.0562, 0.0178), "vit": (0.0316, 0.00316), "vgg": (0.0316, 0.00562)}


def along_training(preset: str) -> list[BlockSpectraDuringTraining]:
    """Declare, for the preset full, chapter 20's runs: those of chapter 06 on its fresh seeds."""
    settings = {"size": "medium", "training": 400, "batch": 64, "samples": 12_000}
    settings |= {"hessian": 16, "steps": 6, "probes": 2}
    return [
        BlockSpectraDuringTraining(model, optimizer, rate, seed=seed, **settings)
        for seed in range(3, 8 if preset == "full" else 3)
        for model, rates in BEST_RATES.items()
        for optimizer, rate in zip(("momentum", "adamw"), rates, strict=True)
    ]


def spread_by_stage(measured: Spectra) -> pd.DataFrame:
    """Spread over blocks of the RMS eigenvalue at each stage of one run, see `log_spread`.

    Columns: model, family, optimizer, seed, stage, share (of the training), coordinates, spread,
    standard_error (over probes); decades.
    """
    meta, groups, rows = measured.meta, {}, []
    for name in measured.names:
        stage, coordinates, _ = name.split(", ", 2)
        groups.setdefault((stage, coordinates), []).append(name)
    about = [meta[key] for key in ("title", "family", "optimizer", "seed")]
    for (stage, coordinates), names in groups.items():
        share = 0.0 if stage == "init" else float(stage.split()[0]) / 100
        spread = log_spread(measured.select(names), "rms")
        rows.append((*about, stage, share, coordinates, *spread))
    columns = ["model", "family", "optimizer", "seed", "stage", "share", "coordinates"]
    return pd.DataFrame(rows, columns=[*columns, "spread", "standard_error"])
