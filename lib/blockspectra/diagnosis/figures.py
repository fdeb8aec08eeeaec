"""Figures of one model's diagnosis: its blocks, and its place among the reference models."""

import itertools
import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from blockspectra.diagnosis.advice import CLEARLY_WORSE, ON_PAR
from blockspectra.diagnosis.references import points, references, settings
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
    model: str, spectra: Spectra, divergences: pd.DataFrame, js0: ValueWithError
) -> list[Drawing]:
    """Draw a diagnosis, in the companion's style; ``divergences`` of `js_matrix`, JS⁰ in nats."""
    use_style()
    densities = relative_density(spectra).assign(model=model)
    named = divergences.rename_axis("a").reset_index()
    pairs = named.melt("a", var_name="b", value_name="js")
    table = reference_points()
    models = ", ".join(f"{row.model} {row.value:.2g}" for row in table.itertuples())
    needed = settings(references())
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
            f"Pairwise Jensen–Shannon divergence between the spectra of the blocks of {model}: "
            f"from 0 (alike) to ln 2 = 0.69 nats; their mean is JS⁰ = {js0}.",
        ),
        Drawing(
            "among_references",
            among_references(table, model, js0),
            table,
            f"JS⁰ of {model} (grey, ± two standard errors) among the reference models of this "
            f"project ({models}), {needed['samples']} samples, with the share of AdamW's progress "
            f"that SGD lacks on them. Dotted: on par, dashed: clearly worse.",
        ),
    ]


def reference_points() -> pd.DataFrame:
    """Return the reference models as `gap_against` takes them."""
    rows = [(p.model, p.family, *p.js0, *p.gap) for p in points(references())]
    columns = ["model", "family", "value", "value_error", "gap", "gap_error"]
    return pd.DataFrame(rows, columns=columns)


def divergence_map(matrix: pd.DataFrame) -> Figure:
    """Heat-map of the divergences between the blocks of one model, on the scale of all others."""
    height = float(np.clip(0.4 + 0.13 * len(matrix), 1.8, PAGE * 2 / 3))
    figure, ax = plt.subplots(figsize=(PAGE * 2 / 3, height))
    image = ax.imshow(
        matrix.clip(1e-4), cmap="rocket_r", norm=LogNorm(1e-4, np.log(2)), interpolation="nearest"
    )
    ticks = range(0, len(matrix), -(-len(matrix) // NAMED))
    ax.set_yticks(ticks, [short(matrix.index[i]) for i in ticks], fontsize=6)
    ax.set_xticks([])
    ax.grid(False)
    figure.colorbar(image, ax=ax, pad=0.02, extend="min").set_label("JS divergence (nats)")
    return figure


def gap_against(table: pd.DataFrame, xlabel: str, on_par: float, clearly_worse: float) -> Figure:
    """Gap between SGD and AdamW against heterogeneity, a point a model, with two standard errors.

    ``table``: model, family, value, value_error, gap, gap_error; ``xlabel`` says what ``value`` is,
    with its unit. The thresholds are drawn as lines.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 2.6))
    for (_, row), marker in zip(table.iterrows(), itertools.cycle("osD^vPX"), strict=False):
        ax.errorbar(
            row["value"],
            row["gap"],
            xerr=2 * np.nan_to_num(row["value_error"]),
            yerr=2 * np.nan_to_num(row["gap_error"]),
            fmt=marker,
            ms=4,
            color=FAMILY[row["family"]],
            label=row["model"],
        )
    for height, style in ((on_par, ":"), (clearly_worse, "--")):
        ax.axhline(height, color="0.4", linewidth=0.8, linestyle=style)
    ax.set_xscale("log")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    ax.set(xlabel=xlabel, ylabel="gap (share of AdamW's progress\nthat SGD lacks)")
    return figure


def among_references(table: pd.DataFrame, model: str, js0: ValueWithError) -> Figure:
    """`gap_against` of `reference_points`, and where a model of unknown gap lies."""
    figure = gap_against(table, "JS⁰ (nats)", ON_PAR, CLEARLY_WORSE)
    (ax,) = figure.axes
    error = 2 * np.nan_to_num(js0.standard_error)
    ax.axvspan(max(js0.mean - error, js0.mean / 100), js0.mean + error, color="0.85", zorder=0)
    ax.axvline(js0.mean, color="0.35", linewidth=1.2)
    ax.set_title(f"grey: {textwrap.shorten(model, 40, placeholder='…')}")
    return figure
