"""The project's own models as a scale: their heterogeneity, and how far SGD fell behind on them.

The numbers are a table inside the package, so that they are there without the repository. It is
made from the committed results by `companion.reference_numbers`.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from blockspectra.statistics import ValueWithError

TABLE = Path(__file__).parent / "references.csv"
GAP = "gap"  # of `companion.rate_search.gap`; all other measures are those of `heterogeneity`
JS0 = "js, signed-log"
SETTINGS = ("steps", "probes", "samples", "seeds")


@cache
def references() -> pd.DataFrame:
    """Read what was measured of the reference models at initialisation, and of their training.

    One row a model and measure. Columns: model, family, measure, value, standard_error, unit, and
    the settings: steps, probes, samples of the Hessian, seeds.
    """
    return pd.read_csv(TABLE, float_precision="round_trip")


class Point(NamedTuple):
    """A reference model: how heterogeneous it is, and how far SGD fell behind AdamW on it."""

    model: str
    family: str
    js0: ValueWithError
    gap: ValueWithError


def points(table: pd.DataFrame) -> list[Point]:
    """Pair JS⁰ and the gap of every reference model that has both."""
    found = []
    for (model, family), part in table.groupby(["model", "family"], sort=False):
        rows = part.set_index("measure")[["value", "standard_error"]]
        if {JS0, GAP} <= set(rows.index):
            found.append(
                Point(model, family, ValueWithError(*rows.loc[JS0]), ValueWithError(*rows.loc[GAP]))
            )
    return found


def settings(table: pd.DataFrame) -> dict[str, int]:
    """Return the settings of the references, which JS⁰ depends on; ValueError if they differ."""
    if (differ := table[list(SETTINGS)].nunique()).max() > 1:
        raise ValueError(f"The reference models differ in {', '.join(differ.index[differ > 1])}.")
    return {name: int(table[name].iloc[0]) for name in SETTINGS}


def placed(table: pd.DataFrame, name: str, heterogeneity: pd.DataFrame) -> pd.DataFrame:
    """Put a model, by its name and `heterogeneity`, among the reference models.

    Returns a row a measure: the model's value and standard_error, a column a reference model, and
    ``below``: how many of them lie below it by two standard errors of both; ``above`` so too.
    """
    models = table["model"].unique()
    values, errors = (
        table.pivot_table(index="measure", columns="model", values=column, sort=False)[models]
        for column in ("value", "standard_error")
    )
    rows = [measure for measure in heterogeneity.index if measure in values.index]
    own = heterogeneity.loc[rows, ["value", "standard_error"]]
    difference = values.loc[rows].sub(own["value"], axis=0)
    significant = difference.abs() > 2 * np.hypot(
        errors.loc[rows].fillna(0), own["standard_error"].fillna(0).to_numpy()[:, None]
    )
    counts = {
        "below": (significant & (difference < 0)).sum(axis=1),
        "above": (significant & (difference > 0)).sum(axis=1),
    }
    return own.rename(columns={"value": name}).assign(**counts).join(values.loc[rows])
