"""Figures of full spectra: models over each other at each stage, and how far apart they are."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from blockspectra.distance import SIGMA, signed_log
from blockspectra.plotting.style import FAMILY, PAGE, legend, panels
from blockspectra.spectra import Spectra
from companion.spectrum_similarity import FLOOR, View, normalised

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # models of one family, in the order they come


def linear_densities(
    measured: Sequence[Spectra], normalise: bool, points: int = 400
) -> pd.DataFrame:
    """Densities of full spectra on a linear axis that all share, one row a model, stage and point.

    Parameters
    ----------
    measured : sequence of Spectra
        One a model, a stage a block.
    normalise : bool
        Eigenvalues divided by λ₁₀, or as they are.
    points : int

    Returns
    -------
    DataFrame
        model, family, stage, position, density (per unit of position). The width of the Gaussian
        is 1/200 of the axis.
    """
    every = [normalised(one) if normalise else one for one in measured]
    low = min(one.quadrature[0].min() for one in every)
    high = max(one.quadrature[0].max() for one in every)
    sigma = (high - low) / 200
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, points + 1)
    return _table(every, edges, sigma, None)


def viewed_densities(measured: Sequence[Spectra], view: View, points: int = 300) -> pd.DataFrame:
    """Densities on the signed-log axis of a view, as its divergences see them; as above."""
    every = [view.weighed(normalised(one)) for one in measured]
    top = max(np.abs(one.quadrature[0]).max() for one in every)
    reach, sigma = signed_log(top, FLOOR), SIGMA["signed-log"]
    edges = np.linspace(-reach - 4 * sigma, reach + 4 * sigma, points + 1)
    return _table(every, edges, sigma, lambda nodes: signed_log(nodes, FLOOR))


def _table(every, edges, sigma, transform) -> pd.DataFrame:
    middle, parts = (edges[1:] + edges[:-1]) / 2, []
    for one in every:
        density = one.mass(edges, sigma, transform).mean(1) / np.diff(edges)  # (stage, point)
        parts += [
            pd.DataFrame({"stage": stage, "position": middle, "density": row}).assign(
                model=one.meta["title"], family=one.meta["family"]
            )
            for stage, row in zip(one.names, density, strict=True)
        ]
    return pd.concat(parts, ignore_index=True)


def full_spectra(
    rows: Mapping[str, tuple[pd.DataFrame, tuple[float, float]]], *, signed: bool = False
) -> Figure:
    """All models over each other: a column a stage, a row a kind of axis, axes shared in a row.

    Parameters
    ----------
    rows : mapping
        Label of the x axis → (densities, limits of the density).
    signed : bool
        The axes are signed-log ones, in units of λ₁₀.
    """
    stages = list(dict.fromkeys(next(iter(rows.values()))[0]["stage"]))
    figure, axes = plt.subplots(
        *(len(rows), len(stages)),
        figsize=(PAGE, 1.55 * len(rows) + 0.4),
        sharex="row",
        sharey="row",
        squeeze=False,
    )
    for line, (label, (densities, limits)) in zip(axes, rows.items(), strict=True):
        for ax, stage in zip(line, stages, strict=True):
            part = densities[densities["stage"] == stage]
            for (model, family), one in part.groupby(["model", "family"], sort=False):
                dashes = _dashes(part, model, family)
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


def _dashes(part: pd.DataFrame, model: str, family: str):
    relatives = list(dict.fromkeys(part.loc[part["family"] == family, "model"]))
    return _DASHES[relatives.index(model) % len(_DASHES)]


def stage_distances(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Heat-maps of the divergence between each two models and stages, a panel a view.

    Parameters
    ----------
    matrices : mapping
        Title → labelled matrix; labels are "model, stage", a model's stages next to each other.
    """
    figure, axes = panels(len(matrices), None, 2.65)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        values = matrix.to_numpy()
        low, high = (10.0**end for end in _decades(values[values > 1e-6]))
        image = ax.imshow(
            np.maximum(values, low),
            cmap="rocket_r",
            norm=LogNorm(low, high),
            interpolation="nearest",
        )
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


def _decades(values: np.ndarray) -> tuple[int, int]:
    """Whole decades, as exponents, that hold all of some positive values."""
    return int(np.floor(np.log10(values.min()))), int(np.ceil(np.log10(values.max())))


def contrast_by_stage(table: pd.DataFrame) -> Figure:
    """Divergence between and within families at each stage, a panel a view, two standard errors.

    Parameters
    ----------
    table : DataFrame
        view, stage, quantity, mean, standard_error.
    """
    views = list(dict.fromkeys(table["view"]))
    quantities = list(dict.fromkeys(table["quantity"]))
    stages = list(dict.fromkeys(table["stage"]))
    figure, axes = panels(len(views), None, 2.3)
    styles = [("black", "o-"), ("0.45", "s-"), (FAMILY["MLP-mixer"], "^:"), ("0.7", "d--")]
    for ax, view in zip(axes, views, strict=True):
        for i, (quantity, (color, style)) in enumerate(zip(quantities, styles, strict=False)):
            part = table[(table["view"] == view) & (table["quantity"] == quantity)]
            ax.errorbar(
                np.arange(len(stages)) + 0.06 * (i - 1.5),
                part.set_index("stage")["mean"].reindex(stages),
                yerr=2 * part.set_index("stage")["standard_error"].reindex(stages),
                fmt=style,
                color=color,
                ms=3.5,
                label=quantity,
            )
        ax.set_yscale("log")
        means = table.loc[table["view"] == view, "mean"]
        shown = np.outer([0.6, 1.6], means[means > 0])
        ax.set_ylim(*(10.0**end for end in _decades(shown)))
        ax.set_xticks(range(len(stages)), stages)
        ax.set(title=view, xlabel="stage of training")
    axes[0].set_ylabel("JS divergence (nats)")
    legend(figure, axes[0], "lower", 2)
    return figure
