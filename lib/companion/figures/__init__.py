"""One function a figure: takes results, returns a matplotlib Figure.

Widths are those of a paper, of one of two columns or of both. Colours are seaborn's colour-blind
palette, the same for a family of models in every figure.
"""
# ruff: noqa: F401

from blockspectra.plotting.spectra import relative_density, spectrum_raster
from blockspectra.plotting.style import use_style
from companion.figures.benchmarks import cost_growth, cost_ratios, peak_memory
from companion.figures.blocks import numbers_by_block, paper_densities, paper_view
from companion.figures.distances import distance_maps, heterogeneity_by_measure
from companion.figures.full_spectra import (
    contrast_by_stage,
    full_spectra,
    linear_densities,
    stage_distances,
    viewed_densities,
)
from companion.figures.man_made import (
    accuracy_against_knob,
    accuracy_against_rate,
    accuracy_against_spread,
)
from companion.figures.matrices import hessian_maps, outside_by_classes, share_by_stage
from companion.figures.panels import lines
from companion.figures.preconditioned import spread_by_coordinates
from companion.figures.predictors import gap_by_predictor
from companion.figures.quadratics import (
    adam_bound,
    gd_bound,
    gradient_norms,
    limit_cycle,
    ratio_distribution,
    scatter,
    steps_by_case,
)
from companion.figures.spectra import blockwise_spectra, spectrum_comparison
from companion.figures.training import (
    gap_along_training,
    gap_closed,
    gap_map,
    rate_search,
    training_curves,
)
