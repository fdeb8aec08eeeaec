"""Figures of training: loss curves, what the searches looked like, what closes a gap."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from blockspectra.plotting.style import COLORBLIND, COLUMN, PAGE
from companion.figures.panels import MODEL, facets, legend, median_and_range, typeset
from companion.training import OPTIMIZERS

OPTIMIZER = {  # colours of families and of optimizers do not meet
    "sgd": COLORBLIND[7],
    "momentum": COLORBLIND[4],
    "adam": COLORBLIND[2],
    "adamw": COLORBLIND[2],
}


def training_curves(table: pd.DataFrame, columns: int | None = None) -> Figure:
    """Loss against step, a panel a model: median over seeds, with a band from least to largest.

    ``table``: panel, optimizer, seed, step, loss (nats); a run that diverged is drawn until there.
    """
    figure, axes, parts = _thirds(table, 1.85, columns=columns)
    for ax, part in zip(axes, parts.values(), strict=True):
        for name, one in part[np.isfinite(part["loss"])].groupby("optimizer", sort=False):
            line = {"color": OPTIMIZER[name], "label": OPTIMIZERS[name].title}
            median_and_range(ax, one.set_index("step")["loss"], 0.2, **line)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def gap_along_training(table: pd.DataFrame, on_par: float, clearly_worse: float) -> Figure:
    """Gap against step, a panel a model: median over seeds, with a band from least to largest.

    ``table``: panel, seed, step, gap (share of AdamW's progress). The thresholds are drawn as
    lines, dotted and dashed. The axis spans the medians: a spike of one seed is cut.
    """
    medians = table.groupby(["panel", "step"])["gap"].median()
    figure, axes, parts = _thirds(table, 1.5, order=MODEL, sharex=True, sharey=True)
    for ax, (panel, part) in zip(axes, parts.items(), strict=True):
        median_and_range(ax, part.set_index("step")["gap"], 0.25, color=MODEL[panel])
        for height, style in ((0, "-"), (on_par, ":"), (clearly_worse, "--")):
            ax.axhline(height, color="0.4", linewidth=0.8, linestyle=style)
        ax.set_ylim(min(medians.min(), 0) - 0.1, max(medians.max(), clearly_worse) + 0.1)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("gap (share of AdamW's progress)", fontsize=8)
    return figure


def gap_map(table: pd.DataFrame, clearly_worse: float) -> Figure:
    """Gap by steps and batch, a panel a model, in colours that part at the threshold.

    ``table``: panel, batch, steps, gap, error; the numbers stand in the cells.
    """
    figure, axes, parts = _thirds(table, 1.9, sharey=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        shape = {"index": "batch", "columns": "steps"}
        values = part.pivot_table("gap", **shape)
        values = values.reindex(index=sorted(set(table["batch"]), reverse=True))
        values = values.reindex(columns=sorted(set(table["steps"])))
        shown = part.assign(text=[f"{g:.2f}\n±{e:.2f}" for g, e in part[["gap", "error"]].values])
        texts = shown.pivot_table("text", **shape, aggfunc="first").reindex_like(values).fillna("")
        sns.heatmap(
            values,
            annot=texts,
            fmt="",
            cmap="RdBu_r",
            center=clearly_worse,
            vmin=0,
            vmax=2 * clearly_worse,
            annot_kws={"size": 7},
            cbar=False,
            ax=ax,
        )
        ax.set(xlabel="steps", ylabel="batch" if ax is axes[0] else "")
    return figure


def rate_search(table: pd.DataFrame) -> Figure:
    """Draw final loss against learning rate, a panel a model; a cross at the top has diverged.

    ``table``: panel, optimizer, rate, seed, score (nats, ``inf`` where diverged), part. Lines join
    the runs of the first seed, dots are the further seeds of the search, diamonds the fresh ones at
    the best rate.
    """
    runs = table.drop_duplicates(["panel", "optimizer", "rate", "seed", "part"])
    figure, axes, parts = _thirds(runs, 1.85, sharex=True)
    for ax, part in zip(axes, parts.values(), strict=True):
        top = part["score"][np.isfinite(part["score"])].max() * 1.05
        for name, one in part.groupby("optimizer", sort=False):
            color, one = OPTIMIZER[name], one.assign(drawn=one["score"].clip(upper=top))
            searched, best = one[one["part"] == "search"], one[one["part"] == "best"]
            all_rates = searched["seed"] == searched["seed"].iloc[0]  # others: the two best only
            line, again = searched[all_rates], searched[~all_rates]
            diverged = line[~np.isfinite(line["score"])]
            label = OPTIMIZERS[name].title
            ax.plot(line["rate"], line["drawn"], "-o", ms=3, color=color, label=label)
            ax.plot(again["rate"], again["drawn"], ".", ms=4, color=color)
            ax.plot(diverged["rate"], diverged["drawn"], "x", ms=5, color=color)
            ax.plot(best["rate"], best["drawn"], "D", mfc="none", ms=4, color=color)
        ax.set_xscale("log")
    figure.supxlabel("largest learning rate", fontsize=8)
    figure.supylabel("final training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def gap_closed(table: pd.DataFrame) -> Figure:
    """Draw the final losses of several ways to train, a panel a model: seeds, and their mean.

    ``table``: panel, arm, optimizer, seed, score (nats), diverged (these are crosses). Dashed are
    the means of the optimizers that have a colour: SGD with momentum, and AdamW.
    """
    arms = list(dict.fromkeys(table["arm"]))
    width = max(PAGE * min(3, table["panel"].nunique()) / 3, COLUMN)
    figure, axes, parts = _thirds(table, 0.6 + 0.17 * len(arms), 3, width=width)
    for ax, part in zip(axes, parts.values(), strict=True):
        ax.set_xscale("log")  # one arm may end far above the others
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        for (arm, optimizer), one in part.groupby(["arm", "optimizer"], sort=False):
            color, row = OPTIMIZER.get(optimizer, "0.3"), arms.index(arm)
            for marker, which in (("o", ~one["diverged"]), ("x", one["diverged"])):
                seeds = one.loc[which, "score"]
                ax.plot(seeds, [row] * len(seeds), marker, ms=3, mfc="none", color=color)
            ax.plot(one["score"].mean(), row, "|", ms=9, mew=1.5, color=color)
            if optimizer in OPTIMIZER:
                ax.axvline(one["score"].mean(), color=color, lw=0.8, ls="--")
        ax.set_yticks(range(len(arms)), map(typeset, arms) if ax in axes[::3] else [])
        ax.set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel("final training loss (nats)", fontsize=8)
    return figure


def _thirds(table: pd.DataFrame, height: float, columns: int | None = None, **layout: Any):
    """Make `facets` of ``table["panel"]``, each a third of the page wide."""
    wide = min(3, columns or 3, table["panel"].nunique()) / 3
    return facets(table, "panel", height, columns, **{"width": PAGE * wide} | layout)
