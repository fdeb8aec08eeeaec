"""Learning-rate searches of equal size, wide enough that the best rate is never at their edge."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from blockspectra.statistics import ValueWithError

#: (optimizer, rates, seeds) → one row a run and step with at least optimizer, rate, seed and score:
#: what the search makes small, repeated in every row of a run, ``inf`` where it has diverged
Runs = Callable[[str, Sequence[float], Sequence[int]], pd.DataFrame]


def rate_of(exponent: float) -> float:
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
    refined: bool = False,
) -> pd.DataFrame:
    """Search the best rate of each optimizer, then run it on seeds that took no part.

    All rates of a grid (exponents of `rate_of`) are run on the seeds ``searched``, the two best
    also on those ``repeated``, since a large rate may do well once and diverge the next time; the
    better mean wins. A grid whose best rate is at its edge grows there by one rate, up to ``most``,
    and a smaller grid than another optimizer's grows on alternate sides, until all are of one size
    with the best inside. Selection on the seeds that are reported would favour the optimizer whose
    runs vary more: so the best rates are run again, on the seeds ``fresh``.

    If ``refined``, the rates a quarter of a decade below and above the best are tried too, and the
    best by the mean of its runs is run on ``repeated`` until the best has been: with two rates
    alone, two lucky ones can hide a third that is better.

    Returns all runs, with a column ``part``: ``search`` or ``best``.
    """
    seeds = [*searched, *repeated, *fresh]
    if len(set(seeds)) < len(seeds) or not searched or not fresh:
        raise ValueError("Give seeds for the search, and others for the runs at the best rate.")
    tried = {
        name: _Grid(runs, name, grid, searched, repeated, refined) for name, grid in grids.items()
    }
    while True:
        size = max(len(grid.exponents) for grid in tried.values())
        wanted = {name: grid.next_exponent(size) for name, grid in tried.items()}
        if all(exponent is None for exponent in wanted.values()):
            finer = {name: grid.finer() if refined else [] for name, grid in tried.items()}
            if not any(finer.values()):
                break
            for name, exponents in finer.items():
                tried[name].run(exponents, searched)
        for name, exponent in wanted.items():
            if exponent is None:
                continue
            if len(tried[name].exponents) >= most:
                raise ValueError(
                    f"The best of {most} rates of {name} is still at the edge of its grid, "
                    f"{rate_of(exponent):g} would come next: does the model train at all?"
                )
            tried[name].run([exponent], searched)
    parts = [grid.table().assign(part="search") for grid in tried.values()]
    for name, grid in tried.items():
        parts.append(runs(name, [rate_of(grid.best())], fresh).assign(part="best"))
    return pd.concat(parts, ignore_index=True)


class _Grid:
    """Rates of one optimizer that have been run, on whichever seeds."""

    def __init__(self, runs: Runs, name: str, grid: range, searched, repeated, refined: bool):
        self.runs, self.name, self.searched, self.repeated = runs, name, searched, repeated
        self.refined = refined
        self.kept: dict[tuple[float, int], pd.DataFrame] = {}  # (exponent, seed) → one run
        self.run(grid, searched)

    def run(self, exponents: Sequence[float], seeds: Sequence[int]) -> None:
        """Run some rates on some seeds, all at once."""
        if not exponents:
            return
        table = self.runs(self.name, [rate_of(e) for e in exponents], seeds)
        for exponent in exponents:
            for seed in seeds:
                one = (table["rate"] == rate_of(exponent)) & (table["seed"] == seed)
                self.kept[exponent, seed] = table[one]

    @property
    def exponents(self) -> list[float]:
        """All that have been run, ascending."""
        return sorted({exponent for exponent, _ in self.kept})

    def score(self, exponent: float, seeds: Sequence[int]) -> float:
        """Mean score of a rate over some seeds."""
        return float(np.mean([self.kept[exponent, s]["score"].iloc[0] for s in seeds]))

    def best(self) -> float:
        """Exponent of the best rate: of the two best on the first seeds, by all seeds.

        In a refined search, of all rates by the runs they have, once that one has all seeds.
        """
        if self.refined:
            return self._leader()
        first, *others = sorted(self.exponents, key=lambda e: self.score(e, self.searched))
        if not self.repeated:
            return first
        two = [first, *others[:1]]
        if missing := [e for e in two if (e, self.repeated[0]) not in self.kept]:
            self.run(missing, self.repeated)
        return min(two, key=lambda e: self.score(e, [*self.searched, *self.repeated]))

    def _leader(self) -> float:
        every = [*self.searched, *self.repeated]
        while True:
            seeds = {e: [s for s in every if (e, s) in self.kept] for e in self.exponents}
            leader = min(self.exponents, key=lambda e: self.score(e, seeds[e]))
            if len(seeds[leader]) == len(every):
                return leader
            self.run([leader], [s for s in every if s not in seeds[leader]])

    def finer(self) -> list[float]:
        """Exponents a quarter of a decade from the best that have not been run."""
        best = self.best()
        return [e for e in (best - 0.5, best + 0.5) if e not in self.exponents]

    def next_exponent(self, size: int) -> int | None:
        """Return the exponent to run next, or None if the best is inside a grid of this size.

        It lies beyond the best where that is at an edge, else on the side with fewer neighbours.
        """
        best, low, high = self.best(), self.exponents[0], self.exponents[-1]
        if low < best < high and len(self.exponents) >= size:
            return None
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


def gap(table: pd.DataFrame) -> ValueWithError:
    """Mean of `gap_per_seed`, and its standard error over the fresh seeds (nan with one)."""
    each = gap_per_seed(table).to_numpy()
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return ValueWithError(float(each.mean()), float(error))


def gap_per_seed(table: pd.DataFrame) -> pd.Series:
    """Share of AdamW's progress that SGD with momentum lacks after as many steps, by fresh seed.

    ``(L_SGD − L_AdamW) / (L_first − L_AdamW)`` of the losses that are the scores of `search`, each
    at its best rate: 0 where both end alike, 1 where SGD has not moved, negative where it is ahead.
    Having no unit, it can be compared between tasks; where AdamW makes no progress there is no gap
    (nan).
    """
    ends, first = final_losses(table)
    progress = first - ends["adamw"]
    return (ends["momentum"] - ends["adamw"]) / progress.where(progress > 0)


def final_losses(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return final losses at the best rates, a row a fresh seed and a column an optimizer.

    And by seed the loss that AdamW began with, which also stands for the end of a run that has
    diverged: it has made no progress.
    """
    runs = table[table["part"] == "best"]
    shape = {"index": "seed", "columns": "optimizer", "aggfunc": "first", "sort": False}
    first = runs.pivot_table(values="loss", **shape)["adamw"]
    ends = runs.pivot_table(values="score", **shape)
    return ends.where(np.isfinite(ends), first, axis=0), first


def steps_to(table: pd.DataFrame, runner: str, target: str) -> pd.Series:
    """Count an optimizer's steps to the final loss of another, by fresh seed; ``inf`` if never.

    By the curve of ``runner`` against the score of ``target``, each at its best rate.
    """
    best = table[table["part"] == "best"]
    goal = best[best["optimizer"] == target].groupby("seed")["score"].first()
    runs = best[best["optimizer"] == runner]
    reached = runs[runs["loss"] <= runs["seed"].map(goal)].groupby("seed")["step"].min()
    return reached.reindex(goal.index, fill_value=np.inf)


def last(losses: np.ndarray) -> float:
    """Mean of the last tenth of a run's losses; ``inf`` if it has diverged."""
    return float(losses[-max(1, len(losses) // 10) :].mean())


def windowed(losses: np.ndarray, windows: int) -> pd.DataFrame:
    """Means of a run's losses over windows of steps: columns step (the last), loss."""
    parts = np.array_split(np.arange(len(losses)), min(windows, len(losses)))
    rows = [(int(part[-1]) + 1, float(losses[part].mean())) for part in parts]
    return pd.DataFrame(rows, columns=["step", "loss"])
