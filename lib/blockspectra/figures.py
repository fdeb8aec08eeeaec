"""One function a figure: takes results, returns a matplotlib Figure.

Widths are those of a paper: `COLUMN` for one of two columns, `PAGE` for both. Colours are seaborn's
colour-blind palette, the same for a family of models in every figure.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from blockspectra.distance import FLOOR, SIGMA, signed_log
from blockspectra.spectra import Spectra

COLUMN, PAGE = 3.35, 7.0  # inches
_COLORBLIND = sns.color_palette("colorblind")
FAMILY = {"CNN": _COLORBLIND[0], "MLP-mixer": _COLORBLIND[1], "Transformer": _COLORBLIND[3]}
STYLE = {
    "axes.grid": True,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 8,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def use_style() -> None:
    """Set the companion's style for all figures that follow."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=STYLE)


def short(name: str) -> str:
    """Shorten a block's name for an axis: tied names to the first, modules that say nothing out."""
    first = name.split("=")[0]
    for silent in ("attn.c_attn.", "attn.qkv.", "attn.", "blocks.", "layer."):
        first = first.replace(silent, "")
    return first


def relative_density(spectra: Spectra, points: int = 240) -> pd.DataFrame:
    """Densities on the signed-log axis of λ / max|λ|, one row a block and grid point.

    Returns
    -------
    DataFrame
        block, eigenvalue (as a share of the largest |λ| of the model), position (decades on the
        axis of `shares`), density (per decade).
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

    Parameters
    ----------
    densities : DataFrame
        model, block, position, density: of `relative_density` for each model.
    families : mapping
        Model → family, for the colour.
    columns : int
        Panels in a row.
    """
    models = list(dict.fromkeys(densities["model"]))
    columns = min(columns, len(models))
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE, 1.75 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, model in zip(axes.flat, models, strict=False):
        part = densities[densities["model"] == model]
        blocks = list(dict.fromkeys(part["block"]))
        shades = sns.light_palette(FAMILY[families[model]], len(blocks) + 4)[3:-1]
        for block, shade in zip(blocks, shades, strict=True):
            one = part[part["block"] == block]
            ax.plot(one["position"], one["density"], color=shade, linewidth=0.8)
        ax.set_title(f"{model}, {len(blocks)} blocks")
        _signed_log_ticks(ax)
    for ax in axes.flat[len(models) :]:
        ax.set_visible(False)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(1e-5, 3)
    figure.supxlabel(
        "eigenvalue / largest |λ| of the model (ticks: 0, ±0.01, ±0.1, ±1)", fontsize=8
    )
    figure.supylabel("density per decade", fontsize=8)
    return figure


def spectrum_raster(densities: pd.DataFrame, model: str) -> Figure:
    """Spectra of one model, a row a block: density per decade as colour."""
    part = densities[densities["model"] == model]
    table = part.pivot_table(index="block", columns="position", values="density", sort=False)
    figure, ax = plt.subplots(figsize=(PAGE * 0.62, 0.6 + 0.125 * len(table)))
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
    _signed_log_ticks(ax)
    bar = figure.colorbar(image, ax=ax, ticks=range(-4, 1), pad=0.02)
    bar.set_label("density per decade")
    bar.set_ticklabels([f"$10^{{{k}}}$" for k in range(-4, 1)])
    return figure


def distance_maps(matrices: Mapping[str, pd.DataFrame], columns: int = 3) -> Figure:
    """Heat-maps of pairwise JS divergence, one a model, on one logarithmic scale up to ln 2."""
    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(PAGE, 1.95 * rows), squeeze=False)
    for ax, (model, matrix) in zip(axes.flat, matrices.items(), strict=False):
        image = ax.imshow(
            matrix.clip(1e-4),
            cmap="rocket_r",
            norm=LogNorm(1e-4, np.log(2)),
            interpolation="nearest",
        )
        every = 1 if len(matrix) <= 12 else 2
        ticks = range(0, len(matrix), every)
        ax.set_yticks(ticks, [short(matrix.index[i]) for i in ticks], fontsize=4.5)
        ax.set_xticks([])
        mean = matrix.to_numpy()[np.triu_indices(len(matrix), 1)].mean()
        ax.set_title(f"{model}: JS⁰ = {mean:.2g}")
        ax.grid(False)
    for ax in axes.flat[len(matrices) :]:
        ax.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, extend="min")
    bar.set_label("Jensen–Shannon divergence (nats)")
    return figure


def heterogeneity_by_measure(table: pd.DataFrame) -> Figure:
    """Heterogeneity of every model under every measure, a panel a measure, with error bars.

    Parameters
    ----------
    table : DataFrame
        model, family, measure, unit, value, standard_error; a row with measure ``reported`` gives
        the paper's number.
    """
    measures = list(dict.fromkeys(table["measure"]))
    columns = 3
    rows = -(-len(measures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(PAGE, 1.5 * rows), squeeze=False)
    models = list(dict.fromkeys(table["model"]))
    for ax, measure in zip(axes.flat, measures, strict=False):
        part = table[table["measure"] == measure].set_index("model").reindex(models)
        for i, (_, row) in enumerate(part.iterrows()):
            if np.isfinite(row["value"]):
                error = 2 * np.nan_to_num(row["standard_error"])
                ax.errorbar(
                    row["value"], i, xerr=error, fmt="o", ms=3.5, color=FAMILY[row["family"]]
                )
        ax.set_xscale("log")
        _decades(ax, part["value"].dropna())
        ax.set_yticks(range(len(models)), models if ax in axes[:, 0] else [])
        ax.set_ylim(len(models) - 0.5, -0.5)
        unit = part["unit"].dropna().iloc[0]
        ax.set_title(measure)
        ax.set_xlabel(unit, fontsize=7)
    for ax in axes.flat[len(measures) :]:
        ax.set_visible(False)
    return figure


def _decades(ax: Axes, values: pd.Series) -> None:
    """Widen a logarithmic axis to whole decades, so that at least two of them carry a label."""
    low, high = np.floor(np.log10(values.min() * 0.8)), np.ceil(np.log10(values.max() * 1.25))
    ax.set_xlim(10**low, 10**high)
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _plain_ticks(axis: Axis, span: float) -> None:
    """Label powers of ten, and where these are fewer than three, 1, 2 and 5 times them."""
    if span < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def lines(
    table: pd.DataFrame,
    panels: Mapping[str, tuple[str, str]],
    *,
    x: str,
    hue: str,
    xlabel: str,
    log: str = "xy",
    guide: float | None = None,
) -> Figure:
    """Curves in panels side by side that share their x axis: seaborn lines, with bands if repeated.

    Parameters
    ----------
    table : DataFrame
        Tidy: columns ``x``, ``hue`` and one a panel.
    panels : mapping
        Column → (title, label of the y axis with its unit).
    x, hue, xlabel : str
        Columns, and the label of the x axis.
    log : {"xy", "x", "y", ""}
        Logarithmic axes.
    guide : float, optional
        A vertical line at this x.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(PAGE if len(panels) > 1 else COLUMN * 1.2, 2.2), squeeze=False
    )
    for ax, (column, (title, label)) in zip(axes.flat, panels.items(), strict=True):
        part = table[[x, hue, column]].dropna()
        sns.lineplot(
            part,
            x=x,
            y=column,
            hue=hue,
            style=hue,
            markers=True,
            dashes=False,
            ms=4,
            ax=ax,
            errorbar=("pi", 80),
            estimator="median",
            mew=0,
            legend=ax is axes.flat[0],
        )
        ax.set(title=title, xlabel=xlabel, ylabel=label)
        for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            if name in log:
                getattr(ax, f"set_{name}scale")("log")
                values = part[x if name == "x" else column]
                _plain_ticks(axis, values.max() / values[values > 0].min())
        if guide is not None:
            ax.axvline(guide, color="0.4", linewidth=0.8, linestyle=":")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[0].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return figure


def spectrum_comparison(curves: pd.DataFrame) -> Figure:
    """Density of several blocks by several methods, a panel a block.

    Parameters
    ----------
    curves : DataFrame
        block, method, position (decades on the signed-log axis), density (per decade).
    """
    blocks = list(dict.fromkeys(curves["block"]))
    figure, axes = plt.subplots(
        1, len(blocks), figsize=(PAGE, 1.9), sharey=True, sharex=True, squeeze=False
    )
    for ax, block in zip(axes.flat, blocks, strict=True):
        part = curves[curves["block"] == block]
        for (method, one), style in zip(
            part.groupby("method", sort=False), ("-", "--", ":"), strict=False
        ):
            ax.plot(one["position"], one["density"], style, label=method)
        ax.set_title(block)
        _signed_log_ticks(ax)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(1e-5, 3)
    axes[0, 0].set_ylabel("density per decade")
    figure.supxlabel(
        "eigenvalue / largest |λ| of the block (ticks: 0, ±0.01, ±0.1, ±1)", fontsize=8
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _signed_log_ticks(ax: Axes) -> None:
    """Label a signed-log axis by eigenvalue shares: −1, 0 and 1, with a tick a decade between."""
    shares = np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    labels = ["−1", "", "", "0", "", "", "1"]
    ax.set_xticks(signed_log(shares, FLOOR), labels)
