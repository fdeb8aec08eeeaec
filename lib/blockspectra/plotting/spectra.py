"""Figures of spectra: densities of blocks on the signed-log axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockspectra.plotting.style import PAGE, short, signed_log_ticks
from blockspectra.smoothing import FLOOR, SIGMA, signed_log

if TYPE_CHECKING:  # Spectra.plot imports this module
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
