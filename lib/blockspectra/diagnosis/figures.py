"""Figures of one model's diagnosis: its blocks, and its place among the reference models."""

import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from blockspectra.diagnosis.advice import CLEARLY_WORSE, ON_PAR, Advice
from blockspectra.diagnosis.references import JS0, MEASURES, references
from blockspectra.plotting.spectra import relative_density, spectrum_raster
from blockspectra.plotting.style import COLUMN, FAMILY, PAGE, short, use_style
from blockspectra.spectra import Spectra
from blockspectra.statistics import ValueWithError

NAMED = 60  # blocks whose names fit beside a heat-map


class Drawing(NamedTuple):
    """A figure, the numbers in it, and what it shows in words."""

    name: str  #: for a file
    figure: Figure
    data: pd.DataFrame
    caption: str


def drawings(
    model: str,
    spectra: Spectra,
    divergences: pd.DataFrame,
    heterogeneity: pd.DataFrame,
    advice: Advice,
) -> list[Drawing]:
    """Draw a diagnosis, in the companion's style; ``divergences`` of `js_matrix`."""
    use_style()
    densities = relative_density(spectra).assign(model=model)
    named = divergences.rename_axis("a").reset_index()
    pairs = named.melt("a", var_name="b", value_name="js")
    table = references()
    table = table[table["measure"] == advice.measure]
    js0, own = (
        ValueWithError(*heterogeneity.loc[measure, ["value", "standard_error"]])
        for measure in (JS0, advice.measure)
    )
    return [
        Drawing(
            "spectra",
            spectrum_raster(densities, model),
            densities,
            f"Hessian spectrum of each block of {model}: density per decade on a signed-log axis, "
            f"linear within ±0.001 of the largest |λ|, σ = 0.4 decades.",
        ),
        Drawing(
            "divergences",
            divergence_map(divergences),
            pairs,
            f"Block {short(divergences.mean().idxmax())} differs most from the others of {model}. "
            "Pairwise Jensen–Shannon divergence between the spectra of blocks, at most ln 2 = 0.69 "
            f"nats; the mean is JS⁰ = {js0}. The colour scale is the model's own.",
        ),
        Drawing(
            "among_references",
            among_references(table, model, own, advice),
            table,
            f"{model} (grey, ± two standard errors) among the {len(table)} reference models, by "
            f"what divides these best: {MEASURES[advice.measure]}, with the share of AdamW's "
            f"progress that SGD lacks on them. Vertical: the threshold {advice.threshold:.2g}; "
            f"dotted: on par, dashed: clearly worse.",
        ),
    ]


def divergence_map(matrix: pd.DataFrame) -> Figure:
    """Heat-map of the divergences between the blocks of one model, over the decades they fill."""
    values = matrix.to_numpy()[~np.eye(len(matrix), dtype=bool)]
    top = max(values.max(), 1e-6)  # blocks may be quite alike
    norm = LogNorm(np.clip(np.quantile(values, 0.1), top / 1e4, top / 10), top)
    height = float(np.clip(0.4 + 0.13 * len(matrix), 1.8, PAGE * 2 / 3))
    figure, ax = plt.subplots(figsize=(PAGE * 2 / 3, height))
    image = ax.imshow(matrix.clip(norm.vmin), cmap="rocket_r", norm=norm, interpolation="nearest")
    ticks = range(0, len(matrix), -(-len(matrix) // NAMED))
    ax.set_yticks(ticks, [short(matrix.index[i]) for i in ticks], fontsize=6)
    ax.set_xticks([])
    ax.grid(False)
    figure.colorbar(image, ax=ax, pad=0.02, extend="min").set_label("JS divergence (nats)")
    return figure


def among_references(
    table: pd.DataFrame, model: str, own: ValueWithError, advice: Advice
) -> Figure:
    """Draw the gap of the reference models against a measure, and where a model lies.

    ``table``: the rows of one measure of `references`. Bars are two standard errors.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 2.6))
    for (base, part), marker in zip(table.groupby("base", sort=False), "os^DvP", strict=False):
        ax.errorbar(
            part["value"],
            part["gap"],
            xerr=2 * part["value_error"].fillna(0),
            yerr=2 * part["gap_error"].fillna(0),
            fmt=marker,
            ms=4,
            mew=0.9,
            mfc="none",  # markers that lie upon each other stay visible
            color=FAMILY[part["family"].iloc[0]],
            elinewidth=0.6,
            label=base,
        )
    for height, style in ((ON_PAR, ":"), (CLEARLY_WORSE, "--")):
        ax.axhline(height, color="0.4", linewidth=0.8, linestyle=style)
    ax.axvline(advice.threshold, color="0.4", linewidth=0.8)
    error = 2 * np.nan_to_num(own.standard_error)
    ax.axvspan(own.mean - error, own.mean + error, color="0.85", zorder=0)
    ax.axvline(own.mean, color="0.35", linewidth=1.6)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    name = MEASURES[advice.measure].replace("λ_max", "$λ_{max}$")
    ax.set(xlabel=name, ylabel="gap (share of AdamW's progress\nthat SGD lacks)")
    ax.set_ylim(bottom=max(ax.get_ylim()[0], -0.5))  # one model's bar would flatten the others
    ax.set_title(f"grey: {textwrap.shorten(model, 40, placeholder='…')}")
    return figure
