"""Blockwise spectra of the paper's models at initialisation (chapters 04, 05, 06, 08, 10)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from blockspectra.blocks import Block, partition
from blockspectra.cost import Cost, estimate
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from blockspectra.statistics import Estimate, combine
from companion import setups
from companion.setups import Setup, setup
from companion.store import Job, Store

ORDER = ("vgg", "mixer", "vit", "nano", "gpt", "resnet", "bert")  # by what a product takes


@dataclass(frozen=True)
class InitialSpectra(Job):
    """The blockwise spectra of one model; fields as in `setup`, `partition`, `block_spectra`."""

    NAME = "initial-{model}-{by}"
    TITLE = "{model}"

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
    blocks: str = "all"  #: or "chosen", see `chosen_blocks`

    ADDED = {"blocks": "all"}  # noqa: RUF012  a class attribute of `Job`

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

    def partition(self, model: nn.Module) -> list[Block]:
        """Return the blocks to measure."""
        only = setups.chosen_blocks(self.model) if self.blocks == "chosen" else None
        return partition(model, self.by, only=only)

    def estimate(self) -> Cost:
        """Say what the spectra will cost, from one product of each kind."""
        problem = self.setup().problem
        return estimate(problem, self.partition(problem.model), self.steps, self.probes)

    def compute(self, store: Store) -> Spectra:
        """Return the spectra; ``meta`` says what was measured."""
        made = self.setup()
        result = block_spectra(
            made.problem,
            self.partition(made.problem.model),
            steps=self.steps,
            probes=self.probes,
            seed=self.seed,
            checkpoint=store.unfinished(self),
        )
        about = asdict(self)
        if self.blocks == "all":
            del about["blocks"]  # as in results from before there was a choice
        result.meta.update(about, **made.about)
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
    blocks: str = "all",
    device: str = "cpu",
) -> list[InitialSpectra]:
    """Declare the spectra of several models, all of seed 0 first.

    GPT2 at the paper's size has half as many samples: its windows are twice as long as BERT's.

    Parameters
    ----------
    model : str
        Names, separated by spaces or commas.
    seeds : int
        Initialisations and draws of the data, counted from 0.
    size, samples, batches, steps, probes, by, literal_init, blocks, device
        As in `InitialSpectra`.
    """
    return [
        InitialSpectra(
            name,
            size,
            samples // 2 if (name, size) == ("gpt", "paper") else samples,
            batches,
            seed,
            literal_init,
            by,
            steps,
            probes,
            device,
            blocks,
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
