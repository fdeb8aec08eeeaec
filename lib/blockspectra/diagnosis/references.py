"""The project's own models as a scale: how far apart their blocks are, and what SGD lacks on them.

The numbers are a table inside the package, so that they are there without the repository. It is
made from what chapter 22 has measured by `companion.reference_numbers`.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

TABLE = Path(__file__).parent / "references.csv"
JS0 = "js, signed-log"
#: what is known of the reference models, of `heterogeneity`: in words, with the unit
MEASURES = {
    "sum, raw": "JS⁰ (un-normalised sum)",
    JS0: "JS⁰ (nats)",
    "spread of RMS eigenvalue": "spread of RMS eigenvalue (decades)",
    "spread of λ_max": "spread of λ_max (decades)",
}
SETTINGS = ("steps", "probes", "samples", "seeds")


@cache
def references() -> pd.DataFrame:
    """Read what was measured of the reference models at initialisation, and of their training.

    One row a model and measure. Columns: model; base, the architecture of which it is a variant,
    and family; gap, the share of AdamW's progress that SGD with momentum lacks, and gap_error;
    measure, value, value_error; and the settings: steps, probes, samples of the Hessian, seeds.
    """
    return pd.read_csv(TABLE, float_precision="round_trip")


def settings(table: pd.DataFrame) -> dict[str, int]:
    """Return the settings of the references, which JS⁰ depends on; ValueError if they differ."""
    if (differ := table[list(SETTINGS)].nunique()).max() > 1:
        raise ValueError(f"The reference models differ in {', '.join(differ.index[differ > 1])}.")
    return {name: int(table[name].iloc[0]) for name in SETTINGS}


def placed(table: pd.DataFrame, heterogeneity: pd.DataFrame) -> pd.DataFrame:
    """Put a model, by its `heterogeneity`, among the reference models.

    Returns a row a measure: the model's value and standard_error, how many reference models lie
    ``below`` and ``above`` by two standard errors of both, and the ``least`` and ``largest`` value
    among them.
    """
    rows = {}
    for measure, part in table.groupby("measure", sort=False):
        value, error = heterogeneity.loc[measure, ["value", "standard_error"]]
        apart = 2 * np.hypot(part["value_error"].fillna(0), np.nan_to_num(error))
        rows[MEASURES[measure]] = {
            "this model": value,
            "standard_error": error,
            "below": int((part["value"] < value - apart).sum()),
            "above": int((part["value"] > value + apart).sum()),
            "least": part["value"].min(),
            "largest": part["value"].max(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")
