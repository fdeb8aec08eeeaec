"""Costs as ratios: bars with the extremes of their rounds, and growth in proportion."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockspectra.plotting.style import COLORBLIND, COLUMN, PAGE
from companion.figures.panels import facets, panels, plain_ticks


def cost_ratios(
    table: pd.DataFrame, *, label: str, value: str, xlabel: str, goal: float | None = None
) -> Figure:
    """Horizontal bars of medians, one colour a place, with whiskers to the extremes.

    ``table``: the columns ``label`` (what a bar is called) and ``value`` (its length), low, high,
    place (``1 thread``, …), rows in the order wanted. A dashed line marks the goal.
    """
    names = list(dict.fromkeys(table[label]))
    figure, (ax,) = panels(1, 1, 0.6 + 0.24 * len(names), width=PAGE * 0.8)
    places = table["place"].nunique()
    width = 0.8 / places
    for i, (place, part) in enumerate(table.groupby("place", sort=False)):
        y = [names.index(name) + (i - (places - 1) / 2) * width for name in part[label]]
        reach = np.clip([part[value] - part["low"], part["high"] - part[value]], 0, None)
        bars = {"color": COLORBLIND[i], "label": place, "error_kw": {"lw": 0.8, "ecolor": "0.3"}}
        ax.barh(y, part[value], width * 0.9, xerr=reach, **bars)
    if goal is not None:
        ax.axvline(goal, color="0.2", linewidth=0.9, linestyle="--", label=f"goal {goal:g}")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="best", frameon=True)
    return figure


def cost_growth(table: pd.DataFrame) -> Figure:
    """Cost against how much there is of each thing, with a line for growth in proportion.

    ``table``: what (a panel each), number, gradients (the cost) and place (``1 thread``, …).
    """
    figure, axes, parts = facets(table, "what", 2.0, 4, sharey=True)
    for ax, (kind, part) in zip(axes, parts.items(), strict=True):
        for i, (place, one) in enumerate(part.groupby("place", sort=False)):
            ax.plot(one["number"], one["gradients"], "o-", ms=3, color=COLORBLIND[i], label=place)
        last = part[part["place"] == part["place"].iloc[0]].iloc[-1]
        numbers = np.array(sorted(part["number"].unique()))
        straight = last["gradients"] * numbers / last["number"]
        ax.plot(numbers, straight, color="0.4", lw=0.8, ls=":", label="in proportion")
        ax.set(xscale="log", yscale="log", xlabel=kind, title=f"number of {kind}")
        ax.set_xticks(numbers, [f"{n:g}" for n in numbers])
        ax.minorticks_off()
    plain_ticks(axes[0].yaxis, 8)  # of one decade, a power of ten alone would be labelled
    axes[0].set_ylabel("cost (gradients)")
    axes[0].legend(frameon=True)
    return figure


def peak_memory(table: pd.DataFrame) -> Figure:
    """Peak memory of the process against the budget, with the 1.2 times allowed.

    ``table``: asked_MiB, peak_MiB; rows without a budget are left out.
    """
    part = table.dropna(subset=["asked_MiB"]).sort_values("asked_MiB")
    figure, (ax,) = panels(1, 1, 2.4, width=COLUMN)
    ends = np.array([0.8 * part["asked_MiB"].min(), 1.25 * part["asked_MiB"].max()])
    ax.plot(ends, ends, color="0.4", lw=0.8, ls=":", label="budget")
    ax.plot(ends, 1.2 * ends, color="0.2", lw=0.8, ls="--", label="1.2 × budget")
    ax.plot(part["asked_MiB"], part["peak_MiB"], "o", ms=4, label="measured")
    ax.set(xlabel="memory asked for (MiB)", ylabel="peak of the process (MiB)")
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(part["asked_MiB"], [f"{x:g}" for x in part["asked_MiB"]], rotation=45)
    ax.set_yticks(part["asked_MiB"], [f"{x:g}" for x in part["asked_MiB"]])
    ax.minorticks_off()
    ax.legend(frameon=True)
    return figure
