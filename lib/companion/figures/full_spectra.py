"""Figures of full spectra: models over each other at each stage, and how far apart they are."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from blockspectra.plotting.style import FAMILY, PAGE
from blockspectra.smoothing import SIGMA, signed_log
from blockspectra.spectra import Spectra
from companion.figures.panels import facets, legend, panels
from companion.spectrum_similarity import FLOOR, View, normalised

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # models of one family, in the order they come


def linear_densities(measured: Sequence[Spectra], normalise: bool) -> pd.DataFrame:
    """Densities of full spectra, one `Spectra` a model and one block a stage, on one linear axis.

    Returns model, family, stage, position, density (per unit of position). The width of the
    Gaussian is 1/200 of the axis. Eigenvalues are divided by λ₁₀ if ``normalise``.
    """
    every = [normalised(one) if normalise else one for one in measured]
    low = min(one.quadrature[0].min() for one in every)
    high = max(one.quadrature[0].max() for one in every)
    sigma = (high - low) / 200
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, 401)
    return _table(every, edges, sigma, None)


def viewed_densities(measured: Sequence[Spectra], view: View) -> pd.DataFrame:
    """Densities on the signed-log axis of a view, as its divergences see them; fields as above."""
    every = [view.weighed(normalised(one)) for one in measured]
    top = max(np.abs(one.quadrature[0]).max() for one in every)
    reach, sigma = signed_log(top, FLOOR), SIGMA["signed-log"]
    edges = np.linspace(-reach - 4 * sigma, reach + 4 * sigma, 301)
    return _table(every, edges, sigma, lambda nodes: signed_log(nodes, FLOOR))


def _table(every, edges, sigma, transform) -> pd.DataFrame:
    parts = []
    for one in every:
        density = one.mass(edges, sigma, transform).mean(1) / np.diff(edges)  # (stage, point)
        about = {"position": (edges[1:] + edges[:-1]) / 2}
        about |= {"model": one.meta["title"], "family": one.meta["family"]}
        for stage, row in zip(one.names, density, strict=True):
            parts.append(pd.DataFrame({"stage": stage, "density": row} | about))
    columns = ["stage", "position", "density", "model", "family"]
    return pd.concat(parts, ignore_index=True)[columns]


def full_spectra(
    rows: Mapping[str, tuple[pd.DataFrame, tuple[float, float]]], *, signed: bool = False
) -> Figure:
    """All models over each other: a column a stage, a row a kind of axis, axes shared in a row.

    ``rows``: label of the x axis → (densities, limits of the density). With ``signed``, axes are
    signed-log ones in units of λ₁₀.
    """
    stages = list(dict.fromkeys(next(iter(rows.values()))[0]["stage"]))
    layout = {"sharex": "row", "sharey": "row", "squeeze": False}
    size = PAGE, 1.55 * len(rows) + 0.4
    figure, axes = plt.subplots(len(rows), len(stages), figsize=size, **layout)
    for line, (label, (densities, limits)) in zip(axes, rows.items(), strict=True):
        for ax, stage in zip(line, stages, strict=True):
            part = densities[densities["stage"] == stage]
            for (model, family), one in part.groupby(["model", "family"], sort=False):
                relatives = list(part.loc[part["family"] == family, "model"].unique())
                dashes = _DASHES[relatives.index(model) % len(_DASHES)]
                style = {"color": FAMILY[family], "linestyle": dashes, "label": model}
                ax.plot(one["position"], one["density"], linewidth=0.9, **style)
            if ax in axes[0]:
                ax.set_title(stage)
        line[0].set_yscale("log")
        line[0].set_ylim(*limits)
        line[0].set_ylabel("density per decade" if signed else "density per unit")
        line[len(stages) // 2].set_xlabel(label, x=0 if len(stages) % 2 == 0 else 0.5)
        if signed:
            ticks = np.array([-10, -1, 0, 1, 10])
            line[0].set_xticks(signed_log(ticks, FLOOR), ["−10", "", "0", "", "10"])
    legend(figure, axes[0, 0], "lower")
    return figure


def stage_distances(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Heat-maps of the divergence between each two models and stages, a panel a view.

    ``matrices``: title → matrix labelled "model, stage", a model's stages next to each other.
    """
    figure, axes = panels(len(matrices), None, 2.65)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        values = matrix.to_numpy()
        low, high = _whole_decades(values[values > 1e-6])
        style = {"cmap": "rocket_r", "interpolation": "nearest"}
        image = ax.imshow(np.maximum(values, low), norm=LogNorm(low, high), **style)
        models = [name.split(", ")[0] for name in matrix.index]
        names = matrix.index if ax is axes[0] else []
        ax.set_yticks(range(len(names)), names, fontsize=5)
        ax.set_xticks([])
        for edge in (i for i in range(1, len(models)) if models[i] != models[i - 1]):
            ax.axhline(edge - 0.5, color="white", linewidth=1)
            ax.axvline(edge - 0.5, color="white", linewidth=1)
        ax.set_title(title)
        ax.grid(False)
        bar = figure.colorbar(image, ax=ax, orientation="horizontal", pad=0.04, shrink=0.9)
        bar.set_label("JS divergence (nats)")
        bar.ax.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _whole_decades(values: np.ndarray) -> tuple[float, float]:
    """Powers of ten that enclose some positive values."""
    return 10.0 ** np.floor(np.log10(values.min())), 10.0 ** np.ceil(np.log10(values.max()))


def contrast_by_stage(table: pd.DataFrame) -> Figure:
    """Divergence between and within families at each stage, a panel a view, two standard errors.

    ``table``: view, stage, quantity, mean, standard_error.
    """
    quantities, stages = (table[column].unique() for column in ("quantity", "stage"))
    figure, axes, parts = facets(table, "view", 2.3)
    styles = [("black", "o-"), ("0.45", "s-"), (FAMILY["MLP-mixer"], "^:"), ("0.7", "d--")]
    for ax, seen in zip(axes, parts.values(), strict=True):
        for i, (quantity, (color, style)) in enumerate(zip(quantities, styles, strict=False)):
            part = seen[seen["quantity"] == quantity].set_index("stage").reindex(stages)
            x, error = np.arange(len(stages)) + 0.06 * (i - 1.5), 2 * part["standard_error"]
            ax.errorbar(x, part["mean"], error, fmt=style, color=color, ms=3.5, label=quantity)
        ax.set_yscale("log")
        means = seen["mean"]
        ax.set_ylim(*_whole_decades(np.outer([0.6, 1.6], means[means > 0])))
        ax.set_xticks(range(len(stages)), stages)
        ax.set_xlabel("stage of training")
    axes[0].set_ylabel("JS divergence (nats)")
    legend(figure, axes[0], "lower", 2)
    return figure
