"""Figures of several panels with one legend, their axes, and plain curves."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
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
    """Make a figure of some panels in rows; places left over are invisible axes.

    ``columns`` panels at most in a row, by default three or four, whichever leaves fewer places
    over; ``height`` of a row and ``width`` of the figure in inches; ``shared``: ``sharex`` and
    ``sharey`` of matplotlib.
    """
    columns = min(columns or min((3, 4), key=lambda n: -count % n), count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, **shared
    )
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for ax in axes.flat[max(count - columns, 0) : count]:
        ax.tick_params(labelbottom=True)  # also where the place below is left over
    return figure, list(axes.flat[:count])


def facets(
    table: pd.DataFrame,
    by: str,
    height: float,
    columns: int | None = None,
    order: Iterable[str] = (),
    **layout: Any,
) -> tuple[Figure, list[Axes], dict[str, pd.DataFrame]]:
    """Make `panels`, one for each value of a column and titled by it, with the rows of each value.

    Values come as in the rows; where there is an ``order``, as in that, and no others.
    """
    names = dict.fromkeys(table[by])
    names = [name for name in order if name in names] if order else list(names)
    figure, axes = panels(len(names), columns, height, **layout)
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name)
    return figure, axes, {name: table[table[by] == name] for name in names}


def spare(figure: Figure) -> Axes | None:
    """Return an axes without frame at the first place that `panels` has left over, if any is."""
    for ax in figure.axes:
        if not ax.get_visible():
            ax.set_visible(True)
            ax.axis("off")
            return ax
    return None


def legend(
    figure: Figure, ax: Axes, where: str = "upper", ncols: int | None = None, **settings
) -> None:
    """Put one legend for all panels where a place is left over, otherwise above or below them.

    The entries are those of ``ax``, ``ncols`` in a row above or below (``where``), by default all;
    further settings are those of `Figure.legend`.
    """
    handles, labels = ax.get_legend_handles_labels()
    outside = {"loc": f"outside {where} center", "ncols": ncols or len(labels)}
    place = spare(figure)
    settings |= {"frameon": False} | ({"loc": "center"} if place else outside)
    (place or figure).legend(handles, [typeset(label) for label in labels], **settings)
    if ax.get_legend():
        ax.get_legend().remove()


def median_and_range(ax: Axes, values: pd.Series, alpha: float, **line: Any) -> None:
    """Draw the median of what shares an index, with a band from the least to the largest."""
    by_x = values.groupby(level=0).agg(["min", "median", "max"])
    ax.plot(by_x["median"], **line)
    band = {"color": line["color"], "alpha": alpha, "linewidth": 0}
    ax.fill_between(by_x.index, by_x["min"], by_x["max"], **band)


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

    ``table`` has the columns ``x``, ``hue`` and one a panel; ``columns``: that of a panel → (title,
    label of the y axis with its unit), where panels of one label share that axis too. ``log`` names
    the logarithmic axes; ``guide`` a vertical line at this x. Models have the colours of `MODEL`.
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


def plain_ticks(axis: Axis, span: float) -> None:
    """Label powers of ten, and where these are fewer than three, 1, 2 and 5 times them."""
    if span < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
