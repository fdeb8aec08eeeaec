"""SGD, Adam, or no advice: what block spectra at initialisation are worth as a predictor.

The paper's promise is that SGD falls behind Adam where JS⁰ at initialisation is large. The rule
here takes the promise at its word, and lets the measure be another: above a threshold SGD is said
to fall behind. Which measure and which threshold, how often the rule is right about an
architecture that it has not seen, and whether that is worth saying, all come from the table of
reference models; other numbers in it would make it speak, or fall silent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from blockspectra.diagnosis.references import MEASURES
from blockspectra.statistics import Criterion

SGD, ADAM, SILENT = "SGD will do", "use Adam", "cannot tell"
#: chapter 06's: SGD lacks at most, or at least, this share of AdamW's progress
ON_PAR, CLEARLY_WORSE = 0.05, 0.10
BEHIND = (ON_PAR + CLEARLY_WORSE) / 2  # nearer to the one or to the other
DRAWS = 200  # of the measurements within their errors
LEVEL = 0.05  # one-sided: how often guessing may be right as often as the rule
TINY = 1e-12  # stands for values that are zero, on a logarithmic axis


@dataclass(frozen=True)
class Advice:
    """What to train with, and what that rests on."""

    word: str  #: ``SGD will do``, ``use Adam`` or ``cannot tell``
    reasons: tuple[str, ...]  #: sentences: why it says so, or why it is silent
    evidence: tuple[str, ...]  #: sentences: what was measured of the paper's claim and of the rule
    measure: str  #: which of `MEASURES` the rule goes by
    threshold: float  #: of the measure, above which the rule says that SGD falls behind
    hits: int  #: reference models that the rule got right without having seen their architecture
    models: int  #: out of how many
    needed: int  #: hits that would beat guessing; more than there are models if no number would


def advise(
    heterogeneity: pd.DataFrame, table: pd.DataFrame, obstacles: Sequence[str] = ()
) -> Advice:
    """Say what the `heterogeneity` of a model says about SGD and Adam.

    It speaks only if the rule is right about reference models (``table``, of `references`) of
    architectures left out more often than guessing is, by two standard errors of the measurements,
    and the measure is clear of the threshold by two of its own. ``obstacles`` are sentences about
    why this model cannot be compared with them; with one, there is no advice.
    """
    models = table.drop_duplicates("model").set_index("model")
    behind = (models["gap"] > BEHIND).to_numpy()
    values, _ = _by_measure(table)
    measure, limit = rule(values, behind)
    hits, noise = hit_rate(table)
    needed, count = hits_needed(behind), len(models)
    works = Criterion("hit rate", hits / count, noise, needed / count)
    own = heterogeneity.loc[measure, ["value", "standard_error"]]
    side = Criterion(measure, *own, limit)
    above, name = values[measure] > limit, MEASURES[measure]
    high = own["value"] > limit
    alike = above == high  # reference models on this side of the threshold
    beat = f"from {needed} on it would" if needed <= count else "no number of so few models would"
    word, reasons = SILENT, list(obstacles)
    if works.holds is not True:
        reasons.append(
            f"The evidence is weak: about architectures that it had not seen, the rule was right "
            f"for {hits} ± {noise * count:.0f} of {count} models; {beat} beat guessing by two "
            f"errors."
        )
    elif side.holds is None:
        reasons.append(
            f"The {name} is within two standard errors of the threshold, {limit:.2g}: more probes "
            f"would tell."
        )
    elif not obstacles:
        word = ADAM if side.holds else SGD
    reasons.append(
        f"The {name} is {own['value']:.2g}, {'above' if high else 'below'} the "
        f"{limit:.2g} that divides the reference models best: on this side SGD fell behind on "
        f"{(behind & alike).sum()} of {alike.sum()}, on the other on "
        f"{(behind & ~alike).sum()} of {(~alike).sum()}. Errors are over probes: another "
        f"initialisation moves it more."
    )
    evidence = (
        "The paper's claim: SGD falls behind Adam on models whose JS⁰ at initialisation is large "
        "(its Table 1 and Figure 7, on models a hundred times larger).",
        f"The reference models: {count} variants of {models['base'].nunique()} architectures, "
        f"reduced in size, each trained by SGD with momentum and by AdamW (chapter 22). SGD falls "
        f"behind where it lacks more than {BEHIND:.1%} of AdamW's progress.",
        f"The rule 'SGD falls behind above a threshold' is right for most of them, "
        f"{(above == behind).sum()} of {count}, if it goes by the {name}; measure and threshold "
        f"were chosen by the same models.",
        f"Hit rate: chosen without all variants of an architecture and asked about these, it is "
        f"right for {hits} of {count} (± {noise * count:.1f} from the errors of the measurements); "
        f"{beat} beat always giving the more frequent answer, if variants of one architecture "
        f"counted as independent.",
    )
    return Advice(word, tuple(reasons), evidence, measure, limit, hits, count, needed)


def rule(values: Mapping[str, np.ndarray], behind: np.ndarray) -> tuple[str, float]:
    """Choose the measure, and its `threshold`, that are right most often; of equals the first.

    ``values``: measure → (model,) float64, ``behind``: (model,) bool.
    """
    limits = {measure: threshold(of, behind) for measure, of in values.items()}
    best = max(values, key=lambda one: ((values[one] > limits[one]) == behind).sum())
    return best, limits[best]


def threshold(values: Sequence[float], behind: Sequence[bool]) -> float:
    """Value above which "SGD falls behind" is right most often; of equally good ones the clearest.

    ``values`` are those of the models, not negative; ``behind`` says on which SGD fell behind. It
    is the middle (on a logarithmic axis) between two neighbouring values, the pair with most room
    of those that are right equally often; 0 or inf where always saying the same is better.
    """
    order = np.argsort(values)
    levels = np.log(np.maximum(values, TINY)[order])
    labels = np.asarray(behind)[order]
    cuts = [-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf]
    room = [0.0, *np.diff(levels), 0.0]
    right = [((levels > cut) == labels).sum() for cut in cuts]
    return float(np.exp(max(zip(right, room, cuts, strict=True))[2]))


def hit_rate(table: pd.DataFrame) -> tuple[int, float]:
    """Count the models that the rule gets right when it is chosen without their architecture.

    Also returns the standard deviation of the hit *rate* under the errors of the measurements: by
    the bootstrap, every number drawn from a normal of its mean and standard error.
    """
    models = table.drop_duplicates("model")
    base = models["base"].to_numpy()
    gap, gap_error = np.nan_to_num(models[["gap", "gap_error"]].to_numpy(float)).T
    values, errors = _by_measure(table)
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = []
    for _ in range(DRAWS):
        noisy = {one: rng.normal(of, errors[one]) for one, of in values.items()}
        drawn.append(_left_out(noisy, rng.normal(gap, gap_error) > BEHIND, base))
    return _left_out(values, gap > BEHIND, base), float(np.std(drawn) / len(base))


def hits_needed(behind: Sequence[bool]) -> int:
    """Fewest hits that always guessing the more frequent answer reaches in at most 1 of 20 cases.

    One more than there are models if not even all would do.
    """
    from scipy.stats import binom  # slow to import

    share = max(np.mean(behind), 1 - np.mean(behind))
    return int(binom.isf(LEVEL, len(behind), share)) + 1


def _by_measure(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values and standard errors of every measure, in the order of the models."""
    groups = table.groupby("measure", sort=False)
    return tuple(
        {name: np.nan_to_num(part[column].to_numpy(float)) for name, part in groups}
        for column in ("value", "value_error")
    )


def _left_out(values: Mapping[str, np.ndarray], behind: np.ndarray, base: np.ndarray) -> int:
    hits = 0
    for one in np.unique(base):
        out = base == one
        measure, limit = rule({name: of[~out] for name, of in values.items()}, behind[~out])
        hits += int(((values[measure][out] > limit) == behind[out]).sum())
    return hits
