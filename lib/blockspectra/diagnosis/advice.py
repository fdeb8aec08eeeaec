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
from blockspectra.statistics import Criterion, ValueWithError, rank_correlation

SGD, ADAM, SILENT = "SGD will do", "use Adam", "cannot tell"
#: chapter 06's: SGD lacks at most, or at least, this share of AdamW's progress
ON_PAR, CLEARLY_WORSE = 0.05, 0.10
BEHIND = (ON_PAR + CLEARLY_WORSE) / 2  # nearer to the one or to the other
DRAWS = 1000  # of the measurements within their errors
LEVEL = 0.05  # one-sided: how often guessing may be right as often as the rule
PAPER = (
    "The paper's claim: SGD falls behind Adam on models whose JS⁰ at initialisation is large (its "
    "Table 1 and Figure 7, on models a hundred times larger)."
)


@dataclass(frozen=True)
class Advice:
    """What to train with, and what that rests on."""

    word: str  #: ``SGD will do``, ``use Adam`` or ``cannot tell``
    reasons: tuple[str, ...]  #: sentences: why it says so, or why it is silent
    evidence: tuple[str, ...]  #: sentences: the paper's claim, and what was measured of it here
    hits: int  #: reference models that the rule got right without having seen them
    models: int  #: out of how many
    needed: int  #: hits that would beat guessing; more than there are models if no number would
    threshold: float  #: JS⁰, in nats, above which the rule says that SGD falls behind


def advise(js0: ValueWithError, table: pd.DataFrame, obstacles: Sequence[str] = ()) -> Advice:
    """Say what JS⁰ of a model, in nats on the signed-log axis, says about SGD and Adam.

    It speaks only if the rule predicts reference models left out (``table``, of `references`, three
    or more) better than guessing, by two standard errors of the measurements, and JS⁰ is clear of
    the threshold by two of its own. ``obstacles`` are sentences about why this JS⁰ cannot be
    compared with theirs; with one, there is no advice.
    """
    known = points(table)
    values, gaps = [p.js0 for p in known], [p.gap for p in known]
    behind = np.array([gap.mean > BEHIND for gap in gaps])
    hits, noise = hit_rate(values, gaps)
    needed = hits_needed(behind)
    rule = Criterion("hit rate", hits / len(known), noise, needed / len(known))
    limit = threshold([v.mean for v in values], behind)
    side = Criterion("JS⁰", *js0, limit)
    measured = f"JS⁰ = {js0}"
    word, reasons = SILENT, list(obstacles)
    if rule.holds is not True:
        reasons.append(_weak(known, behind, rule))
    elif side.holds is None:
        reasons.append(
            f"{measured} is within two standard errors of the threshold, {limit:.2g} nats: more "
            f"probes would tell."
        )
    elif not obstacles:
        word = ADAM if side.holds else SGD
        where = "above" if side.holds else "below"
        reasons.append(
            f"{measured} lies {where} {limit:.2g} nats, where among the reference models SGD "
            f"{'fell behind' if side.holds else 'kept up'}."
        )
    often = max(behind.sum(), (~behind).sum())
    rho = rank_correlation(values, gaps)
    beat = f"{needed} would be needed to" if needed <= len(known) else "so few models cannot"
    evidence = (
        PAPER,
        f"Measured here: over {len(known)} reduced models the rank correlation of JS⁰ with the "
        f"share of AdamW's progress that SGD lacks is {rho.value:.2f} ± {rho.error:.2f} (the "
        f"paper's claim needs it near 1).",
        f"Hit rate: asked about a model that it has not seen, the rule 'SGD falls behind above a "
        f"JS⁰ of x' was right for {hits} of {len(known)} models (± {noise * len(known):.1f} from "
        f"the errors of the measurements); the more frequent answer is right for {often} of "
        f"{len(known)}, and {beat} beat guessing.",
    )
    return Advice(word, tuple(reasons), evidence, hits, len(known), needed, limit)


def threshold(values: Sequence[float], behind: Sequence[bool]) -> float:
    """JS⁰ above which "SGD falls behind" is right most often; of equally good ones the clearest.

    ``values`` are the JS⁰ of the models, positive; ``behind`` says on which SGD fell behind. It is
    the middle (on a logarithmic axis) between two neighbouring values, the pair with most room of
    those that are right equally often; 0 or inf where always saying the same is better than that.
    """
    order = np.argsort(values)
    levels, labels = np.log(np.asarray(values, dtype=float)[order]), np.asarray(behind)[order]
    cuts = [-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf]
    room = [0.0, *np.diff(levels), 0.0]
    right = [((levels > cut) == labels).sum() for cut in cuts]
    return float(np.exp(max(zip(right, room, cuts, strict=True))[2]))


def hit_rate(values: Sequence[ValueWithError], gaps: Sequence[ValueWithError]) -> tuple[int, float]:
    """Count the models that the rule gets right when its threshold comes from all others.

    Also returns the standard deviation of the hit *rate* under the errors of the measurements: by
    the bootstrap, every number drawn from a normal of its mean and standard error.
    """
    pairs = np.nan_to_num(np.array([values, gaps], dtype=float))  # (2, model, mean and error)
    rng = np.random.Generator(np.random.PCG64(0))
    noisy = rng.normal(pairs[..., 0], pairs[..., 1], (DRAWS, *pairs.shape[:2]))
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
