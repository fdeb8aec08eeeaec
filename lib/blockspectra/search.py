"""Learning-rate searches of equal size, wide enough that the best rate is never at their edge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from blockspectra import datasets
from blockspectra.distance import Estimate
from blockspectra.problem import cross_entropy
from blockspectra.results import Store
from blockspectra.setups import setup
from blockspectra.training import OPTIMIZERS, train

#: (optimizer, rates, seeds) → one row a run and step with at least optimizer, rate, seed and score:
#: what the search makes small, repeated in every row of a run, ``inf`` where it has diverged
Runs = Callable[[str, Sequence[float], Sequence[int]], pd.DataFrame]


def rate_of(exponent: int) -> float:
    """Return the grid's rate, half a decade a step: 10^(exponent/2)."""
    return float(f"{10 ** (exponent / 2):.3g}")


def search(
    runs: Runs,
    grids: Mapping[str, range],
    *,
    searched: Sequence[int],
    fresh: Sequence[int],
    most: int = 15,
) -> pd.DataFrame:
    """Search the best rate of each optimizer, then run it anew on seeds that took no part.

    A grid whose best rate is at its edge grows there by one rate until it is not; afterwards the
    smaller grids grow on alternate sides to the size of the largest, so that no optimizer had more
    tries. Selection on the seeds that are reported would favour the optimizer whose runs vary more:
    so the best rates are run again.

    Parameters
    ----------
    runs : callable
        See `Runs`.
    grids : mapping
        Optimizer → exponents of `rate_of` to begin with.
    searched, fresh : sequence of int
        Seeds of the search, and of the runs at the best rate.
    most : int
        Rates at which a grid stops growing.

    Returns
    -------
    DataFrame
        All runs; column ``part`` is ``search`` or ``best``.

    Raises
    ------
    ValueError
        If seeds are in both lists, or a grid has grown to ``most`` rates with the best at its edge.
    """
    if set(searched) & set(fresh) or not searched or not fresh:
        raise ValueError("Give seeds for the search, and others for the runs at the best rate.")
    tried: dict[str, dict[int, pd.DataFrame]] = {}
    for name, grid in grids.items():
        first = runs(name, [rate_of(e) for e in grid], searched)
        tried[name] = {e: first[first["rate"] == rate_of(e)] for e in grid}
        while (edge := _beyond(tried[name])) is not None:
            if len(tried[name]) >= most:
                raise ValueError(
                    f"The best of {most} rates of {name} is still at the edge of its grid, "
                    f"{rate_of(edge):g} would come next: does the model train at all?"
                )
            tried[name][edge] = runs(name, [rate_of(edge)], searched)
    size = max(map(len, tried.values()))
    for name, found in tried.items():
        while len(found) < size:
            low, high = min(found), max(found)
            best = _best(found)
            edge = high + 1 if high - best <= best - low else low - 1
            found[edge] = runs(name, [rate_of(edge)], searched)
    parts = []
    for name, found in tried.items():
        parts += [found[exponent].assign(part="search") for exponent in sorted(found)]
        parts.append(runs(name, [rate_of(_best(found))], fresh).assign(part="best"))
    return pd.concat(parts, ignore_index=True)


def _best(found: Mapping[int, pd.DataFrame]) -> int:
    return min(found, key=lambda exponent: found[exponent].groupby("seed")["score"].first().mean())


def _beyond(found: Mapping[int, pd.DataFrame]) -> int | None:
    """Return the exponent that a grid lacks: next to the best, where that is at an edge."""
    best = _best(found)
    return {min(found): best - 1, max(found): best + 1}.get(best)


def grids_table(table: pd.DataFrame) -> pd.DataFrame:
    """Say what was searched: an optimizer's rates, the best, and whether it is interior."""
    rows = []
    searched = table[table["part"] == "search"]
    for name, part in searched.groupby("optimizer", sort=False):
        score = part.groupby(["rate", "seed"])["score"].first().groupby("rate").mean()
        best = score.idxmin()
        interior = bool(score.index.min() < best < score.index.max())
        rows.append([name, len(score), score.index.min(), best, score.index.max(), interior])
    columns = ["optimizer", "rates", "lowest", "best", "highest", "interior"]
    return pd.DataFrame(rows, columns=columns)


def gap(table: pd.DataFrame, slow: str = "momentum", fast: str = "adamw") -> Estimate:
    """Share of AdamW's progress that SGD lacks after as many steps, each at its best rate.

    ``(L_SGD − L_AdamW) / (L_first − L_AdamW)`` of the scores on the fresh seeds, pair by pair: 0
    where both end alike, 1 where SGD has not moved, negative where it is ahead. Having no unit, it
    can be compared between tasks. A run that has diverged has made no progress.

    Parameters
    ----------
    table : DataFrame
        Of `search`; scores are losses.
    slow, fast : str
        The optimizers compared.

    Returns
    -------
    Estimate
        Mean over the fresh seeds, and its standard error (nan with a single one).
    """
    each = gap_per_seed(table, slow, fast)
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return Estimate(float(each.mean()), float(error))


def gap_per_seed(table: pd.DataFrame, slow: str = "momentum", fast: str = "adamw") -> pd.Series:
    """`gap` of each fresh seed, indexed by it."""
    runs = table[table["part"] == "best"]
    shape = {"index": "seed", "columns": "optimizer", "aggfunc": "first"}
    first = runs.pivot_table(values="loss", **shape)[fast]
    score = runs.pivot_table(values="score", **shape)
    score = score.where(np.isfinite(score), first, axis=0)
    return (score[slow] - score[fast]) / (first - score[fast])


@dataclass(frozen=True)
class Contest:
    """SGD with momentum against AdamW on one model of the paper, each at the best of a search.

    ``samples`` training sequences or images, batches of ``batch``, ``steps`` steps; seeds draw
    initialisation, data and order. The score of a run is its mean loss over the last tenth.
    """

    model: str
    size: str = "small"
    samples: int = 2000
    batch: int = 16
    steps: int = 200
    seeds: int = 3
    rates: int = 7
    windows: int = 50
    device: str = "cpu"

    @property
    def title(self) -> str:
        """The model's name."""
        return self.model

    @property
    def cost(self) -> int:
        """Order of cost: steps, by how long they take."""
        order = ("vgg", "mixer", "vit", "gpt", "bert", "resnet")
        return self.samples * self.steps * (1 + order.index(self.model))

    def result(self, store: Store) -> pd.DataFrame:
        """Return all runs: optimizer, rate, seed, part, step, loss, score; one row a window."""
        about = asdict(self)

        def compute() -> pd.DataFrame:
            kept = store.part("runs")

            def runs(optimizer, rates, seeds):
                return pd.concat(
                    [self.run(kept, optimizer, r, s) for r in rates for s in seeds],
                    ignore_index=True,
                )

            middle = {"momentum": -3, "adamw": -5}  # 0.03 and 0.003
            half = self.rates // 2
            grids = {name: range(e - half, e - half + self.rates) for name, e in middle.items()}
            return search(runs, grids, searched=[0], fresh=range(1, self.seeds + 1))

        return store.get(f"contest-{self.model}", about, compute)

    def run(self, store: Store, optimizer: str, rate: float, seed: int) -> pd.DataFrame:
        """Train one model once; kept as soon as it is done."""
        about = asdict(self) | {"optimizer": optimizer, "rate": rate, "seed": seed}

        def compute() -> pd.DataFrame:
            made = setup(self.model, self.size, samples=self.samples, seed=seed, device=self.device)
            stream = datasets.stream(made.data, self.batch, seed, device=self.device)
            losses = train(
                [made.problem.model],
                cross_entropy,
                [stream],
                OPTIMIZERS[optimizer],
                [rate],
                steps=self.steps,
            )[0]
            curve = windowed(losses, self.windows)
            return curve.assign(optimizer=optimizer, rate=rate, seed=seed, score=last(losses))

        return store.get(f"run-{self.model}", about, compute)


def last(losses: np.ndarray) -> float:
    """Mean of the last tenth of a run's losses; ``inf`` if it has diverged."""
    return float(losses[-max(1, len(losses) // 10) :].mean())


def windowed(losses: np.ndarray, windows: int) -> pd.DataFrame:
    """Means of a run's losses over windows of steps: columns step (the last), loss."""
    parts = np.array_split(np.arange(len(losses)), min(windows, len(losses)))
    rows = [(int(part[-1]) + 1, float(losses[part].mean())) for part in parts]
    return pd.DataFrame(rows, columns=["step", "loss"])
