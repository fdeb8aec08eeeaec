"""One function a figure: takes results, returns a matplotlib Figure.

Widths are those of a paper: `COLUMN` for one of two columns, `PAGE` for both. Colours are seaborn's
colour-blind palette, the same for a family of models in every figure.
"""

from blockspectra.figures.distances import distance_maps, heterogeneity_by_measure
from blockspectra.figures.spectra import (
    blockwise_spectra,
    relative_density,
    spectrum_comparison,
    spectrum_raster,
)
from blockspectra.figures.style import COLUMN, PAGE, lines, use_style
from blockspectra.figures.training import gap_against, rate_search, training_curves

__all__ = [
    "COLUMN",
    "PAGE",
    "blockwise_spectra",
    "distance_maps",
    "gap_against",
    "heterogeneity_by_measure",
    "lines",
    "rate_search",
    "relative_density",
    "spectrum_comparison",
    "spectrum_raster",
    "training_curves",
    "use_style",
]
