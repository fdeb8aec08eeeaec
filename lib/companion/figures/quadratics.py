"""Figures of the quadratics: how fast GD and Adam are on them, and the bounds of the theory."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from blockspectra.plotting.style import COLORBLIND, COLUMN, PAGE
from companion.figures.panels import facets, legend, panels, typeset

METHOD = {  # name → (label, colour)
    "gd": ("GD", COLORBLIND[7]),
    "momentum": ("GD with momentum", COLORBLIND[4]),
    "frozen": ("Adam, β₁ = 0, β₂ = 1", COLORBLIND[2]),
    "adam": ("Adam, β = (0.9, 0.999)", "0.15"),
    "sign": ("sign descent", COLORBLIND[5]),
}


def gradient_norms(curves: pd.DataFrame) -> Figure:
    """‖g‖/‖g⁰‖ against iteration, a column a case: median, with the 10–90 % band over draws.

    Above on a linear axis, as far as all methods run, as in the paper; below on a logarithmic one.
    ``curves``: case (title), optimizer (a key of `METHOD`), step, low, median, high.
    """
    cases = list(dict.fromkeys(curves["case"]))
    figure, axes = panels(2 * len(cases), len(cases), 2.0, sharex="row", sharey=True)
    last = curves.groupby("optimizer")["step"].max().min()
    for i, ax in enumerate(axes):
        part = curves[curves["case"] == cases[i % len(cases)]]
        for name, (label, color) in METHOD.items():
            _band(ax, part[part["optimizer"] == name], label, color)
        ax.set(yscale="log", ylim=(3e-8, 30))
        if i < len(cases):
            ax.set(title=cases[i], xlim=(0, last))
        else:
            ax.set(xscale="log")
        _sparse(ax)
    figure.supxlabel("iteration (above: linear axis; below: logarithmic)", fontsize=8)
    figure.supylabel("gradient norm / its first", fontsize=8)
    legend(figure, axes[0])
    return figure


def steps_by_case(counts: pd.DataFrame, xlabel: str) -> Figure:
    """Draw the steps of GD and of frozen Adam, a row a case: a dot a draw, a bar at the median.

    ``counts``: case, gd, adam (steps), one row a draw.
    """
    cases = list(dict.fromkeys(counts["case"]))
    figure, ax = plt.subplots(figsize=(PAGE, 0.55 + 0.42 * len(cases)))
    rng = np.random.default_rng(0)  # of the jitter
    for row, case in enumerate(cases):
        part = counts[counts["case"] == case]
        for name, method, shift in (("gd", "gd", -0.19), ("adam", "frozen", 0.19)):
            label, color = METHOD[method]
            height = row + shift + rng.uniform(-0.1, 0.1, len(part))
            ax.plot(part[name], height, ".", ms=3, alpha=0.4, color=color, mew=0)
            ends = row + shift - 0.17, row + shift + 0.17
            bar = {"color": color, "linewidth": 2, "label": "" if row else label}
            ax.plot([part[name].median()] * 2, ends, **bar)
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.set(xscale="log", xlabel=xlabel)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(False, axis="y")
    legend(figure, ax)
    return figure


def scatter(
    table: pd.DataFrame, columns: Mapping[str, tuple[str, str]], *, x: str, hue: str, xlabel: str
) -> Figure:
    """Draw one dot a row on logarithmic axes, in panels side by side.

    ``columns``: column of a panel → (title, label of the y axis with its unit); ``x`` and ``hue``,
    of four values, are columns too.
    """
    figure, axes = panels(len(columns), None, 2.6)
    for ax, (column, (title, label)) in zip(axes, columns.items(), strict=True):
        for (name, part), i in zip(table.groupby(hue, sort=False), (0, 1, 2, 4), strict=True):
            style = {"ms": 3, "mew": 0, "alpha": 0.5, "color": COLORBLIND[i]}
            ax.plot(part[x], part[column], ".", label=name, **style)
        names = {"title": title, "xlabel": xlabel, "ylabel": label}
        ax.set(**{key: typeset(name) for key, name in names.items()})
        ax.set(xscale="log", yscale="log")
        _sparse(ax)
    legend(figure, axes[0], ncols=4, markerscale=3)
    return figure


def gd_bound(contractions: pd.DataFrame, gaps: pd.DataFrame, bounds: Mapping[str, float]) -> Figure:
    """Left: what a step of GD takes off the gap, for every step size; right: the gap of whole runs.

    The tables are those of `gd_contractions` and `gd_gaps`; ``bounds``: label → the factor that the
    gap keeps at least.
    """
    figure, (left, right) = panels(2, None, 2.5)
    shrinking = contractions[contractions["ratio"] < 1]
    under = {"color": METHOD["gd"][1], "linewidth": 2.5, "alpha": 0.6}  # a bound lies on it
    left.plot(shrinking["share"], 1 - shrinking["ratio"], **under, label="measured")
    for (label, bound), style in zip(bounds.items(), ("--", ":"), strict=True):
        left.axhline(1 - bound, color="0.2", linestyle=style, label=label)
    left.set(xlabel="step size / (2/(L+μ))", ylim=(0, None))
    left.set_ylabel("largest share of the gap\nthat one step removes")
    left.legend(loc="lower center")
    worst = gaps[gaps["curve"] == "from the worst start"]
    right.plot(worst["step"], worst["median"], **under, label="from the worst start")
    styles: dict[str, tuple] = {
        "from Gaussian starts": (COLORBLIND[0], "-"),
        "bound with the square": ("0.2", "--"),
        "bound without it": ("0.2", ":"),
    }
    for name, (color, style) in styles.items():
        _band(right, gaps[gaps["curve"] == name], name, color, style)
    right.set(yscale="log", xlabel="iteration", ylabel="gap / its first")
    right.legend(loc="lower left")
    return figure


def adam_bound(curves: pd.DataFrame) -> Figure:
    """Draw the gap of frozen Adam beside its upper bounds, a panel a case, with 10–90 % bands.

    ``curves``: case, curve ("measured", "bound with r", "bound with r²"), step, low, median, high.
    """
    figure, axes, parts = facets(
        curves.sort_values("case", kind="stable"), "case", 2.4, sharey=True
    )
    styles = {
        "measured": (METHOD["frozen"][1], "-"),
        "bound with r": ("0.2", "--"),
        "bound with r²": (COLORBLIND[0], ":"),
    }
    for ax, (case, part) in zip(axes, parts.items(), strict=True):
        for name, (color, style) in styles.items():
            _band(ax, part[part["curve"] == name], name, color, style)
        ax.set_title(f"Case {case}")
        ax.set(xscale="log", yscale="log", ylim=(1e-12, 3), xlabel="iteration")
        _sparse(ax)
    axes[0].set_ylabel("gap / its first")
    legend(figure, axes[0])
    return figure


def ratio_distribution(table: pd.DataFrame, threshold: float, share: float) -> Figure:
    """Share of starts whose r, and r², lies below a value; dotted the published statement.

    ``table``: case, ratio; one row a start.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 2.3))
    for (case, part), color in zip(table.groupby("case"), COLORBLIND, strict=False):
        for power, style in ((1, "-"), (2, "--")):
            values = np.sort(part["ratio"].to_numpy() ** power)
            label = f"Case {case}, {'r' if power == 1 else 'r²'}"
            below = np.arange(1, len(values) + 1) / len(values)
            ax.plot(values, below, style, color=color, label=label)
    ax.axvline(threshold, color="0.4", linewidth=0.8, linestyle=":")
    ax.axhline(share, color="0.4", linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlim=(1, 1e8))
    ax.set(xlabel="value of r or r²", ylabel="share of starts below it")
    _sparse(ax)
    ax.legend(loc="lower right")
    return figure


def limit_cycle(table: pd.DataFrame) -> Figure:
    """|w| in units of η/2 against iteration, a column a β₂, a line a start.

    Above all that is left of w, on a logarithmic axis, below the neighbourhood of the limit cycle.
    ``table``: beta2, start, step, distance (|w|/(η/2)).
    """
    betas = sorted(set(table["beta2"]))
    figure, axes = panels(2 * len(betas), len(betas), 1.6, sharex=True, sharey="row")
    for i, ax in enumerate(axes):
        part = table[table["beta2"] == betas[i % len(betas)]]
        for j, (start, one) in enumerate(part.groupby("start")):
            style = {"color": COLORBLIND[j], "zorder": 3 - j, "label": f"from w⁰ = {start:g}"}
            ax.plot(one["step"], one["distance"].clip(lower=1e-300), **style)
        ax.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
        if i < len(betas):
            ax.set(title=f"β₂ = {betas[i]:g}", yscale="log", ylim=(1e-160, 1e10))
            ax.set_yticks([1e-150, 1e-100, 1e-50, 1])
        else:
            ax.set(ylim=(0.8, 1.2), xlabel="iteration")
    for ax in axes[:: len(betas)]:
        ax.set_ylabel("|w| / (η/2)")
    legend(figure, axes[0])
    return figure


def _band(ax: Axes, part: pd.DataFrame, label: str, color, style: str = "-") -> None:
    part = part[part["step"] > 0]
    ax.plot(part["step"], part["median"], style, color=color, label=label)
    ax.fill_between(part["step"], part["low"], part["high"], color=color, alpha=0.15, linewidth=0)


def _sparse(ax: Axes) -> None:
    """Mark few decades of logarithmic axes, and nothing between."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(numticks=6))
            axis.set_minor_locator(NullLocator())
