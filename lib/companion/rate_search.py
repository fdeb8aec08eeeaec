"""Learning-rate searches of equal size, wide enough that the best rate is never at their edge."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from blockspectra.statistics import Estimate

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
    repeated: Sequence[int] = (),
    fresh: Sequence[int],
    most: int = 15,
) -> pd.DataFrame:
    """Search the best rate of each optimizer, then run it anew on seeds that took no part.

    All rates of a grid are run on the seeds ``searched``, the two best of them also on those
    ``repeated``, since a large rate may do well once and diverge the next time; the better mean
    wins. A grid whose best rate is at its edge grows there by one rate, and a smaller grid than
    another optimizer's grows on alternate sides, until all are of one size with the best inside.
    Selection on the seeds that are reported would favour the optimizer whose runs vary more: so the
    best rates are run again, on those ``fresh``.

    Parameters
    ----------
    runs : callable
        See `Runs`.
    grids : mapping
        Optimizer → exponents of `rate_of` to begin with, two or more.
    searched, repeated, fresh : sequence of int
        Seeds; no seed in two of them.
    most : int
        Rates at which a grid stops growing.

    Returns
    -------
    DataFrame
        All runs; column ``part`` is ``search`` or ``best``.

    Raises
    ------
    ValueError
        If a seed has two uses, or a grid has grown to ``most`` rates with the best at its edge.
    """
    seeds = [*searched, *repeated, *fresh]
    if len(set(seeds)) < len(seeds) or not searched or not fresh:
        raise ValueError("Give seeds for the search, and others for the runs at the best rate.")
    tried = {name: _Grid(runs, name, grid, searched, repeated) for name, grid in grids.items()}
    while True:
        size = max(grid.size for grid in tried.values())
        edges = {name: edge for name, grid in tried.items() if (edge := grid.beyond()) is not None}
        for name, grid in tried.items():
            if name not in edges and grid.size < size:
                edges[name] = grid.farther()
        if not edges:
            break
        for name, edge in edges.items():
            if tried[name].size >= most:
                raise ValueError(
                    f"The best of {most} rates of {name} is still at the edge of its grid, "
                    f"{rate_of(edge):g} would come next: does the model train at all?"
                )
            tried[name].run([edge], searched)
    parts = [grid.table().assign(part="search") for grid in tried.values()]
    for name, grid in tried.items():
        parts.append(runs(name, [rate_of(grid.best())], fresh).assign(part="best"))
    return pd.concat(parts, ignore_index=True)


class _Grid:
    """Rates of one optimizer that have been run, on whichever seeds."""

    def __init__(self, runs: Runs, name: str, grid: range, searched, repeated):
        self.runs, self.name, self.searched, self.repeated = runs, name, searched, repeated
        self.kept: dict[tuple[int, int], pd.DataFrame] = {}  # (exponent, seed) → one run
        self.run(list(grid), searched)

    def run(self, exponents: list[int], seeds: Sequence[int]) -> None:
        """Run some rates on some seeds, all at once."""
        found = self.runs(self.name, [rate_of(e) for e in exponents], seeds)
        for exponent in exponents:
            for seed in seeds:
                one = (found["rate"] == rate_of(exponent)) & (found["seed"] == seed)
                self.kept[exponent, seed] = found[one]

    @property
    def exponents(self) -> list[int]:
        """All that have been run, ascending."""
        return sorted({exponent for exponent, _ in self.kept})

    @property
    def size(self) -> int:
        """Number of rates."""
        return len(self.exponents)

    def score(self, exponent: int, seeds: Sequence[int]) -> float:
        """Mean score of a rate over some seeds."""
        return float(np.mean([self.kept[exponent, s]["score"].iloc[0] for s in seeds]))

    def best(self) -> int:
        """Exponent of the best rate: of the two best on the first seeds, by all seeds."""
        ranked = sorted(self.exponents, key=lambda e: self.score(e, self.searched))
        if not self.repeated:
            return ranked[0]
        missing = [e for e in ranked[:2] if (e, self.repeated[0]) not in self.kept]
        if missing:
            self.run(missing, self.repeated)
        return min(ranked[:2], key=lambda e: self.score(e, [*self.searched, *self.repeated]))

    def beyond(self) -> int | None:
        """Return the exponent that is lacking: next to the best, where that is at an edge."""
        best, all_run = self.best(), self.exponents
        return {all_run[0]: best - 1, all_run[-1]: best + 1}.get(best)

    def farther(self) -> int:
        """Return the next exponent on the side on which the best has fewer neighbours."""
        best, all_run = self.best(), self.exponents
        low, high = all_run[0], all_run[-1]
        return high + 1 if high - best <= best - low else low - 1

    def table(self) -> pd.DataFrame:
        """All runs, by rate and seed."""
        return pd.concat([self.kept[key] for key in sorted(self.kept)], ignore_index=True)


def grids_table(table: pd.DataFrame) -> pd.DataFrame:
    """Say what was searched: an optimizer's rates, the best, and whether it is interior."""
    rows = []
    for name, part in table.groupby("optimizer", sort=False):
        rates = part.loc[part["part"] == "search", "rate"].unique()
        best = part.loc[part["part"] == "best", "rate"].iloc[0]
        interior = bool(rates.min() < best < rates.max())
        rows.append([name, len(rates), rates.min(), best, rates.max(), interior])
    columns = ["optimizer", "rates", "lowest", "best", "highest", "interior"]
    return pd.DataFrame(rows, columns=columns)


def gap(table: pd.DataFrame, slow: str = "momentum", fast: str = "adamw") -> Estimate:
    """Share of AdamW's progress that SGD lacks after as many steps, each at its best rate.

    ``(L_SGD − L_AdamW) / (L_first − L_AdamW)`` of the scores on the fresh seeds, pair by pair: 0
    where both end alike, 1 where SGD has not moved, negative where it is ahead. Having no unit, it
    can be compared between tasks. A run that has diverged has made no progress; where AdamW makes
    none there is no gap (nan).

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
    each = gap_per_seed(table, slow, fast).to_numpy()
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return Estimate(float(each.mean()), float(error))


def gap_per_seed(table: pd.DataFrame, slow: str = "momentum", fast: str = "adamw") -> pd.Series:
    """`gap` of each fresh seed, indexed by it."""
    runs = table[table["part"] == "best"]
    shape = {"index": "seed", "columns": "optimizer", "aggfunc": "first"}
    first = runs.pivot_table(values="loss", **shape)[fast]
    score = runs.pivot_table(values="score", **shape)
    score = score.where(np.isfinite(score), first, axis=0)
    progress = first - score[fast]
    return (score[slow] - score[fast]) / progress.where(progress > 0)


def last(losses: np.ndarray) -> float:
    """Mean of the last tenth of a run's losses; ``inf`` if it has diverged."""
    return float(losses[-max(1, len(losses) // 10) :].mean())


def windowed(losses: np.ndarray, windows: int) -> pd.DataFrame:
    """Means of a run's losses over windows of steps: columns step (the last), loss."""
    parts = np.array_split(np.arange(len(losses)), min(windows, len(losses)))
    rows = [(int(part[-1]) + 1, float(losses[part].mean())) for part in parts]
    return pd.DataFrame(rows, columns=["step", "loss"])
