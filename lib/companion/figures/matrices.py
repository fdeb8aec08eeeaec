"""Figures of Hessian matrices: heat-maps with their blocks, and the mass inside the blocks."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from blockspectra.plotting.style import PAGE
from companion.figures.panels import facets, legend, panels

#: decades below the largest cell that heat-maps show
DECADES = 4


def hessian_maps(picture: pd.DataFrame) -> Figure:
    """Heat-maps of log₁₀ |entry|: a row the hidden layer, the output layer, both; a column a stage.

    ``picture``: stage, layer, block, then a column a column of cells, of a `HessianImage`.
    Every map is relative to its largest cell.
    """
    stages = list(dict.fromkeys(picture["stage"]))
    layout = {"squeeze": False, "sharex": "row", "sharey": "row"}
    figure, axes = plt.subplots(3, len(stages), figsize=(PAGE, 2.15 * 3), **layout)
    for stage, column in zip(stages, axes.T, strict=True):
        part = picture[picture["stage"] == stage].reset_index(drop=True)
        values = part.drop(columns=["stage", "layer", "block"]).to_numpy()
        for layer, ax in zip(("hidden", "output", "both"), column, strict=True):
            rows = part.index[(part["layer"] == layer) | (layer == "both")]
            chosen = values[np.ix_(rows, rows)]
            shown = (chosen - chosen.max()).clip(-DECADES, 0)  # an entry of 0 is −∞ before
            style = {"cmap": "rocket_r", "interpolation": "nearest"}
            image = ax.imshow(shown, vmin=-DECADES, vmax=0, **style)
            _outline(ax, part["block"][rows].to_numpy())
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    for ax, stage in zip(axes[0], stages, strict=True):
        ax.set_title(f"{stage} % of training")
    for ax, label in zip(axes[:, 0], ("hidden layer", "output layer", "both"), strict=True):
        ax.set_ylabel(label)
    bar = figure.colorbar(image, ax=axes, ticks=range(-DECADES, 1), shrink=0.4, pad=0.01)
    bar.set_label("mean |entry| / largest of the map")
    bar.set_ticklabels([f"$10^{{{k}}}$" for k in range(-DECADES, 0)] + ["1"])
    return figure


def _outline(ax: Axes, blocks: np.ndarray) -> None:
    """Outline diagonal blocks that are larger than one cell."""
    for block in np.unique(blocks):
        (rows,) = np.nonzero(blocks == block)
        if len(rows) > 1:
            corner = (rows[0] - 0.5, rows[0] - 0.5)
            ax.add_patch(Rectangle(corner, len(rows), len(rows), fill=False, ec="C0", lw=0.7))


def share_by_stage(table: pd.DataFrame) -> Figure:
    """Share of the mass in the diagonal blocks against the stage, a panel a task.

    ``table``: panel, layer, stage, seed, share, permuted (what permuted rows would give).
    """
    named = table.astype({"stage": str})
    figure, axes, parts = facets(named, "panel", 2.2, sharey=True, sharex=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        shared = {"x": "stage", "hue": "layer", "ax": ax, "lw": 1.0, "ms": 4, "dodge": 0.2}
        points = {"markers": ["o", "s", "D"], "linestyles": "-", "legend": ax is axes[0]}
        sns.pointplot(part, y="share", errorbar=("se", 2), **points, **shared)
        shared |= {"linestyles": ":", "legend": False, "markers": ""}
        sns.pointplot(part, y="permuted", errorbar=None, **shared)
        ax.axhline(0.9, color="0.4", linewidth=0.8, linestyle="--", label="threshold")
        ax.plot([], [], ":", color="0.4", label="rows permuted")
        ax.set(xlabel="% of training", ylabel="share in the blocks", ylim=(0, 1.06))
        ax.margins(x=0.12)
    legend(figure, axes[0], "lower")
    return figure


def outside_by_classes(table: pd.DataFrame, shown: Mapping[str, tuple[str, str]]) -> Figure:
    """Share of the mass outside the diagonal blocks against the number of classes.

    ``table``: task, loss, layer, classes, seed, share, permuted; ``shown``: title of a panel →
    (loss, layer). Dotted what permuted rows would give, grey what even predictions give in the
    output layer, 1 / classes. Lines join the points of a task that has more than three.
    """
    figure, axes = panels(len(shown), None, 2.3, sharey=True, sharex=True)
    order = ("images", "text", "pairs", "clusters", "gaussian")
    tasks = [task for task in order if task in set(table["task"])]
    for ax, (title, (loss, layer)) in zip(axes, shown.items(), strict=True):
        part = table[(table["loss"] == loss) & (table["layer"] == layer)]
        for i, task in enumerate(tasks):
            one = part[part["task"] == task].groupby("classes")[["share", "permuted"]]
            mean, error = 1 - one.mean(), 2 * one.sem()["share"]
            style = {"color": f"C{i}", "marker": "os^Dv"[i], "ms": 4, "mfc": "none", "capsize": 2}
            style["linestyle"] = "-" if len(mean) > 3 else "none"
            ax.errorbar(mean.index, mean["share"], error, label=task, **style)
            if len(mean) > 3:
                ax.plot(mean.index, mean["permuted"], color=f"C{i}", linestyle=":")
            else:
                ax.plot(mean.index, mean["permuted"], "_", ms=6, color=f"C{i}")
        ax.axhline(0.1, color="0.4", linewidth=0.8, linestyle="--", label="threshold")
        ax.plot([], [], ":", color="0.4", label="rows permuted")
        grey = {"color": "0.6", "linewidth": 2.5, "alpha": 0.6, "zorder": 0}
        classes = np.array(sorted(part["classes"].unique() if layer == "output" else []))
        ax.plot(classes, 1 / classes, **grey, label="1 / classes")
        ax.set(title=title, xlabel="classes", xscale="log", yscale="log")
        ax.set_xticks([2, 10, 100], ["2", "10", "100"])
        ax.minorticks_off()
    axes[0].set_ylabel("share outside the blocks")
    legend(figure, axes[0], "lower")
    return figure
