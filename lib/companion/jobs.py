"""Measurements that several chapters share: computed by worker processes, kept in the store.

Every worker runs on one thread, so a number does not depend on how many workers there are.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from tqdm import tqdm

from blockspectra.blocks import partition
from blockspectra.cost import Cost, estimate
from blockspectra.slq import block_spectra, progress_wanted
from blockspectra.spectra import Spectra
from blockspectra.statistics import Estimate, combine
from companion.setups import Setup, setup
from companion.store import Store


@dataclass(frozen=True)
class Initial:
    """One measurement: the blockwise spectra of a model of the paper at initialisation.

    Fields as in `setup`, `partition` and `block_spectra`.
    """

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
    def title(self) -> str:
        """The model's name."""
        return self.model

    @property
    def cost(self) -> int:
        """Order of cost: products, by how long they take."""
        order = ("vgg", "mixer", "vit", "gpt", "resnet", "bert")
        return self.samples * self.steps * self.probes * (1 + order.index(self.model))

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

    def result(self, store: Store) -> Spectra:
        """Return the spectra, from the store if they are there; ``meta`` says what was measured."""
        made = self.setup()
        name = f"initial-{self.model}-{self.by}"
        about = asdict(self) | {"data": made.data.checksum}

        def compute() -> Spectra:
            result = block_spectra(
                made.problem,
                partition(made.problem.model, self.by),
                steps=self.steps,
                probes=self.probes,
                seed=self.seed,
                checkpoint=store.runs(name, about),
            )
            result.meta.update(
                about,
                title=made.title,
                family=made.family,
                caption=made.caption,
                name=made.data.name,
            )
            return result

        return store.get(name, about, compute)


class Job(Protocol):
    """A measurement that `measure` can hand to a worker: picklable, found again in the store."""

    @property
    def cost(self) -> float:
        """Order of cost: the longest start first."""

    @property
    def title(self) -> str:
        """What the progress bar says."""

    def result(self, store: Store) -> Any:
        """Return the result, from the store if it is there."""


def measure(store: Store, wanted: Sequence[Job], workers: int = 2) -> list[Any]:
    """Take several measurements at once, the slow ones first; results in the order given.

    What is finished is kept even if a later one fails or the run is killed.

    Parameters
    ----------
    store : Store
    wanted : sequence of Job
    workers : int
        Processes; no more than there are cores is of use.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}.")
    context = multiprocessing.get_context("spawn")
    jobs = sorted(wanted, key=lambda job: job.cost, reverse=True)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_measure_one, store, job): job for job in jobs}
        bar = tqdm(total=len(jobs), disable=not progress_wanted())
        for future in as_completed(futures):
            future.result()
            bar.set_description(futures[future].title)
            bar.update()
        bar.close()
    return [one.result(store) for one in wanted]  # now all found: read, and noted as used


def over_seeds(
    measured: Sequence[Spectra], statistic: Callable[[Spectra], Estimate]
) -> dict[str, Estimate]:
    """Average a statistic over the seeds of each model (``meta["title"]``)."""
    titles = dict.fromkeys(one.meta["title"] for one in measured)
    return {
        title: combine([statistic(one) for one in measured if one.meta["title"] == title])
        for title in titles
    }


def _measure_one(store: Store, job: Job) -> None:
    job.result(store)
