"""Figures of training: loss curves, what the searches looked like, what closes a gap."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspectra.plotting.style import COLORBLIND, COLUMN, PAGE
from companion.figures.panels import MODEL, legend, panels, typeset
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
    names = list(dict.fromkeys(table["panel"]))
    width = PAGE * min(columns or 3, len(names), 3) / 3
    figure, axes = panels(len(names), columns, 1.85, width=width)
    for ax, panel in zip(axes, names, strict=True):
        part = table[(table["panel"] == panel) & np.isfinite(table["loss"])]
        for name, one in part.groupby("optimizer", sort=False):
            loss = one.groupby("step")["loss"].agg(["min", "median", "max"])
            color = OPTIMIZER[name]
            ax.plot(loss["median"], color=color, label=OPTIMIZERS[name].title)
            band = {"color": color, "alpha": 0.2, "linewidth": 0}
            ax.fill_between(loss.index, loss["min"], loss["max"], **band)
        ax.set_title(panel)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def gap_along_training(table: pd.DataFrame, on_par: float, clearly_worse: float) -> Figure:
    """Gap against step, a panel a model: median over seeds, with a band from least to largest.

    ``table``: panel, seed, step, gap (share of AdamW's progress). The thresholds are drawn as
    lines, dotted and dashed.
    """
    names = [name for name in MODEL if name in set(table["panel"])]
    shared = {"sharex": True, "sharey": True}
    figure, axes = panels(len(names), None, 1.5, width=PAGE * min(3, len(names)) / 3, **shared)
    for ax, panel in zip(axes, names, strict=True):
        gap = table[table["panel"] == panel].groupby("step")["gap"].agg(["min", "median", "max"])
        ax.plot(gap["median"], color=MODEL[panel])
        ax.fill_between(gap.index, gap["min"], gap["max"], color=MODEL[panel], alpha=0.25, lw=0)
        for height, style in ((0, "-"), (on_par, ":"), (clearly_worse, "--")):
            ax.axhline(height, color="0.4", linewidth=0.8, linestyle=style)
        ax.set_title(panel)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("gap (share of AdamW's progress)", fontsize=8)
    return figure


def gap_map(table: pd.DataFrame, clearly_worse: float) -> Figure:
    """Gap by steps and batch, a panel a model, in colours that part at the threshold.

    ``table``: panel, batch, steps, gap, error; the numbers stand in the cells.
    """
    names = list(dict.fromkeys(table["panel"]))
    figure, axes = panels(len(names), None, 1.9, width=PAGE * min(3, len(names)) / 3, sharey=True)
    for ax, panel in zip(axes, names, strict=True):
        part = table[table["panel"] == panel]
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
        ax.set(title=panel, xlabel="steps", ylabel="batch" if ax is axes[0] else "")
    return figure


def rate_search(table: pd.DataFrame) -> Figure:
    """Draw final loss against learning rate, a panel a model; a cross at the top has diverged.

    ``table``: panel, optimizer, rate, seed, score (nats, ``inf`` where diverged), part. Lines join
    the runs of the first seed, dots are the further seeds of the search, diamonds the fresh ones at
    the best rate.
    """
    names = list(dict.fromkeys(table["panel"]))
    figure, axes = panels(len(names), None, 1.85, width=PAGE * min(3, len(names)) / 3, sharex=True)
    runs = table.drop_duplicates(["panel", "optimizer", "rate", "seed", "part"])
    for ax, panel in zip(axes, names, strict=True):
        part = runs[runs["panel"] == panel]
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
        ax.set_title(panel)
    figure.supxlabel("largest learning rate", fontsize=8)
    figure.supylabel("final training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def gap_closed(table: pd.DataFrame) -> Figure:
    """Draw the final losses of several ways to train, a panel a model: seeds, and their mean.

    ``table``: panel, arm, optimizer, seed, score (nats, ``inf`` where diverged: not drawn). Dashed
    are the means of the optimizers that have a colour: SGD with momentum, and AdamW.
    """
    names, arms = (list(dict.fromkeys(table[column])) for column in ("panel", "arm"))
    height = 0.6 + 0.17 * len(arms)
    figure, axes = panels(len(names), 3, height, width=max(PAGE * min(3, len(names)) / 3, COLUMN))
    for ax, panel in zip(axes, names, strict=True):
        part = table[(table["panel"] == panel) & np.isfinite(table["score"])]
        for (arm, optimizer), one in part.groupby(["arm", "optimizer"], sort=False):
            color, row = OPTIMIZER.get(optimizer, "0.3"), arms.index(arm)
            ax.plot(one["score"], [row] * len(one), "o", ms=3, mfc="none", color=color)
            ax.plot(one["score"].mean(), row, "|", ms=9, mew=1.5, color=color)
            if optimizer in OPTIMIZER:
                ax.axvline(one["score"].mean(), color=color, lw=0.8, ls="--")
        ax.set_yticks(range(len(arms)), map(typeset, arms) if ax in axes[::3] else [])
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_title(panel)
    figure.supxlabel("final training loss (nats)", fontsize=8)
    return figure
