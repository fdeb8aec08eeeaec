"""Figures of training: loss curves of searched optimizers, and what the searches looked like."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockspectra.plotting.style import COLORBLIND, PAGE, legend, panels
from companion.training import OPTIMIZERS

OPTIMIZER = {  # colours of families and of optimizers do not meet
    "sgd": COLORBLIND[7],
    "momentum": COLORBLIND[4],
    "adam": COLORBLIND[2],
    "adamw": COLORBLIND[2],
}


def training_curves(table: pd.DataFrame, columns: int = 3) -> Figure:
    """Loss against step, a panel a model: median over seeds, with a band from least to largest.

    Parameters
    ----------
    table : DataFrame
        panel, optimizer, seed, step, loss (nats); a run that diverged is drawn until there.
    columns : int
        Panels in a row.
    """
    names = list(dict.fromkeys(table["panel"]))
    figure, axes = panels(len(names), columns, 1.85, width=_width(names, columns))
    for ax, panel in zip(axes, names, strict=True):
        part = table[(table["panel"] == panel) & np.isfinite(table["loss"])]
        for name, one in part.groupby("optimizer", sort=False):
            by_step = one.groupby("step")["loss"]
            ax.plot(by_step.median(), color=OPTIMIZER[name], label=OPTIMIZERS[name].title)
            ax.fill_between(
                by_step.min().index,
                by_step.min(),
                by_step.max(),
                color=OPTIMIZER[name],
                alpha=0.2,
                linewidth=0,
            )
        ax.set_title(panel)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def rate_search(table: pd.DataFrame, columns: int = 3) -> Figure:
    """Draw final loss against learning rate, a panel a model; a cross at the top has diverged.

    Lines join the runs of the first seed, dots are the further seeds of the search, diamonds the
    fresh ones at the best rate.

    Parameters
    ----------
    table : DataFrame
        panel, optimizer, rate, seed, score (nats, ``inf`` where diverged), part.
    columns : int
        Panels in a row.
    """
    names = list(dict.fromkeys(table["panel"]))
    figure, axes = panels(len(names), columns, 1.85, width=_width(names, columns), sharex=True)
    runs = table.drop_duplicates(["panel", "optimizer", "rate", "seed", "part"])
    for ax, panel in zip(axes, names, strict=True):
        part = runs[runs["panel"] == panel]
        top = part["score"][np.isfinite(part["score"])].max() * 1.05
        for name, one in part.groupby("optimizer", sort=False):
            searched = one[one["part"] == "search"]
            all_rates = searched["seed"] == searched["seed"].iloc[0]  # others: the two best only
            line = searched[all_rates].set_index("rate")["score"]
            drawn = line.clip(upper=top)
            ax.plot(drawn, "-o", ms=3, color=OPTIMIZER[name], label=OPTIMIZERS[name].title)
            again = searched[~all_rates]
            ax.plot(again["rate"], again["score"].clip(upper=top), ".", ms=4, color=OPTIMIZER[name])
            lost = drawn[~np.isfinite(line)]
            ax.plot(lost.index, lost, "x", ms=5, color=OPTIMIZER[name])
            best = one[one["part"] == "best"]
            ax.plot(
                best["rate"],
                best["score"].clip(upper=top),
                "D",
                mfc="none",
                ms=4,
                color=OPTIMIZER[name],
            )
        ax.set_xscale("log")
        ax.set_title(panel)
    figure.supxlabel("largest learning rate", fontsize=8)
    figure.supylabel("final training loss (nats)", fontsize=8)
    legend(figure, axes[0])
    return figure


def _width(names: list[str], columns: int) -> float:
    """Return a third of a page for each panel in a row, in inches."""
    return PAGE * min(columns, len(names)) / 3
