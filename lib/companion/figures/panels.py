"""Figures of several panels with one legend, their axes, and plain curves."""

import re
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from blockspectra.plotting.style import COLORBLIND, COLUMN, FAMILY, PAGE

MODEL = {  # shades of the family's colour; markers or dashes tell them apart too
    "VGG": FAMILY["CNN"],
    "ResNet": COLORBLIND[9],
    "MLP-mixer": FAMILY["MLP-mixer"],
    "ViT": "#7a3500",
    "BERT": "#f2996b",
    "GPT2-nano": "#b03060",
    "GPT": FAMILY["Transformer"],
}


def panels(
    count: int,
    columns: int | None,
    height: float,
    *,
    width: float = PAGE,
    **shared: bool | str,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of some panels in rows; places left over stay empty.

    ``columns`` panels at most in a row, all in one if None; ``height`` of a row and ``width`` of
    the figure in inches; ``shared``: ``sharex`` and ``sharey`` of matplotlib.
    """
    columns = min(columns or count, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, **shared
    )
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:count])


def legend(
    figure: Figure, ax: Axes, where: str = "upper", ncols: int | None = None, **settings
) -> None:
    """Put one legend for all panels above or below them (``where``), with the entries of one.

    ``ncols`` entries in a row, by default all; further settings are those of `Figure.legend`.
    """
    handles, labels = ax.get_legend_handles_labels()
    settings |= {"loc": f"outside {where} center", "ncols": ncols or len(labels)}
    figure.legend(handles, [typeset(label) for label in labels], frameon=False, **settings)
    if ax.get_legend():
        ax.get_legend().remove()


def typeset(text: str) -> str:
    """Set what follows an underscore or a caret, as in λ_max and 10^0.5, lower or higher."""
    text = re.sub(r"(?<=[λκ])_(\w+)", r"$_\\mathrm{\1}$", text)
    return re.sub(r"\^([\d.]+)", r"$^{\1}$", text)


def lines(
    table: pd.DataFrame,
    columns: Mapping[str, tuple[str, str]],
    *,
    x: str,
    hue: str,
    xlabel: str,
    log: str = "xy",
    guide: float | None = None,
    markers: bool = True,
) -> Figure:
    """Curves in panels that share their x axis: seaborn lines, with bands if repeated.

    Panels whose y axes have one label share that axis too. Models have the colours of `MODEL`.

    Parameters
    ----------
    table : DataFrame
        Tidy: columns ``x``, ``hue`` and one a panel.
    columns : mapping
        Column of a panel → (title, label of the y axis with its unit).
    log : {"xy", "x", "y", ""}
        Logarithmic axes.
    guide : float, optional
        A vertical line at this x.
    markers : bool
        A dot at each point.
    """
    hues = list(dict.fromkeys(table[hue]))
    wide = len(columns) > 1 or len(hues) > 4
    shared = {"sharex": True, "sharey": len({label for _, label in columns.values()}) == 1}
    figure, axes = panels(len(columns), None, 2.2, width=PAGE if wide else COLUMN, **shared)
    of_models = all(name in MODEL for name in hues)
    for ax, (column, (title, label)) in zip(axes, columns.items(), strict=True):
        part = table[[x, hue, column]].dropna()
        sns.lineplot(
            part,
            x=x,
            y=column,
            hue=hue,
            hue_order=[name for name in MODEL if name in hues] if of_models else None,
            palette={name: MODEL[name] for name in hues} if of_models else None,
            style=hue,
            markers=markers,
            dashes=not markers,
            ms=4,
            ax=ax,
            errorbar=("pi", 80),
            estimator="median",
            mew=0,
            legend=ax is axes[0],
        )
        ax.set(title=typeset(title), xlabel=typeset(xlabel), ylabel=typeset(label))
        for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            if name in log:
                getattr(ax, f"set_{name}scale")("log")
                values = part[x if name == "x" else column]
                plain_ticks(axis, values.max() / values[values > 0].min())
        if guide is not None:
            ax.axvline(guide, color="0.4", linewidth=0.8, linestyle=":")
    legend(figure, axes[0], "lower", 6 if wide else 2)
    return figure


def decades(ax: Axes, values: pd.Series) -> None:
    """Widen a logarithmic axis to whole decades, so that at least two of them carry a label."""
    low, high = np.floor(np.log10(values.min() * 0.8)), np.ceil(np.log10(values.max() * 1.25))
    ax.set_xlim(10**low, 10**high)
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_formatter(NullFormatter())


def plain_ticks(axis: Axis, span: float) -> None:
    """Label powers of ten, and where these are fewer than three, 1, 2 and 5 times them."""
    if span < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
