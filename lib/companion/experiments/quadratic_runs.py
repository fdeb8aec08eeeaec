"""Runs on the quadratic cases: how many steps GD and Adam need, and what their curves look like."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments.initial_spectra import InitialSpectra
from companion.quadratics.cases import VARIANTS, Blocks, draw, family, fixed, from_spectra
from companion.quadratics.convergence import (
    adam_upper_bound,
    best_step,
    gradient_norms,
    modes,
    steps_to,
)
from companion.quadratics.quadratic import Quadratic, adam, gd, heavy_ball, sign_descent
from companion.rate_search import search
from companion.store import Job, Store, declare

#: exponents of `rate_of` that a search of ``rates`` steps begins with: 0.01 and 0.0003
FIRST = {"adam": -4, "sign": -7}

#: how chapter 10 draws Cases 1 and 2; the other variants of `from_spectra` are compared with it
READING = "shift per block"

Problems = Sequence[tuple[Quadratic, Tensor]]  # with their starts


@dataclass(frozen=True)
class Case:
    """One of the paper's four cases: which eigenvalues its quadratics have.

    Cases 1 and 2 are drawn from ``blocks`` of measured ``spectra`` (``{first}`` is their first
    block), ``variant`` and ``count`` as in `from_spectra`; Cases 3 and 4 are fixed.
    """

    number: int
    quadratics: int
    spectra: InitialSpectra | None = None
    blocks: tuple[str, ...] = ()
    variant: str = "one shift"
    count: int = 30

    @property
    def name(self) -> str:
        """Number, and variant where it is not the first of all."""
        own = "" if self.variant == VARIANTS[0] else f"-{self.variant.replace(' ', '-')}"
        return f"case{self.number}{own}"

    def eigenvalues(self, store: Store) -> list[Blocks]:
        """Draw them, for each quadratic."""
        if self.spectra is None:
            return fixed(self.number, self.quadratics)
        measured = store.get(self.spectra)
        blocks = [block.format(first=measured.names[0]) for block in self.blocks]
        settings = {"samples": self.quadratics, "variant": self.variant, "count": self.count}
        return from_spectra(measured, blocks, **settings)


@dataclass(frozen=True)
class Family:
    """Quadratics of three blocks whose κ and κ_l are chosen separately; fields as in `family`."""

    kappa: float
    block_kappa: float
    quadratics: int

    @property
    def name(self) -> str:
        """Both condition numbers."""
        return f"family-{self.kappa:g}-{self.block_kappa:g}"

    def eigenvalues(self, store: Store) -> list[Blocks]:
        """Return them, the same in every quadratic."""
        return family(self.kappa, self.block_kappa, self.quadratics)


@dataclass(frozen=True)
class QuadraticCounts(Job):
    """Steps in which GD and frozen Adam cut ‖g‖ by 10⁶, on many rotations and starts.

    ``draws`` rotations, each with a Gaussian start of its own, on every quadratic of the case.
    """

    NAME = "quadratic-counts-{case.name}"

    case: Case | Family
    draws: int = 10

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a draw.

        Columns: sample; gd, adam (steps at the constant step that is best for this draw, found by
        the same search), gd_minimax, adam_minimax (steps at 2/(s_max + s_min)), condition (of
        D⁻¹H), kappa (of H), block_kappa (the largest κ_l), bound (r·max κ_l).
        """
        drawn = enumerate(self.case.eigenvalues(store))
        tables = [_counts(*draw(blocks, self.draws, i)).assign(sample=i) for i, blocks in drawn]
        return pd.concat(tables, ignore_index=True)


def _counts(quadratic: Quadratic, start: Tensor) -> pd.DataFrame:
    table = {}
    for name, frozen in (("gd", False), ("adam", True)):
        found = modes(quadratic, start, frozen=frozen)
        table[name] = best_step(found)[1][:, 0]
        table[f"{name}_minimax"] = steps_to(found, found.minimax_step)[:, 0]
    table["condition"] = found.condition
    table["bound"] = adam_upper_bound(quadratic, start).ratio[:, 0] * quadratic.block_kappa.max()
    columns = {name: column.numpy() for name, column in table.items()}
    return pd.DataFrame(columns).assign(
        kappa=quadratic.kappa, block_kappa=float(quadratic.block_kappa.max())
    )


@dataclass(frozen=True)
class QuadraticCurves(Job):
    """‖g‖ against iteration for five methods.

    GD and frozen Adam at the step that is best for each draw, GD with momentum at Polyak's step and
    momentum; Adam with β = 0.9, 0.999 and sign descent at the step that has the smallest median
    ‖g‖ after ``steps`` iterations on the first of the ``chosen`` quadratics. The others are
    reported. The first two methods are linear, so ``far`` iterations need no iterating.
    """

    NAME = "quadratic-curves-{case.name}"

    case: Case
    draws: int = 5
    steps: int = 2000
    far: int = 30_000
    rates: int = 5
    chosen: int = 5

    def compute(self, store: Store) -> pd.DataFrame:
        """Return medians and the 10–90 % band over draws of ‖g‖/‖g⁰‖.

        Columns: optimizer, part (see `search`), rate (the step, where one was searched), score,
        step (of the iteration), low, median, high.
        """
        drawn = enumerate(self.case.eigenvalues(store)[: self.chosen])
        problems = [draw(blocks, self.draws, i) for i, blocks in drawn]
        grids = {name: range(e, e + self.rates) for name, e in FIRST.items()}
        searched = search(partial(self._searched, problems), grids, searched=[0], fresh=[1])
        return pd.concat([searched, *self._known(problems[1:])], ignore_index=True)

    def _searched(
        self, problems: Problems, optimizer: str, rates: Sequence[float], seeds: Sequence[int]
    ) -> pd.DataFrame:
        """Run a method for `search`: seed 0 is the first problem, seed 1 stands for the others."""
        method, tables = {"adam": adam, "sign": sign_descent}[optimizer], []
        at, count = thinned(self.steps), len(rates)
        step = torch.tensor(rates, dtype=torch.float64).repeat_interleave(self.draws)
        for seed in seeds:
            norms = []
            for quadratic, start in problems[:1] if seed == 0 else problems[1:]:
                rotations = tuple(q.repeat(count, 1, 1) for q in quadratic.rotations)
                every = Quadratic(quadratic.blocks, rotations)
                path = method(every, start.repeat(count, 1), self.steps, step=step)
                norms.append(path.gradient_norm[:, at].unflatten(0, (count, -1)))
            for rate, part in zip(rates, _relative(norms), strict=True):
                table = quantiles(part, at)
                score = table["median"].iloc[-1]
                tables.append(table.assign(optimizer=optimizer, rate=rate, seed=seed, score=score))
        return pd.concat(tables, ignore_index=True)

    def _known(self, problems: Problems) -> Iterable[pd.DataFrame]:
        """Curves of the methods whose steps need no search over ‖g‖."""
        near, far = thinned(self.steps), thinned(self.far)
        points = {"gd": far, "momentum": near, "frozen": far}
        norms: dict[str, list[Tensor]] = {name: [] for name in points}
        for quadratic, start in problems:
            for name, frozen in (("gd", False), ("frozen", True)):
                found = modes(quadratic, start, frozen=frozen)
                norms[name].append(gradient_norms(found, best_step(found)[0], far[None]))
            path = gd(quadratic, start, self.steps, **heavy_ball(quadratic))
            norms["momentum"].append(path.gradient_norm[:, near])
        for name, at in points.items():
            yield quantiles(_relative(norms[name]), at).assign(optimizer=name, part="best")


def _relative(norms: Sequence[Tensor]) -> Tensor:
    """‖g‖/‖g⁰‖ over all draws of several problems, (…, draw, point)."""
    return torch.cat([part / part[..., :1] for part in norms], dim=-2)


def thinned(steps: int) -> Tensor:
    """Choose the iterations at which a curve is kept: 0, then evenly spread logarithms."""
    spread = torch.logspace(0, np.log10(steps), 60, dtype=torch.float64).round().long()
    return torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), spread]))


def quantiles(norms: Tensor, at: Tensor) -> pd.DataFrame:
    """Median and 10–90 % band over draws, (draw, point): step, low, median, high."""
    low, median, high = np.quantile(norms.numpy(), [0.1, 0.5, 0.9], axis=0)
    return pd.DataFrame({"step": at.numpy(), "low": low, "median": median, "high": high})


PARTS = ("attn.c_attn.q", "attn.c_attn.v", "mlp.c_proj")  # of a layer of the GPT


def cases(
    transformer: str, layer: int, resnet_blocks: str, quadratics: int, count: int, **settings: Any
) -> dict[tuple[int, str], Case]:
    """Name chapter 10's cases: (number, variant) → case, those with `READING` first."""
    gpt, resnet = (
        declare(InitialSpectra, settings, model=model, seed=0) for model in (transformer, "resnet")
    )
    sources = {
        1: (gpt, ("{first}", *(f"h.{layer}.{part}" for part in PARTS))),
        2: (resnet, tuple(resnet_blocks.split())),
    }
    cases = {
        (number, variant): Case(number, quadratics, *sources[number], variant, count)
        for number in sources
        for variant in VARIANTS
    }
    cases |= {(number, READING): Case(number, quadratics) for number in (3, 4)}
    return dict(sorted(cases.items(), key=lambda item: item[0][1] != READING))


def counts(
    cases: dict[tuple[int, str], Case], draws: int, variant_draws: int
) -> dict[tuple[int, str], QuadraticCounts]:
    """Declare the counts of each case; other readings than `READING` have ``variant_draws``."""
    return {
        key: QuadraticCounts(case, draws if key[1] == READING else variant_draws)
        for key, case in cases.items()
    }


def counted_at(**settings: Any) -> list[QuadraticCounts]:
    """Declare the counts of the four cases alone, in the order of their numbers."""
    counted = declare(counts, settings, cases=declare(cases, settings))
    return [counted[number, READING] for number in (1, 2, 3, 4)]


def curves(cases: dict[tuple[int, str], Case], iterations: int) -> list[QuadraticCurves]:
    """Declare the curves of the four cases, in the order of their numbers."""
    return [QuadraticCurves(cases[n, READING], steps=iterations) for n in (1, 2, 3, 4)]


def jobs(**settings: Any) -> list[Job]:
    """Declare all of chapter 10: the spectra first, which its cases are drawn from."""
    every = declare(cases, settings)
    sources = [case.spectra for case in every.values() if case.spectra is not None]
    counted = declare(counts, settings, cases=every)
    return [*dict.fromkeys(sources), *counted.values(), *curves(every, settings["iterations"])]


def families(
    kappa: list[float], block_kappa: list[float], samples: int, draws: int
) -> list[QuadraticCounts]:
    """Declare chapter 11's counts: each κ with each κ_l."""
    pairs = [(whole, within) for whole in kappa for within in block_kappa]
    return [QuadraticCounts(Family(*pair, samples), draws) for pair in pairs]
