"""The style of figures, and the axis of spectra."""

import re

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from blockspectra.smoothing import FLOOR, signed_log

COLUMN, PAGE = 3.35, 7.0  # inches
COLORBLIND = sns.color_palette("colorblind")
FAMILY = {"CNN": COLORBLIND[0], "MLP-mixer": COLORBLIND[1], "Transformer": COLORBLIND[3]}
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


def short(name: str) -> str:
    """Shorten a block's name for an axis: tied names to the first, modules that say nothing out."""
    first = name.split("=")[0]
    for silent in ("attn.c_attn.", "attn.qkv.", "attn.", "blocks.", "layer."):
        first = re.sub(rf"(?<![^.]){re.escape(silent)}", "", first)  # not the end of a longer word
    return first.replace("$", r"\$")  # no formula begins there


def signed_log_ticks(ax: Axes) -> None:
    """Label a signed-log axis by eigenvalue shares: −1, 0 and 1, with a tick a decade between."""
    shares = np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    labels = ["−1", "", "", "0", "", "", "1"]
    ax.set_xticks(signed_log(shares, FLOOR), labels)
