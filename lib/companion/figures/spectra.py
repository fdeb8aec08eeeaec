"""Figures of blockwise spectra: every block of each model, and several methods on one block."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspectra.plotting.style import FAMILY, signed_log_ticks
from companion.figures.panels import facets, legend


def blockwise_spectra(
    densities: pd.DataFrame, families: Mapping[str, str], columns: int = 3
) -> Figure:
    """All blocks of each model in one panel, on identical axes.

    ``densities``: model, block, position, density, as of `relative_density`; ``families``: model →
    family, for the colour; ``columns``: panels in a row.
    """
    figure, axes, parts = facets(densities, "model", 1.75, columns, sharex=True, sharey=True)
    for ax, (model, part) in zip(axes, parts.items(), strict=True):
        blocks = part.groupby("block", sort=False)
        shades = sns.light_palette(FAMILY[families[model]], len(blocks) + 4)[3:-1]
        for (_, one), shade in zip(blocks, shades, strict=True):
            ax.plot(one["position"], one["density"], color=shade, linewidth=0.8)
        ax.set_title(f"{model}, {len(blocks)} blocks")
    _axes_of_spectra(figure, axes, "model")
    figure.supylabel("density per decade", fontsize=8)
    return figure


def spectrum_comparison(curves: pd.DataFrame) -> Figure:
    """Density of several blocks by several methods, a panel a block.

    ``curves``: block, method, position (decades on the signed-log axis), density (per decade).
    """
    figure, axes, parts = facets(curves, "block", 1.9, sharey=True, sharex=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        methods = part.groupby("method", sort=False)
        for (method, one), style in zip(methods, ("-", "--", ":"), strict=False):
            ax.plot(one["position"], one["density"], style, label=method)
    _axes_of_spectra(figure, axes, "block")
    axes[0].set_ylabel("density per decade")
    legend(figure, axes[0])
    return figure


def _axes_of_spectra(figure: Figure, axes: Sequence[Axes], unit: str) -> None:
    for ax in axes:
        signed_log_ticks(ax)
    axes[0].set(yscale="log", ylim=(1e-5, 3))
    text = f"eigenvalue / largest |λ| of the {unit} (ticks: 0, ±0.01, ±0.1, ±1)"
    figure.supxlabel(text, fontsize=8)
