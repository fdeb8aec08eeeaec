"""Figures of spectra: densities of blocks on the signed-log axis."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspectra.distance import FLOOR, SIGMA, signed_log
from blockspectra.plotting.style import FAMILY, PAGE, legend, panels, short, signed_log_ticks
from blockspectra.spectra import Spectra


def relative_density(spectra: Spectra, points: int = 240) -> pd.DataFrame:
    """Densities on the signed-log axis of λ / max|λ|, one row a block and grid point.

    Columns: block, eigenvalue (as a share of the largest |λ| of the model), position (decades on
    the signed-log axis), density (per decade).
    """
    top = np.abs(spectra.quadrature[0]).max() or 1.0
    reach = signed_log(np.array(1.0), FLOOR) + 5 * SIGMA["signed-log"]
    edges = np.linspace(-reach, reach, points + 1)
    mass = spectra.mass(edges, SIGMA["signed-log"], lambda x: signed_log(x / top, FLOOR)).mean(1)
    middle = (edges[1:] + edges[:-1]) / 2
    shares = np.sign(middle) * FLOOR * (10 ** np.abs(middle) - 1)
    return pd.DataFrame(
        {
            "block": np.repeat(spectra.names, points),
            "eigenvalue": np.tile(shares, len(mass)),
            "position": np.tile(middle, len(mass)),
            "density": (mass / np.diff(edges)).ravel(),
        }
    )


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


def spectrum_raster(densities: pd.DataFrame, model: str) -> Figure:
    """Spectra of one model, a row a block: density per decade as colour."""
    part = densities[densities["model"] == model]
    table = part.pivot_table(index="block", columns="position", values="density", sort=False)
    figure, ax = plt.subplots(figsize=(PAGE * 2 / 3, 0.6 + 0.125 * len(table)))
    half = (table.columns[1] - table.columns[0]) / 2
    image = ax.imshow(
        np.log10(table.to_numpy().clip(1e-4)),
        aspect="auto",
        cmap="mako_r",
        vmin=-4,
        vmax=0.5,
        interpolation="nearest",
        extent=(table.columns[0] - half, table.columns[-1] + half, len(table) - 0.5, -0.5),
    )
    ax.set_yticks(range(len(table)), [short(name) for name in table.index], fontsize=6)
    ax.set_xlabel("eigenvalue / largest |λ| of the model (ticks: 0, ±0.01, ±0.1, ±1)")
    ax.grid(False)
    signed_log_ticks(ax)
    bar = figure.colorbar(image, ax=ax, ticks=range(-4, 1), pad=0.02)
    bar.set_label("density per decade")
    bar.set_ticklabels([f"$10^{{{k}}}$" for k in range(-4, 1)])
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
