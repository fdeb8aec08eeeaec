"""The companion's style, its axes, and plain curves."""

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

from blockspectra.distance import FLOOR, signed_log

COLUMN, PAGE = 3.35, 7.0  # inches
_COLORBLIND = sns.color_palette("colorblind")
FAMILY = {"CNN": _COLORBLIND[0], "MLP-mixer": _COLORBLIND[1], "Transformer": _COLORBLIND[3]}
MODEL = {  # shades of the family's colour; markers or dashes tell them apart too
    "VGG": FAMILY["CNN"],
    "ResNet": _COLORBLIND[9],
    "MLP-mixer": FAMILY["MLP-mixer"],
    "ViT": "#7a3500",
    "BERT": "#f2996b",
    "GPT": FAMILY["Transformer"],
}
STYLE = {
    "axes.grid": True,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 8,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def use_style() -> None:
    """Set the companion's style for all figures that follow."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=STYLE)


def panels(
    count: int, columns: int, height: float, *, width: float = PAGE, **shared: bool
) -> tuple[Figure, list[Axes]]:
    """Make a figure of some panels in rows; places left over stay empty.

    Parameters
    ----------
    count, columns : int
        Panels in all, and at most in a row.
    height, width : float
        Of a row and of the figure, in inches.
    **shared
        ``sharex`` and ``sharey`` of matplotlib.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, **shared
    )
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:count])


def legend_above(figure: Figure, ax: Axes) -> None:
    """Put one legend for all panels above them, with the entries of one."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def typeset(text: str) -> str:
    """Set what follows an underscore or a caret, as in λ_max and 10^0.5, lower or higher."""
    text = re.sub(r"(?<=[λκ])_(\w+)", r"$_\\mathrm{\1}$", text)
    return re.sub(r"\^([\d.]+)", r"$^{\1}$", text)


def short(name: str) -> str:
    """Shorten a block's name for an axis: tied names to the first, modules that say nothing out."""
    first = name.split("=")[0]
    for silent in ("attn.c_attn.", "attn.qkv.", "attn.", "blocks.", "layer."):
        first = re.sub(rf"(?<![^.]){re.escape(silent)}", "", first)  # not the end of a longer word
    return first


def lines(
    table: pd.DataFrame,
    panels: Mapping[str, tuple[str, str]],
    *,
    x: str,
    hue: str,
    xlabel: str,
    log: str = "xy",
    guide: float | None = None,
    markers: bool = True,
) -> Figure:
    """Curves in panels side by side that share their x axis: seaborn lines, with bands if repeated.

    Panels whose y axes have one label share that axis too. Models have the colours of `MODEL`.

    Parameters
    ----------
    table : DataFrame
        Tidy: columns ``x``, ``hue`` and one a panel.
    panels : mapping
        Column → (title, label of the y axis with its unit).
    x, hue, xlabel : str
        Columns, and the label of the x axis.
    log : {"xy", "x", "y", ""}
        Logarithmic axes.
    guide : float, optional
        A vertical line at this x.
    markers : bool
        A dot at each point.
    """
    hues = list(dict.fromkeys(table[hue]))
    wide = len(panels) > 1 or len(hues) > 4
    figure, axes = plt.subplots(
        *(1, len(panels)),
        figsize=(PAGE if wide else COLUMN, 2.2),
        sharex=True,
        sharey=len({label for _, label in panels.values()}) == 1,
        squeeze=False,
    )
    of_models = all(name in MODEL for name in hues)
    for ax, (column, (title, label)) in zip(axes.flat, panels.items(), strict=True):
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
            legend=ax is axes.flat[0],
        )
        ax.set(title=typeset(title), xlabel=typeset(xlabel), ylabel=typeset(label))
        for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            if name in log:
                getattr(ax, f"set_{name}scale")("log")
                values = part[x if name == "x" else column]
                plain_ticks(axis, values.max() / values[values > 0].min())
        if guide is not None:
            ax.axvline(guide, color="0.4", linewidth=0.8, linestyle=":")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[0].get_legend().remove()
    labels = [typeset(label) for label in labels]
    columns = 6 if wide else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def signed_log_ticks(ax: Axes) -> None:
    """Label a signed-log axis by eigenvalue shares: −1, 0 and 1, with a tick a decade between."""
    shares = np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    labels = ["−1", "", "", "0", "", "", "1"]
    ax.set_xticks(signed_log(shares, FLOOR), labels)


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
