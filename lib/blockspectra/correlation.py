"""Rank correlation of two measured numbers over a handful of models, with its uncertainty."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from blockspectra.distance import Estimate


class RankCorrelation(NamedTuple):
    """Spearman's ρ and how sure it is; all nan where one of the numbers does not vary."""

    value: float
    noise: float  #: standard deviation under the errors of the measurements alone
    error: float  #: the same when the models are drawn anew too: would other models agree?
    low: float  #: 90 % interval of the second kind
    high: float


def rank_correlation(
    x: Sequence[Estimate], y: Sequence[Estimate], *, draws: int = 4000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of estimates, with bootstrap errors.

    Two questions are kept apart. Is the order of *these* models known? Each number is drawn from a
    normal of its mean and standard error (nan counts as 0). Would *other* models show it? The
    models are drawn with replacement too; draws in which a quantity does not vary are left out.

    Parameters
    ----------
    x, y : sequence of Estimate
        One a model, three or more.
    draws, seed : int
        Of the bootstrap.
    """
    if not len(x) == len(y) >= 3:
        raise ValueError(f"Give both numbers of three or more models, not {len(x)} and {len(y)}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    pairs = np.nan_to_num(np.array([x, y], dtype=float))  # (2, model, mean and error)
    noisy = rng.normal(pairs[..., 0], pairs[..., 1], (draws, *pairs.shape[:2]))
    models = rng.integers(0, len(x), (draws, 1, len(x)))
    drawn = _spearman(np.take_along_axis(noisy, models, axis=2))
    drawn = drawn[np.isfinite(drawn)]
    value = float(_spearman(pairs[None, :, :, 0])[0])
    if np.isnan(value) or not len(drawn):
        return RankCorrelation(*[float("nan")] * 5)
    low, high = np.quantile(drawn, [0.05, 0.95])
    noise = np.nanstd(_spearman(noisy))
    return RankCorrelation(value, *map(float, (noise, drawn.std(), low, high)))


def critical_value(models: int, level: float = 0.05) -> float:
    """Smallest ρ that unrelated numbers reach in at most this share of all orders, one-sided.

    Parameters
    ----------
    models : int
        From 3 to 8: all orders are enumerated.
    level : float
    """
    if not 3 <= models <= 8:
        raise ValueError(f"Give 3 to 8 models, not {models}: all orders are enumerated.")
    orders = np.array(list(permutations(range(models))))
    ranks = np.stack([np.broadcast_to(np.arange(models), orders.shape), orders], axis=1)
    values = _spearman(ranks).round(9)
    possible = [v for v in np.unique(values) if (values >= v).mean() <= level]
    return float(min(possible, default=np.inf))


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """ρ of each draw of (draw, 2, model); nan where one of the two does not vary."""
    ranks = rankdata(pairs, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    length = (ranks**2).sum(-1).prod(-1) ** 0.5
    return ranks.prod(1).sum(-1) / np.where(length > 0, length, np.nan)
