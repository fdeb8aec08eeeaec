"""Figures of the man-made MLP: accuracy and heterogeneity against the knob, and the searches."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from blockspectra.plotting.style import COLUMN
from companion.figures.panels import facets, legend, median_and_range
from companion.figures.training import OPTIMIZER
from companion.training import OPTIMIZERS

#: measure of heterogeneity → label and scale of its axis
HETEROGENEITY = {
    "js": ("JS⁰\n(nats)", "log"),
    "sum": ("JS⁰ as an un-\nnormalised sum", "log"),
    "spread": ("spread of\nλ$_\\mathrm{max}$ (decades)", "linear"),
}


def accuracy_against_knob(accuracies: pd.DataFrame, curvature: pd.DataFrame) -> Figure:
    """Test accuracy and heterogeneity against c, one above the other on one axis.

    ``accuracies``: c, optimizer, seed, accuracy (share). ``curvature``: c, measure (a key of
    `HETEROGENEITY`), mean, standard_error.
    """
    layout = {"sharex": True, "height_ratios": (2, *[1] * len(HETEROGENEITY))}
    figure, axes = plt.subplots(1 + len(HETEROGENEITY), 1, figsize=(COLUMN, 6.2), **layout)
    _accuracy(axes[0], accuracies, "c")
    axes[0].set(ylabel="test accuracy (%)", xscale="log")
    for ax, (measure, (label, scale)) in zip(axes[1:], HETEROGENEITY.items(), strict=True):
        part = curvature[curvature["measure"] == measure]
        error = 2 * part["standard_error"]
        ax.errorbar(part["c"], part["mean"], error, fmt="o-", ms=3, color="0.25")
        ax.set(ylabel=label, yscale=scale)
        if scale == "log":  # whole decades, so that at least two carry a label
            low, high = np.log10(part["mean"]).agg(["min", "max"])
            ax.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(bottom=0)
        ax.xaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel("c: Hessian of a layer / Hessian of the one before")
    figure.align_ylabels()
    legend(figure, axes[0])
    return figure


def accuracy_against_spread(table: pd.DataFrame) -> Figure:
    """Test accuracy against how far the layers' rates differ, a panel a side of the knob.

    ``table``: side (title), ratio (of the largest to the smallest rate), optimizer, seed, accuracy.
    """
    figure, axes, parts = facets(table, "side", 2.3, sharex=True, sharey=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        _accuracy(ax, part, "ratio")
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    figure.supxlabel("largest rate of a layer / smallest, as on the plain MLP", fontsize=8)
    axes[0].set_ylabel("test accuracy (%)")
    legend(figure, axes[0])
    return figure


def accuracy_against_rate(table: pd.DataFrame) -> Figure:
    """Test accuracy against learning rate, a panel a value of c; a cross has diverged.

    ``table``: c, optimizer, rate, seed, part, accuracy (share), diverged. Lines are means over the
    seeds of the search, diamonds the fresh seeds at the best rate. The axis ends 20 points below
    the least of these; what has diverged is drawn there.
    """
    ordered = table.sort_values("c", kind="stable")
    figure, axes, parts = facets(ordered, "c", 1.7, sharex=True, sharey=True)
    bottom = max(0, 100 * table[table["part"] == "best"]["accuracy"].min() - 20)
    for ax, (c, runs) in zip(axes, parts.items(), strict=True):
        for name, part in runs.groupby("optimizer", sort=False):
            color = OPTIMIZER[name]
            search, best = part[part["part"] == "search"], part[part["part"] == "best"]
            mean = search.groupby("rate").agg({"accuracy": "mean", "diverged": "any"})
            ax.plot(100 * mean["accuracy"], "-o", ms=2.5, color=color, label=OPTIMIZERS[name].title)
            lost = mean[mean["diverged"]]
            ax.plot(lost.index, [bottom] * len(lost), "x", ms=5, color=color)
            style = {"mfc": "none", "ms": 5, "mew": 0.6, "color": color}
            ax.plot(best["rate"], 100 * best["accuracy"], "D", **style)
        ax.set(title=f"c = {c:g}", xscale="log", ylim=(bottom - 2, 101))
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        ax.xaxis.set_minor_locator(NullLocator())
    figure.supxlabel("largest learning rate", fontsize=8)
    figure.supylabel("test accuracy (%)", fontsize=8)
    legend(figure, axes[0])
    return figure


def _accuracy(ax: Axes, table: pd.DataFrame, x: str) -> None:
    for name, part in table.groupby("optimizer", sort=False):
        line = {"color": OPTIMIZER[name], "label": OPTIMIZERS[name].title, "marker": "o", "ms": 3}
        median_and_range(ax, 100 * part.set_index(x)["accuracy"], 0.25, **line)
