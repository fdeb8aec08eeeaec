"""Figures of distances between spectra: heat-maps, and models under many measures."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from blockspectra.plotting.style import FAMILY, PAGE, short
from companion.figures.panels import facets, panels, spare, typeset

#: nats at and below which heat-maps are white
FLOOR = 1e-6


def distance_maps(matrices: Mapping[str, pd.DataFrame], columns: int | None = None) -> Figure:
    """Heat-maps of pairwise JS divergence, one a model, on one logarithmic scale up to ln 2."""
    width = PAGE * min(1, (min(columns or 3, len(matrices)) + 0.5) / 3)
    height = 1.7 if len(matrices) < 7 else 1.45
    figure, axes = panels(len(matrices), columns, height, width=width)
    for ax, (model, matrix) in zip(axes, matrices.items(), strict=True):
        style = {"cmap": "rocket_r", "interpolation": "nearest"}
        image = ax.imshow(matrix.clip(FLOOR), norm=LogNorm(FLOOR, np.log(2)), **style)
        every = -(-len(matrix) // 12)
        ticks = range(0, len(matrix), every)
        ax.set_yticks(ticks, [short(matrix.index[i]) for i in ticks], fontsize=5)
        ax.set_xticks([])
        mean = matrix.to_numpy()[np.triu_indices(len(matrix), 1)].mean()
        ax.set_title(f"{model}\nJS⁰ = {mean:.2g}")
        ax.grid(False)
    if place := spare(figure):
        where = {"cax": place.inset_axes((0, 0.5, 1, 0.1)), "orientation": "horizontal"}
        where["ticks"] = (1e-6, 1e-4, 1e-2)
        figure.get_layout_engine().set(w_pad=0.07)  # small names print wider than they are laid out
    else:
        where = {"ax": axes, "shrink": 0.8, "pad": 0.01}
    figure.colorbar(image, extend="min", **where).set_label("JS divergence (nats)")
    return figure


def heterogeneity_by_measure(table: pd.DataFrame) -> Figure:
    """Heterogeneity of every model, a panel a measure, with two standard errors.

    Every panel spans as many decades, so that lengths can be compared between them.
    ``table``: model, family, measure, unit, value, standard_error; a row with measure ``reported``
    gives the paper's number.
    """
    figure, axes, parts = facets(table, "measure", 1.5, 3)
    models = list(dict.fromkeys(table["model"]))
    ends = np.log10(table.groupby("measure")["value"].agg(["min", "max"]))
    half = (ends["max"] - ends["min"]).max() / 2 + 0.4  # decades, with a margin
    for ax, (measure, part) in zip(axes, parts.items(), strict=True):
        part = part.set_index("model").reindex(models)
        for i, (_, row) in enumerate(part.iterrows()):
            if np.isfinite(row["value"]):
                error, color = 2 * np.nan_to_num(row["standard_error"]), FAMILY[row["family"]]
                ax.errorbar(row["value"], i, xerr=error, fmt="o", ms=3.5, color=color)
        middle = ends.loc[measure].mean()
        ax.set(xscale="log", xlim=(10 ** (middle - half), 10 ** (middle + half)))
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_yticks(range(len(models)), models if ax in axes[::3] else [])
        ax.set_ylim(len(models) - 0.5, -0.5)
        ax.set_title(typeset(_title(measure)))
        ax.set_xlabel(re.sub(r"^1\b", "no unit", part["unit"].dropna().iloc[0]), fontsize=7)
    return figure


def _title(measure: str) -> str:
    """Say in words which measure a short name such as ``js, raw`` stands for."""
    words = {"js": "JS divergence", "sqrt": "JS distance", "w1": "Wasserstein-1"}
    words |= {"sum": "un-normalised sum"}
    return re.sub(rf"^({'|'.join(words)})\b", lambda name: words[name[0]], measure)
