"""Blockwise spectra of the paper's models at initialisation (chapters 04, 05, 06, 08, 10)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from blockspectra.blocks import partition
from blockspectra.cost import Cost, estimate
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from blockspectra.statistics import Estimate, combine
from companion import setups
from companion.setups import Setup, setup
from companion.store import Job, Store

ORDER = ("vgg", "mixer", "vit", "gpt", "resnet", "bert")  # by what a product takes


@dataclass(frozen=True)
class InitialSpectra(Job):
    """The blockwise spectra of one model; fields as in `setup`, `partition`, `block_spectra`."""

    model: str
    size: str = "small"
    samples: int = 8
    batches: int = 1
    seed: int = 0
    literal_init: bool = False
    by: str = "tensor"
    steps: int = 30
    probes: int = 4
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Model and partition."""
        return f"initial-{self.model}-{self.by}"

    @property
    def title(self) -> str:
        """The model's name."""
        return self.model

    @property
    def cost(self) -> float:
        """Products, by how long they take."""
        return self.samples * self.steps * self.probes * (1 + ORDER.index(self.model))

    def data_key(self) -> str:
        """Digest of the files of the model's data set."""
        return setups.data_key(self.model, self.size)

    def setup(self) -> Setup:
        """Make the model and the data."""
        return setup(
            self.model,
            self.size,
            samples=self.samples,
            batches=self.batches,
            seed=self.seed,
            literal_init=self.literal_init,
            device=self.device,
        )

    def estimate(self) -> Cost:
        """Say what the spectra will cost, from one product of each kind."""
        problem = self.setup().problem
        return estimate(problem, partition(problem.model, self.by), self.steps, self.probes)

    def compute(self, store: Store) -> Spectra:
        """Return the spectra; ``meta`` says what was measured."""
        made = self.setup()
        result = block_spectra(
            made.problem,
            partition(made.problem.model, self.by),
            steps=self.steps,
            probes=self.probes,
            seed=self.seed,
            checkpoint=store.unfinished(self),
        )
        result.meta.update(asdict(self), **made.about)
        return result


def jobs(
    model: str,
    size: str,
    samples: int,
    batches: int,
    steps: int,
    probes: int,
    seeds: int,
    by: str = "tensor",
    literal_init: bool = False,
    device: str = "cpu",
) -> list[InitialSpectra]:
    """Declare the spectra of several models, all of seed 0 first.

    Parameters
    ----------
    model : str
        Names, separated by spaces or commas.
    seeds : int
        Initialisations and draws of the data, counted from 0.
    size, samples, batches, steps, probes, by, literal_init, device
        As in `InitialSpectra`.
    """
    return [
        InitialSpectra(
            name, size, samples, batches, seed, literal_init, by, steps, probes, device=device
        )
        for seed in range(seeds)
        for name in setups.names(model)
    ]


def sweep_of_samples(
    sweep: str,
    sweep_samples: list[int],
    size: str,
    batches: int,
    steps: int,
    by: str,
    literal_init: bool,
    device: str,
) -> list[InitialSpectra]:
    """Declare spectra of some models at several numbers of samples: seed 0, two probes."""
    return [
        InitialSpectra(name, size, count, batches, 0, literal_init, by, steps, 2, device=device)
        for name in setups.names(sweep)
        for count in sweep_samples
    ]


def over_seeds(
    measured: Sequence[Spectra], statistic: Callable[[Spectra], Estimate]
) -> dict[str, Estimate]:
    """Average a statistic over the seeds of each model (``meta["title"]``)."""
    titles = dict.fromkeys(one.meta["title"] for one in measured)
    return {
        title: combine([statistic(one) for one in measured if one.meta["title"] == title])
        for title in titles
    }
