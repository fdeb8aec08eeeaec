"""Models before and after pre-training: blockwise spectra, and SGD against AdamW in tuning them."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd

from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from companion.experiments import optimizer_comparison
from companion.experiments.initial_spectra import InitialSpectra
from companion.experiments.optimizer_comparison import compare, trained
from companion.pretrained.gpt2 import Checkpoint
from companion.pretrained.minilm import MiniLM
from companion.pretrained.nano_gpt import NanoGPT, NanoWeights
from companion.rate_search import windowed
from companion.store import Job, Store, declare

Subject = NanoGPT | MiniLM | Checkpoint
STARTS = {"from scratch": False, "pre-trained": True}


class OfSubject:
    """What the jobs on one model, their ``subject``, have in common."""

    def data_key(self) -> str:
        """Digest of the model's files and data."""
        return self.subject.data_key()

    @property
    def start(self) -> str:
        """Where the model starts from, in a name."""
        return "pretrained" if self.pretrained else "scratch"


@dataclass(frozen=True)
class Pretraining(OfSubject, Job):
    """The losses of one pre-training of the nano GPT."""

    NAME = "pretraining-{subject.name}"
    MADE_OF = (NanoWeights,)

    subject: NanoGPT
    seed: int = 0
    windows: int = 50

    def compute(self, store: Store) -> pd.DataFrame:
        """Return the losses on the way: step, loss, seed."""
        losses = self.subject.pretrained(store, self.seed)[: self.subject.steps]
        return windowed(losses, self.windows).assign(seed=self.seed)


@dataclass(frozen=True)
class PretrainedSpectra(OfSubject, Job):
    """Blockwise spectra of a model, pre-trained or not, at the loss of the task it is tuned on.

    ``samples`` sequences, ``steps`` Lanczos steps, ``probes`` random start vectors a block; the
    seed draws all that is random, initialisation included.
    """

    NAME = "{subject.name}-{0.start}"
    MADE_OF = (NanoWeights,)

    subject: Subject
    pretrained: bool
    samples: int = 8
    steps: int = 30
    probes: int = 3
    seed: int = 0
    device: str = "cpu"

    def compute(self, store: Store) -> Spectra:
        """Return the spectra; ``meta`` says what was measured."""
        made = self.subject.setup(store, self.pretrained, self.samples, self.seed, self.device)
        blocks = self.subject.blocks(made.problem.model)
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        result = block_spectra(made.problem, blocks, **settings, checkpoint=store.unfinished(self))
        data = {"name": made.data.name, "data": made.data.checksum}
        result.meta.update(asdict(self), title=made.title, caption=made.caption, **data)
        return result


@dataclass(frozen=True)
class FineTuningRun(OfSubject, Job):
    """One run of one optimizer at one rate; fields as in `FineTuning`."""

    NAME = "run-{subject.name}-{optimizer}"
    FOLDER = "runs"
    MADE_OF = (NanoWeights,)

    subject: Subject
    pretrained: bool
    optimizer: str
    rate: float
    seed: int
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    windows: int = 50
    device: str = "cpu"

    def compute(self, store: Store) -> pd.DataFrame:
        """Tune once; one row a window."""
        made = self.subject.setup(store, self.pretrained, self.samples, self.seed, self.device)
        return trained(made, self)


@dataclass(frozen=True)
class FineTuning(OfSubject, Job):
    """SGD with momentum against AdamW on a model, pre-trained or not, each at its best rate.

    As `OptimizerComparison`, and from scratch on the nano GPT the same to the bit. `compare`
    explains ``rates``, ``repeats``, ``seeds`` and ``refined``.
    """

    NAME = "tuning-{subject.name}-{0.start}"
    ADDED = {"refined": False}  # noqa: RUF012  a class attribute of `Job`
    MADE_OF = (NanoWeights, FineTuningRun)

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
    refined: bool = False

    def compute(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""
        run = partial(declare, FineTuningRun, vars(self))
        search = (self.rates, self.seeds, self.repeats, self.refined)
        return compare(store, run, self.subject.middle, *search)


def subjects(
    size: str,
    pretraining_steps: int,
    pretrainings: int,
    minilm: dict[str, int],
    checkpoint: str = "",
    instructions: str = "",
) -> dict[str, Subject]:
    """Name chapter 09's models: the nano GPT, MiniLM, and the reader's GPT2 if there is one."""
    found: dict[str, Subject] = {"nano GPT": NanoGPT(size, pretraining_steps, times=pretrainings)}
    if minilm:
        found["MiniLM"] = MiniLM()
    if checkpoint:
        found["GPT2"] = Checkpoint(checkpoint, instructions)
    return found


def pretrainings(**settings: Any) -> list[Pretraining]:
    """Declare chapter 09's pre-trainings of the nano GPT."""
    nano = declare(subjects, settings)["nano GPT"]
    return [Pretraining(nano, seed) for seed in range(nano.times)]


def spectra(seeds: int, **settings: Any) -> dict[tuple[str, str, int], Job]:
    """Declare chapter 09's spectra: (model, start, seed) → job.

    The nano GPT from scratch is the GPT of chapter 04.
    """
    wanted: dict[tuple[str, str, int], Job] = {}
    for seed in range(seeds):
        for model, subject in declare(subjects, settings).items():
            for start, pretrained in STARTS.items():
                if model == "nano GPT" and not pretrained:
                    job = declare(InitialSpectra, settings, model="gpt", seed=seed)
                else:
                    chosen = {"subject": subject, "pretrained": pretrained, "seed": seed}
                    chosen |= settings["minilm"] if model == "MiniLM" else {}
                    job = declare(PretrainedSpectra, settings, **chosen)
                wanted[model, start, seed] = job
    return wanted


def tunings(**settings: Any) -> dict[str, Job]:
    """Declare chapter 09's comparisons of optimizers: model and start → job.

    From scratch the nano GPT is chapter 06's of ``train_size``; tuned, it is searched alike.
    """
    (scratch,) = optimizer_comparison.jobs_of_train_size(**settings | {"model": "gpt"})
    run = {name: getattr(scratch, name) for name in ("steps", "seeds", "device")}
    names = ("samples", "batch", "rates", "repeats", "refined")
    alike = run | {name: getattr(scratch, name) for name in names}
    every = declare(subjects, settings)
    wanted: dict[str, Job] = {"nano GPT, from scratch": scratch}
    wanted["nano GPT, pre-trained"] = FineTuning(every["nano GPT"], **alike)
    if "GPT2" in every:
        for start, pretrained in STARTS.items():
            wanted[f"GPT2, {start}"] = FineTuning(every["GPT2"], pretrained, samples=500, **run)
    return wanted
