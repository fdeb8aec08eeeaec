"""Blocks of several models, a panel a model: numbers of each, and the paper's view of four."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockspectra.plotting.style import COLORBLIND, short
from blockspectra.spectra import Spectra
from companion.figures.panels import MODEL, facets, legend, typeset
from companion.spectrum_similarity import scaled

MARKERS = "oDs"
WIDTH = 0.04  # of the Gaussian in the paper's view, in units of the largest |λ|
#: what to show of a Transformer or a mixer: the first block, and these of its middle layer
QUERY_OR_KEY = r"\.(?:q|query|k|key)$"
KINDS = (
    r"\.(q|query|token_mix\.fc1)$",
    r"\.(v|value|token_mix\.fc2)$",
    r"(c_fc|mlp\.fc1|channel_mix\.fc1)$",
)


def numbers_by_block(table: pd.DataFrame, labels: Mapping[str, str], ylabel: str) -> Figure:
    """One or more positive numbers of every block, on a logarithmic axis that panels share.

    ``table``: model, block, number (its position), and a column for each key of ``labels``. Queries
    and keys are hollow.
    """
    figure, axes, parts = facets(table, "model", 1.7, order=MODEL, sharey=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        for i, (column, label) in enumerate(labels.items()):
            line = {"color": COLORBLIND[(7, 2, 4)[i]], "marker": MARKERS[i], "ms": 3}
            ax.plot(part["number"], part[column], label=label, linewidth=0.5, **line)
            hollow = part[part["block"].str.contains(QUERY_OR_KEY, regex=True)]
            ax.plot(hollow["number"], hollow[column], linestyle="none", mfc="white", **line)
        ax.set_yscale("log")
    if table["block"].str.contains(QUERY_OR_KEY, regex=True).any():
        axes[0].plot([], [], "o", ms=3, color="0.35", mfc="white", label="query or key")
    figure.supxlabel("block, from input to output", fontsize=8)
    figure.supylabel(typeset(ylabel), fontsize=8)
    legend(figure, axes[0])
    return figure


def four_blocks(spectra: Spectra) -> list[str]:
    """Four blocks to show: of a CNN spread over its depth, of others one of each kind."""
    names = spectra.names
    if spectra.meta["family"] == "CNN":
        return [names[round(i * (len(names) - 1) / 3)] for i in range(4)]
    matching = ([name for name in names if re.search(kind, name)] for kind in KINDS)
    return [names[0], *(found[len(found) // 2] for found in matching)]


def paper_densities(measured: Sequence[Spectra]) -> pd.DataFrame:
    """Density of four blocks of each model against the eigenvalue over the block's largest one.

    Columns: model, block, position (λ/λ_max), density (mean over probes, Gaussian of `WIDTH`).
    """
    grid, parts = np.linspace(-1.15, 1.15, 401), []
    for one in measured:
        for name in four_blocks(one):
            block = one.select([name])
            block = scaled(block, 1 / (np.abs(block.quadrature[0]).max() or 1.0))
            about = {"model": one.meta["title"], "block": short(name), "position": grid}
            parts.append(pd.DataFrame(about | {"density": block.density(grid, WIDTH)[0]}))
    return pd.concat(parts, ignore_index=True)


def paper_view(table: pd.DataFrame) -> Figure:
    """Draw four blocks of each model as the paper does: log density of `paper_densities`."""
    figure, axes, parts = facets(table, "model", 1.9, order=MODEL, sharex=True, sharey=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        for i, (block, one) in enumerate(part.groupby("block", sort=False)):
            ax.plot(one["position"], one["density"], color=COLORBLIND[i], label=block, lw=0.9)
        ax.legend(fontsize=5.5, frameon=False, loc="upper left", handlelength=1.2)
        ax.set(yscale="log", ylim=(1e-5, 3e4))  # room for the names
    figure.supxlabel(typeset("eigenvalue / largest |λ| of the block"), fontsize=8)
    figure.supylabel("density", fontsize=8)
    return figure
