"""Numbers with their standard errors: jackknife, bootstrap, thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd  # slow to import

WORDS = {True: "holds", False: "fails", None: "undecided"}


class ValueWithError(NamedTuple):
    """A number and its standard error over probes (nan with a single probe)."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return with_error(*self)


def with_error(value: float, error: float) -> str:
    """Write a number to the second digit of its error, as in 34 ± 17 or 0.394 ± 0.061."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    error = float(f"{error:.1e}")
    decimals = 1 - math.floor(math.log10(error))
    if decimals > 7:
        return f"{value:.3g} ± {error:.1e}"
    return f"{value:.{max(decimals, 0)}f} ± {error:.{max(decimals, 0)}f}"


def jackknife(
    statistic: Callable[[Sequence[int]], float], probes: int, fewest: int | None = None
) -> ValueWithError:
    """Value of a statistic of all probes and its leave-one-out standard error.

    ``statistic`` takes the probes to keep, out of ``range(probes)``; it may return an array. Where
    blocks have different numbers of probes, each is left out of all blocks that have it. A block
    with n of them then counts as if its variance were s²/(n − 1) instead of s²/n, at most: the
    error is a little too large rather than too small. ``fewest`` is the least number that a block
    has: with one there is no error.
    """
    value = statistic(range(probes))
    if min(probes, fewest or probes) < 2:
        return ValueWithError(value, value * math.nan)
    left = np.array([statistic([k for k in range(probes) if k != out]) for out in range(probes)])
    variance = (probes - 1) / probes * ((left - left.mean(0)) ** 2).sum(0)
    return ValueWithError(value, variance**0.5)


def combine(estimates: Sequence[ValueWithError]) -> ValueWithError:
    """Mean of independent estimates; its error joins theirs with the spread between them."""
    values, errors = np.array(estimates).T
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    error = np.hypot(spread, np.sqrt((errors**2).mean())) / len(values) ** 0.5
    return ValueWithError(float(values.mean()), float(error))


def ratio(top: ValueWithError, bottom: ValueWithError) -> ValueWithError:
    """Quotient of two independent estimates; its error is of first order in theirs."""
    value = top.mean / bottom.mean
    relative = np.hypot(top.standard_error / top.mean, bottom.standard_error / bottom.mean)
    return ValueWithError(value, abs(value) * relative)


def bootstrap(
    table: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    *,
    group: str,
    draws: int = 400,
    seed: int = 0,
) -> ValueWithError:
    """Value of a statistic of a table, and its standard error over groups of rows.

    Groups, by the column ``group``, are drawn with replacement, each with all of its
    rows: rows that share a group (draws on the same eigenvalues) are not independent, and
    resampling rows would make the error too small. It is nan with a single group, or where the
    statistic is not finite in a draw.
    """
    from scipy.stats import bootstrap as resample  # slow to import

    rows = list(table.groupby(group, sort=False).indices.values())
    value = float(statistic(table))
    if len(rows) < 2:
        return ValueWithError(value, float("nan"))
    with np.errstate(invalid="ignore"):  # no error then, see above
        found = resample(
            (np.arange(len(rows)),),
            lambda groups: statistic(table.iloc[np.concatenate([rows[i] for i in groups])]),
            **{"n_resamples": draws, "vectorized": False, "method": "percentile", "rng": seed},
        )
    return ValueWithError(value, float(found.standard_error))


@dataclass(frozen=True)
class Criterion:
    """One number that a claim stands on."""

    text: str  #: what the number is
    value: float
    error: float  #: its standard error; 0 for an exact count
    threshold: float
    above: bool = True  #: whether the claim needs the number above the threshold, or below

    @property
    def holds(self) -> bool | None:
        """True, False, or None where two standard errors do not decide, or nothing was measured."""
        margin = (self.value - self.threshold) * (1 if self.above else -1)
        if not math.isfinite(margin) or not math.isfinite(self.error):
            return None
        return None if abs(margin) < 2 * self.error else bool(margin >= 0)

    def __str__(self) -> str:
        sign = "≥" if self.above else "≤"
        needed = f"{sign} {self.threshold:.3g}: {WORDS[self.holds]}"
        return f"{self.text}: {with_error(self.value, self.error)} ({needed})"
