"""The gap between SGD and AdamW against what might predict it."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from companion.figures.panels import MODEL, legend, panels, typeset

MARKERS = ("o", "s", "^", "D", "v", "P")


def gap_by_predictor(table: pd.DataFrame, clear: float) -> Figure:
    """Draw the gap against each predictor, a panel each; models held out are hollow.

    ``table`` as `companion.experiments.predictors.collected` returns it; ``clear`` is the gap from
    which SGD is clearly worse, a dashed line.
    """
    groups = table.groupby("predictor", sort=False)
    figure, axes = panels(len(groups), 4, 1.8, sharey=True)
    for ax, (name, part) in zip(axes, groups, strict=True):
        ax.axhline(clear, color="0.4", linewidth=0.8, linestyle="--")
        for marker, (base, points) in zip(MARKERS, part.groupby("base", sort=False), strict=False):
            ax.plot([], [], marker, color=MODEL[base], ms=4, label=base)
            for one in points.itertuples():
                face = "white" if one.held_out else MODEL[base]
                x, y = (2 * one.value_error, 2 * one.gap_error)
                bars = {"elinewidth": 0.6, "ms": 4, "mfc": face, "mew": 0.9}
                ax.errorbar(one.value, one.gap, y, x, marker, color=MODEL[base], **bars)
        if "JS⁰" in name:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=5))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(typeset(name).replace(" (", "\n("))
    for ax in axes[::4]:
        ax.set_ylabel("gap (share of\nAdamW's progress)")
    axes[0].set_ylim(bottom=max(-0.5, axes[0].get_ylim()[0]))  # one long bar would flatten all
    legend(figure, axes[0])
    return figure
