"""Runs on the quadratic cases: how many steps GD and Adam need, and what their curves look like."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.quadratics.cases import Blocks, problem
from companion.quadratics.convergence import (
    adam_upper_bound,
    best_step,
    gradient_norms,
    modes,
    steps_to,
)
from companion.quadratics.problem import Quadratic, adam, gd, heavy_ball, sign_descent
from companion.rate_search import search
from companion.store import Store

#: exponents of `rate_of` that a search of ``rates`` steps begins with: 0.01 and 0.0003
FIRST = {"adam": -4, "sign": -7}


@dataclass(frozen=True)
class Counts:
    """Steps in which GD and frozen Adam cut ‖g‖ by 10⁶, on many rotations and starts.

    Fields: a name for the store, the eigenvalues of each sample, and how many rotations, each with
    a Gaussian start of its own, are drawn on every sample.
    """

    name: str
    samples: tuple[Blocks, ...]
    draws: int = 10

    @property
    def title(self) -> str:
        """The case."""
        return self.name

    @property
    def cost(self) -> int:
        """Order of cost: draws times dimension squared."""
        return len(self.samples) * self.draws * sum(map(len, self.samples[0])) ** 2

    def result(self, store: Store) -> pd.DataFrame:
        """Return one row a draw.

        Returns
        -------
        DataFrame
            sample; gd, adam (steps at the constant step that is best for this draw, found by the
            same search), gd_minimax, adam_minimax (steps at 2/(s_max + s_min)), condition (of
            D⁻¹H), kappa (of H), block_kappa (the largest κ_l), bound (r·max κ_l).
        """

        def compute() -> pd.DataFrame:
            return pd.concat(
                [_counts(*drawn).assign(sample=i) for i, drawn in self._problems()],
                ignore_index=True,
            )

        return store.get(f"quadratic-counts-{self.name}", asdict(self), compute)

    def _problems(self) -> Iterable[tuple[int, tuple[Quadratic, Tensor]]]:
        return ((i, problem(blocks, self.draws, i)) for i, blocks in enumerate(self.samples))


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
class Curves:
    """‖g‖ against iteration for five methods.

    GD and frozen Adam at the step that is best for each draw, GD with momentum at Polyak's step and
    momentum; Adam with β = 0.9, 0.999 and sign descent at the step that has the smallest median
    ‖g‖ after ``steps`` iterations on the first sample. The other samples are reported. The first
    two are linear, so their norms ``far`` out are known without iterating.
    """

    name: str
    samples: tuple[Blocks, ...]
    draws: int = 5
    steps: int = 2000
    far: int = 30_000
    rates: int = 5

    @property
    def title(self) -> str:
        """The case."""
        return f"{self.name}, curves"

    @property
    def cost(self) -> int:
        """Order of cost: `Counts` take the same unit."""
        return len(self.samples) * self.draws * self.steps * sum(map(len, self.samples[0]))

    def result(self, store: Store) -> pd.DataFrame:
        """Return medians and the 10–90 % band over draws.

        Returns
        -------
        DataFrame
            optimizer, part (see `search`), rate (the step, where one was searched), score, step (of
            the iteration), low, median, high: of ‖g‖/‖g⁰‖.
        """

        def compute() -> pd.DataFrame:
            grids = {name: range(e, e + self.rates) for name, e in FIRST.items()}
            searched = search(self._searched, grids, searched=[0], fresh=[1])
            return pd.concat([searched, *self._known()], ignore_index=True)

        return store.get(f"quadratic-curves-{self.name}", asdict(self), compute)

    def _searched(
        self, optimizer: str, rates: Sequence[float], seeds: Sequence[int]
    ) -> pd.DataFrame:
        """Run a method for `search`: seed 0 is the first sample, seed 1 stands for the others."""
        method, tables = {"adam": adam, "sign": sign_descent}[optimizer], []
        at = thinned(self.steps)
        for seed in seeds:

            def norms(quadratic: Quadratic, start: Tensor) -> Tensor:
                every = tuple(q.repeat(len(rates), 1, 1) for q in quadratic.rotations)
                step = torch.tensor(rates, dtype=torch.float64).repeat_interleave(len(start))
                path = method(
                    Quadratic(quadratic.blocks, every),
                    start.repeat(len(rates), 1),
                    self.steps,
                    step=step,
                )
                return path.gradient_norm[:, at].unflatten(0, (len(rates), -1))

            chosen = [0] if seed == 0 else range(1, len(self.samples))
            for rate, part in zip(rates, self._over(chosen, norms), strict=True):
                table = quantiles(part, at)
                score = table["median"].iloc[-1]
                tables.append(table.assign(optimizer=optimizer, rate=rate, seed=seed, score=score))
        return pd.concat(tables, ignore_index=True)

    def _known(self) -> Iterable[pd.DataFrame]:
        """Curves of the methods whose steps need no search over ‖g‖."""

        def momentum(quadratic: Quadratic, start: Tensor) -> Tensor:
            path = gd(quadratic, start, self.steps, **heavy_ball(quadratic))
            return path.gradient_norm[None, :, thinned(self.steps)]

        def linear(frozen: bool) -> Callable[[Quadratic, Tensor], Tensor]:
            def norms(quadratic: Quadratic, start: Tensor) -> Tensor:
                found = modes(quadratic, start, frozen=frozen)
                return gradient_norms(found, best_step(found)[0], thinned(self.far)[None])[None]

            return norms

        for name, norms, steps in (
            ("gd", linear(False), self.far),
            ("momentum", momentum, self.steps),
            ("frozen", linear(True), self.far),
        ):
            found = self._over(range(1, len(self.samples)), norms)[0]
            yield quantiles(found, thinned(steps)).assign(optimizer=name, part="best")

    def _over(self, chosen: Iterable[int], norms: Callable[[Quadratic, Tensor], Tensor]) -> Tensor:
        """Relative norms over all draws of some samples, (…, draw, point)."""
        found = [norms(*problem(self.samples[i], self.draws, i)) for i in chosen]
        return torch.cat([part / part[..., :1] for part in found], dim=-2)


def thinned(steps: int, points: int = 60) -> Tensor:
    """Choose the iterations at which a curve is kept: 0, then evenly spread logarithms."""
    spread = torch.logspace(0, np.log10(steps), points, dtype=torch.float64).round().long()
    return torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), spread]))


def quantiles(norms: Tensor, at: Tensor) -> pd.DataFrame:
    """Median and 10–90 % band over draws, (draw, point): step, low, median, high."""
    low, median, high = np.quantile(norms.numpy(), [0.1, 0.5, 0.9], axis=0)
    return pd.DataFrame({"step": at.numpy(), "low": low, "median": median, "high": high})
