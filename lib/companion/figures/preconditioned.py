"""Figures of chapter 20: how far blocks differ in the coordinates of several optimizers."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.figures.panels import MODEL, legend, panels

#: scaling → label; the order of the axis
COORDINATES = {
    "none": "gradient descent",
    "adam": "Adam, √v̂",
    "block": "one √v̂ a block",
    "foreign": "√v̂ of another\ninitialisation",
    "sign": "sign descent, |g|",
    "rows": "row norms of H",
    "shuffled": "√v̂ shuffled\nwithin blocks",
    "moved": "one √v̂ a block,\nof another block",
}


def spread_by_coordinates(table: pd.DataFrame) -> Figure:
    """Spread over blocks of the RMS eigenvalue against the coordinates, a line a model.

    ``table``: model, scaling (a key of `COORDINATES`), mean, standard_error (decades).
    """
    shown = [name for name in COORDINATES if name in set(table["scaling"])]
    figure, (ax,) = panels(1, None, 2.8)
    models = [name for name in MODEL if name in set(table["model"])]
    for i, model in enumerate(models):
        part = table[table["model"] == model].set_index("scaling").reindex(shown)
        offset = 0.5 * (i - (len(models) - 1) / 2) / len(models)
        at, error = np.arange(len(shown)) + offset, 2 * part["standard_error"]
        style = {"color": MODEL[model], "marker": "os^Dv<"[i], "ms": 4, "linestyle": "none"}
        ax.errorbar(at, part["mean"], error, label=model, elinewidth=0.8, **style)
    for edge in np.arange(len(shown) - 1) + 0.5:
        ax.axvline(edge, color="0.85", linewidth=0.6)
    ax.set_xticks(range(len(shown)), [COORDINATES[name] for name in shown], rotation=20)
    ax.set(ylabel="spread over blocks of the RMS\neigenvalue (std of log₁₀, decades)")
    ax.set_ylim(bottom=0)
    ax.grid(visible=False, axis="x")
    legend(figure, ax)
    return figure
