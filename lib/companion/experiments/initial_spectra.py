"""Blockwise spectra of the paper's models at initialisation (chapters 04 to 06, 08 to 10)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from blockspectra.blocks import Block, partition
from blockspectra.cost import Cost, estimate
from blockspectra.distance import heterogeneity, js0, rms
from blockspectra.problem import Problem, cross_entropy
from blockspectra.slq import block_spectra
from blockspectra.spectra import Spectra
from blockspectra.statistics import ValueWithError, combine, ratio
from companion import setups
from companion.setups import Setup, setup
from companion.spectrum_similarity import scaled
from companion.store import Job, Store, declare

#: `cross_entropy` in two parts, as the Gauss–Newton matrix needs it: outputs and loss of outputs
CROSS_ENTROPY_PARTS = (
    lambda model, batch: model(batch[0]),
    lambda outputs, batch: cross_entropy(lambda _: outputs, batch),
)
#: measure of `by_measure` that compares the shapes of spectra
SHAPES = "sum, raw, blocks / λ_max"


@dataclass(frozen=True)
class InitialSpectra(Job):
    """The blockwise spectra of one model; fields as in `setup`, `partition`, `block_spectra`."""

    NAME = "initial-{model}-{by}"

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
    statistics: str = "running"  #: of BatchNorm, as in the released code; or "batch"
    matrix: str = "hessian"  #: or "ggn", its Gauss–Newton part

    ADDED = {  # noqa: RUF012  a class attribute of `Job`
        "blocks": "all",
        "statistics": "running",
        "matrix": "hessian",
    }

    data_key = setups.data_key

    def setup(self, dtype: torch.dtype = torch.float32) -> Setup:
        """Make the model and the data."""
        return declare(setup, vars(self), name=self.model, dtype=dtype)

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
        if self.statistics == "batch":
            made.problem.model.train()
            made.problem.batch_statistics = True
        blocks = self.partition(made.problem.model)
        problem = made.problem
        if self.matrix == "ggn":
            problem = Problem(problem.model, CROSS_ENTROPY_PARTS, problem.batches)
        settings = {"steps": self.steps, "probes": self.probes, "seed": self.seed}
        settings |= {"matrix": self.matrix, "checkpoint": store.unfinished(self)}
        result = block_spectra(problem, blocks, **settings)
        result.meta.update(self.settings(), **made.about)
        return result


def jobs(model: str, size: str, samples: int, seeds: int, **settings: Any) -> list[InitialSpectra]:
    """Declare the spectra of the models named in ``model``, all of seed 0 first.

    GPT2 at the paper's size has half as many samples: its windows are twice as long as BERT's.
    """
    counts = dict.fromkeys(setups.names(model), samples)
    if size == "paper" and "gpt" in counts:
        counts["gpt"] //= 2
    settings |= {"size": size}
    return [
        declare(InitialSpectra, settings, model=name, samples=counts[name], seed=seed)
        for seed in range(seeds)
        for name in setups.names(model)
    ]


def deeper(size: str) -> list[InitialSpectra]:
    """Declare how else ResNet18 is measured at its own size.

    With more samples, steps and probes; and with BatchNorm by the statistics of the batch.
    """
    if size != "paper":
        return []
    more = {"samples": 8, "batches": 4, "steps": 30, "probes": 3}
    by_batch = {"samples": 8, "steps": 12, "probes": 2, "statistics": "batch"}
    return [InitialSpectra("resnet", size, blocks="chosen", **one) for one in (more, by_batch)]


def ladder(size: str) -> list[InitialSpectra]:
    """Declare models between the reduced size and the paper's, three initialisations each.

    Two Lanczos steps give the RMS eigenvalue, and no more is asked.
    """
    if size != "paper":
        return []
    settings = {"samples": 2, "steps": 2, "probes": 2, "blocks": "chosen"}
    return [
        InitialSpectra(model, rung, seed=seed, **settings)
        for seed in range(3)
        for model, shares in setups.LADDER.items()
        for rung in (*shares, "paper")
    ]


def variants(preset: str) -> list[InitialSpectra]:
    """Declare other ways to measure the reduced models, for the full preset: quick spectra.

    Five initialisations at 64 samples; other partitions; the paper's standard deviations as they
    are; BatchNorm by the statistics of the batch (it changes only the ResNet); the Gauss–Newton
    part alone.
    """
    if preset != "full":
        return []
    quick, jobs = {"steps": 6, "probes": 2}, []
    for model in setups.REDUCED:
        jobs += [InitialSpectra(model, **quick, by=by) for by in ("tensor", "layer", "head")]
        jobs.append(InitialSpectra(model, **quick, literal_init=True))
        jobs.append(InitialSpectra(model, **quick, statistics="batch"))
        jobs.append(InitialSpectra(model, **quick, matrix="ggn"))
    for model in ("vgg", "resnet", "vit", "gpt"):  # thousands of blocks: one probe, no λ_max
        jobs.append(InitialSpectra(model, steps=2, probes=1, by="neuron"))
    many = [(model, seed) for seed in range(5) for model in setups.REDUCED]
    return jobs + [InitialSpectra(model, samples=64, seed=seed, **quick) for model, seed in many]


def by_way(measured: Sequence[Spectra]) -> dict[str, list[Spectra]]:
    """Group spectra of `variants` by the way in which they were measured, in words."""
    words = {
        ("samples", 8): "{} samples, five seeds",
        ("by", "tensor"): "blocks by {}",
        ("literal_init", False): "the paper's standard deviations",
        ("statistics", "running"): "BatchNorm by the batch",
        ("matrix", "hessian"): "Gauss–Newton part alone",
    }
    groups: dict[str, list[Spectra]] = {}
    for one in measured:
        known = {key: one.meta.get(key, usual) for key, usual in words}
        changed = (text.format(known[key]) for (key, u), text in words.items() if known[key] != u)
        groups.setdefault(next(changed, "the same, quickly"), []).append(one)
    return groups


def scales(measured: Sequence[Spectra]) -> pd.DataFrame:
    """Scale of every block of some models.

    Columns: model, number (position of the block), block, largest, rms, trace (|tr H|/size).
    """
    parts = []
    for one in measured:
        trace = np.abs(np.nanmean(one.moment(1), 1))
        about = {"model": one.meta["title"], "number": range(len(one.names)), "block": one.names}
        numbers = {"largest": one.largest, "rms": rms(one), "trace": trace}
        parts.append(pd.DataFrame(about | numbers))
    return pd.concat(parts, ignore_index=True)


def sweep_of_samples(sweep: str, sweep_samples: list[int], **settings: Any) -> list[InitialSpectra]:
    """Declare spectra of some models at several numbers of samples: seed 0, two probes."""
    chosen = {"seed": 0, "probes": 2, "blocks": "all"}
    return [
        declare(InitialSpectra, settings, model=name, samples=count, **chosen)
        for name in setups.names(sweep)
        for count in sweep_samples
    ]


def over_seeds(
    measured: Sequence[Spectra], statistic: Callable[[Spectra], ValueWithError]
) -> dict[str, ValueWithError]:
    """Average a statistic over the seeds of each model (``meta["title"]``)."""
    estimates: dict[str, list[ValueWithError]] = {}
    for one in measured:
        estimates.setdefault(one.meta["title"], []).append(statistic(one))
    return {title: combine(several) for title, several in estimates.items()}


def by_measure(measured: Sequence[Spectra]) -> pd.DataFrame:
    """Heterogeneity of some models under every measure, averaged over seeds.

    Beside those of `heterogeneity`, the paper's kind of sum with each block's spectrum divided by
    its largest eigenvalue, which leaves the shapes to be compared. Columns: measure, model, family,
    unit, value, standard_error.
    """
    tables = []
    for one in measured:
        shapes, table = scaled(one, 1 / one.largest), heterogeneity(one)
        table.loc[SHAPES] = (*js0(shapes, measure="sum", axis="raw"), "1")
        about = {"model": one.meta["title"], "family": one.meta["family"]}
        tables.append(table.rename_axis("measure").reset_index().assign(**about))
    return combined(pd.concat(tables), ["measure", "model", "family", "unit"], "value")


def combined(table: pd.DataFrame, keys: list[str], number: str) -> pd.DataFrame:
    """`combine` a number and its ``standard_error`` over the rows that have the same keys."""
    columns = [number, "standard_error"]
    groups = table.groupby(keys, sort=False)[columns]
    rows = [(*key, *combine(part.to_numpy())) for key, part in groups]
    return pd.DataFrame(rows, columns=keys + columns)


def least_over_largest(table: pd.DataFrame, measure: str) -> ValueWithError:
    """Least of the Transformers over the largest of the CNNs in a table of `by_measure`."""
    part = table[table["measure"] == measure]
    low = part[part["family"] == "Transformer"].nsmallest(1, "value").iloc[0]
    high = part[part["family"] == "CNN"].nlargest(1, "value").iloc[0]
    return ratio(*(ValueWithError(*one[["value", "standard_error"]]) for one in (low, high)))
