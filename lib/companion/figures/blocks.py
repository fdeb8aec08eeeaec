"""Numbers of every block of several models, a panel a model."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from blockspectra.plotting.style import COLORBLIND, MODEL, legend, panels, typeset

MARKERS = "oDs"


def numbers_by_block(table: pd.DataFrame, labels: Mapping[str, str], ylabel: str) -> Figure:
    """One or more positive numbers of every block, on a logarithmic axis that panels share.

    ``table``: model, number (position of the block), and a column for each key of ``labels``.
    """
    models = [name for name in MODEL if name in set(table["model"])]
    figure, axes = panels(len(models), 4 if len(models) > 6 else 3, 1.7, sharey=True)
    for ax, model in zip(axes, models, strict=True):
        part = table[table["model"] == model]
        for i, (column, label) in enumerate(labels.items()):
            line = {"color": COLORBLIND[(7, 2, 4)[i]], "marker": MARKERS[i], "ms": 3}
            ax.plot(part["number"], part[column], label=label, linewidth=0.5, **line)
        ax.set(title=model, yscale="log")
    figure.supxlabel("block, from input to output", fontsize=8)
    figure.supylabel(typeset(ylabel), fontsize=8)
    legend(figure, axes[0])
    return figure
