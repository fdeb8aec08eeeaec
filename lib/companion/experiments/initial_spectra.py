"""Blockwise spectra of the paper's models at initialisation (chapters 04 to 06, 08 to 10)."""

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

ORDER = (
    "vgg",
    "mixer",
    "vit",
    "nano",
    "gpt",
    "gpt-bpe",
    "resnet",
    "bert",
)  # cheapest product first


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

    data_key = setups.data_key

    @property
    def cost(self) -> float:
        """Number of products, weighted by the model's rank in `ORDER`."""
        return self.samples * self.steps * self.probes * (1 + ORDER.index(self.model))

    def setup(self) -> Setup:
        """Make the model and the data."""
        fields = ("samples", "batches", "seed", "literal_init", "device")
        return setup(self.model, self.size, **{field: getattr(self, field) for field in fields})

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
        blocks = self.partition(made.problem.model)
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        result = block_spectra(made.problem, blocks, **settings, checkpoint=store.unfinished(self))
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
    """Declare the spectra of the models named in ``model``, all of seed 0 first.

    GPT2 at the paper's size has half as many samples: its windows are twice as long as BERT's.
    """
    settings = {"literal_init": literal_init, "by": by, "steps": steps, "probes": probes}
    settings |= {"device": device, "blocks": blocks}
    counts = dict.fromkeys(setups.names(model), samples)
    if size == "paper" and "gpt" in counts:
        counts["gpt"] //= 2
    return [
        InitialSpectra(name, size, counts[name], batches, seed, **settings)
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
        InitialSpectra(name, size, count, batches, 0, literal_init, by, steps, 2, device)
        for name in setups.names(sweep)
        for count in sweep_samples
    ]


def over_seeds(
    measured: Sequence[Spectra], statistic: Callable[[Spectra], Estimate]
) -> dict[str, Estimate]:
    """Average a statistic over the seeds of each model (``meta["title"]``)."""
    estimates: dict[str, list[Estimate]] = {}
    for one in measured:
        estimates.setdefault(one.meta["title"], []).append(statistic(one))
    return {title: combine(several) for title, several in estimates.items()}
