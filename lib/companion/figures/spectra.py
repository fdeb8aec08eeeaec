"""Figures of blockwise spectra: every block of each model, and several methods on one block."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspectra.plotting.style import FAMILY, signed_log_ticks
from companion.figures.panels import legend, panels


def blockwise_spectra(
    densities: pd.DataFrame, families: Mapping[str, str], columns: int = 3
) -> Figure:
    """All blocks of each model in one panel, on identical axes.

    ``densities``: model, block, position, density, as of `relative_density`; ``families``: model →
    family, for the colour; ``columns``: panels in a row.
    """
    models = list(dict.fromkeys(densities["model"]))
    figure, axes = panels(len(models), columns, 1.75, sharex=True, sharey=True)
    for ax, model in zip(axes, models, strict=True):
        part = densities[densities["model"] == model]
        blocks = list(dict.fromkeys(part["block"]))
        shades = sns.light_palette(FAMILY[families[model]], len(blocks) + 4)[3:-1]
        for block, shade in zip(blocks, shades, strict=True):
            one = part[part["block"] == block]
            ax.plot(one["position"], one["density"], color=shade, linewidth=0.8)
        ax.set_title(f"{model}, {len(blocks)} blocks")
        signed_log_ticks(ax)
    axes[0].set_yscale("log")
    axes[0].set_ylim(1e-5, 3)
    figure.supxlabel(
        "eigenvalue / largest |λ| of the model (ticks: 0, ±0.01, ±0.1, ±1)", fontsize=8
    )
    figure.supylabel("density per decade", fontsize=8)
    return figure


def spectrum_comparison(curves: pd.DataFrame) -> Figure:
    """Density of several blocks by several methods, a panel a block.

    ``curves``: block, method, position (decades on the signed-log axis), density (per decade).
    """
    blocks = list(dict.fromkeys(curves["block"]))
    figure, axes = panels(len(blocks), None, 1.9, sharey=True, sharex=True)
    for ax, block in zip(axes, blocks, strict=True):
        part = curves[curves["block"] == block]
        for (method, one), style in zip(
            part.groupby("method", sort=False), ("-", "--", ":"), strict=False
        ):
            ax.plot(one["position"], one["density"], style, label=method)
        ax.set_title(block)
        signed_log_ticks(ax)
    axes[0].set_yscale("log")
    axes[0].set_ylim(1e-5, 3)
    axes[0].set_ylabel("density per decade")
    figure.supxlabel(
        "eigenvalue / largest |λ| of the block (ticks: 0, ±0.01, ±0.1, ±1)", fontsize=8
    )
    legend(figure, axes[0])
    return figure
