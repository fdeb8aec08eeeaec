"""Uncertainty of any statistic of draws that come in groups."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from blockspectra.distance import Estimate


def bootstrap(
    table: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    *,
    group: str,
    draws: int = 400,
    seed: int = 0,
) -> Estimate:
    """Value of a statistic of a table, and its standard error over groups of rows.

    Groups are drawn with replacement, each with all of its rows: rows that share a group (draws on
    the same eigenvalues) are not independent, and resampling rows would make the error too small.

    Parameters
    ----------
    table : DataFrame
    statistic : callable, (DataFrame) → float
        Of all rows.
    group : str
        The column that says which group a row is in.
    draws, seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        Its error is nan with a single group, or where the statistic is not finite in a draw.
    """
    rows = list(table.groupby(group, sort=False).indices.values())
    value = float(statistic(table))
    if len(rows) < 2:
        return Estimate(value, float("nan"))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        found.append(statistic(table.iloc[chosen]))
    finite = np.isfinite(found).all()
    return Estimate(value, float(np.std(found, ddof=1)) if finite else float("nan"))
