"""SGD, Adam, or no advice: what JS⁰ is worth as a predictor, measured on this project's own models.

The paper's promise is that SGD falls behind Adam where JS⁰ at initialisation is large. The rule
here takes it at its word: above some JS⁰ SGD is said to fall behind. Where the threshold lies, how
often the rule is right about a model that it has not seen, and whether that is worth saying, all
come from the table of reference models; other numbers in it would make it speak, or fall silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from blockspectra.diagnosis.references import Point, points
from blockspectra.statistics import Criterion, Estimate, rank_correlation

SGD, ADAM, SILENT = "SGD will do", "use Adam", "cannot tell"
#: chapter 06's: SGD lacks at most, or at least, this share of AdamW's progress
ON_PAR, CLEARLY_WORSE = 0.05, 0.10
BEHIND = (ON_PAR + CLEARLY_WORSE) / 2  # nearer to the one or to the other
LEVEL = 0.05  # one-sided: how often guessing may be right as often as the rule
PAPER = (
    "The paper's claim: SGD falls behind Adam on models whose JS⁰ at initialisation is large (its "
    "Table 1 and Figure 7, on models a hundred times larger)."
)


@dataclass(frozen=True)
class Advice:
    """What to train with, and what that rests on.

    Attributes
    ----------
    word : str
        ``SGD will do``, ``use Adam`` or ``cannot tell``.
    reasons : tuple of str
        Sentences: why it says so, or why it is silent.
    evidence : tuple of str
        Sentences: the paper's claim, and what was measured of it here.
    hits, models, needed : int
        Reference models that the rule got right without having seen them, out of how many, and how
        many it must to beat guessing (more than there are where no number would).
    threshold : float
        JS⁰, in nats, above which the rule says that SGD falls behind.
    """

    word: str
    reasons: tuple[str, ...]
    evidence: tuple[str, ...]
    hits: int
    models: int
    needed: int
    threshold: float


def advise(js0: Estimate, table: pd.DataFrame, obstacles: Sequence[str] = ()) -> Advice:
    """Say what JS⁰ of a model says about SGD and Adam.

    Parameters
    ----------
    js0 : Estimate
        Of the model, in nats, on the signed-log axis.
    table : DataFrame
        Of `references`: at least three models with JS⁰ and gap.
    obstacles : sequence of str
        Reasons why this JS⁰ cannot be compared with theirs; with one, there is no advice.

    Returns
    -------
    Advice
        It speaks only if the rule predicts reference models left out better than guessing, by two
        standard errors of the measurements, and JS⁰ is clear of the threshold by two of its own.
    """
    known = points(table)
    values, gaps = ([getattr(p, key) for p in known] for key in ("js0", "gap"))
    behind = np.array([g.mean for g in gaps]) > BEHIND
    hits, noise = hit_rate(values, gaps)
    needed = hits_needed(behind)
    rule = Criterion("hit rate", hits / len(known), noise, needed / len(known))
    limit = threshold([v.mean for v in values], behind)
    side = Criterion("JS⁰", *js0, limit)
    often = max(behind.sum(), (~behind).sum())
    rho = rank_correlation(values, gaps)
    evidence = (
        PAPER,
        f"Measured here: over {len(known)} reduced models the rank correlation of JS⁰ with the "
        f"share of AdamW's progress that SGD lacks is {rho.value:.2f} ± {rho.error:.2f} (the "
        f"paper's claim needs it near 1).",
        f"Hit rate: asked about a model that it has not seen, the rule 'SGD falls behind above a "
        f"JS⁰ of x' was right for {hits} of {len(known)} models (± {noise * len(known):.1f} from "
        f"the errors of the measurements); the more frequent answer is right for {often} of "
        f"{len(known)}"
        + (
            f", and {needed} would be needed to beat guessing."
            if needed <= len(known)
            else ", and so few models cannot beat guessing."
        ),
    )
    reasons = list(obstacles)
    if rule.holds is not True:
        reasons.append(_weak(known, behind, rule))
    elif side.holds is None:
        reasons.append(
            f"JS⁰ = {js0.mean:.2g} ± {js0.standard_error:.1g} is within two standard errors of the "
            f"threshold, {limit:.2g} nats: more probes would tell."
        )
    word = SILENT
    if not reasons:
        word = ADAM if side.holds else SGD
        reasons.append(
            f"JS⁰ = {js0.mean:.2g} ± {js0.standard_error:.1g} lies "
            f"{'above' if side.holds else 'below'} {limit:.2g} nats, where among the reference "
            f"models SGD {'fell behind' if side.holds else 'kept up'}."
        )
    return Advice(word, tuple(reasons), evidence, hits, len(known), needed, limit)


def threshold(values: Sequence[float], behind: Sequence[bool]) -> float:
    """JS⁰ above which "SGD falls behind" is right most often; of equally good ones the clearest.

    Parameters
    ----------
    values : sequence of float
        JS⁰ of each model, positive.
    behind : sequence of bool
        Whether SGD fell behind on it.

    Returns
    -------
    float
        The middle (on a logarithmic axis) between two of the values, the farthest apart of those
        that are right equally often; 0 or inf where always saying the same is better than that.
    """
    order = np.argsort(values)
    levels, labels = np.log(np.asarray(values, dtype=float)[order]), np.asarray(behind)[order]
    cuts = [-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf]
    room = [0.0, *np.diff(levels), 0.0]
    right = [((levels > cut) == labels).sum() for cut in cuts]
    return float(np.exp(max(zip(right, room, cuts, strict=True))[2]))


def hit_rate(
    values: Sequence[Estimate], gaps: Sequence[Estimate], *, draws: int = 1000, seed: int = 0
) -> tuple[int, float]:
    """Count the models that the rule gets right when its threshold comes from all others.

    Parameters
    ----------
    values, gaps : sequence of Estimate
        JS⁰ and gap of each model.
    draws, seed : int
        Of the bootstrap: every number drawn from a normal of its mean and standard error.

    Returns
    -------
    int, float
        Hits, and the standard deviation of the hit *rate* under the errors of the measurements.
    """
    pairs = np.nan_to_num(np.array([values, gaps], dtype=float))  # (2, model, mean and error)
    rng = np.random.Generator(np.random.PCG64(seed))
    noisy = rng.normal(pairs[..., 0], pairs[..., 1], (draws, *pairs.shape[:2]))
    least = pairs[0, :, 0].min() / 100  # a draw below zero is no JS⁰
    found = [_left_out(x.clip(least), y > BEHIND) for x, y in noisy]
    hits = _left_out(pairs[0, :, 0], pairs[1, :, 0] > BEHIND)
    return hits, float(np.std(found) / len(values))


def hits_needed(behind: Sequence[bool]) -> int:
    """Fewest hits that always guessing the more frequent answer reaches in at most 1 of 20 cases.

    One more than there are models if not even all would do.
    """
    from scipy.stats import binom  # slow to import

    share = max(np.mean(behind), 1 - np.mean(behind))
    return int(binom.isf(LEVEL, len(behind), share)) + 1


def _left_out(values: np.ndarray, behind: np.ndarray) -> int:
    others = ~np.eye(len(values), dtype=bool)
    return sum(
        bool((values[i] > threshold(values[rest], behind[rest])) == behind[i])
        for i, rest in enumerate(others)
    )


def _weak(known: Sequence[Point], behind: np.ndarray, rule: Criterion) -> str:
    """Why the evidence does not allow advice."""
    names = [p.model for p, lags in zip(known, behind, strict=True) if lags]
    largest = max(known, key=lambda p: p.js0.mean).model
    doubt = "is within the errors of" if rule.holds is None else "is below"
    return (
        f"The evidence is weak: the rule's hit rate, {rule.value:.0%} ± {rule.error:.0%}, {doubt} "
        f"the {rule.threshold:.0%} that it would need to beat guessing. SGD fell behind on "
        f"{', '.join(names) or 'no model'}; the largest JS⁰ is that of {largest}."
    )
