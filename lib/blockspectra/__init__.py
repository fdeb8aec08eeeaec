"""Blockwise Hessian spectra of deep networks.

>>> from blockspectra import Problem, partition, block_spectra, js_matrix, js0
>>> problem = Problem(model, loss, batches)                        # doctest: +SKIP
>>> spectra = block_spectra(problem, partition(model), steps=100)  # doctest: +SKIP
>>> js0(spectra)                                                   # doctest: +SKIP
"""

from blockspectra.blocks import Block, partition
from blockspectra.cost import estimate
from blockspectra.distance import heterogeneity, js0, js_matrix
from blockspectra.problem import Problem, ProblemError, cross_entropy
from blockspectra.slq import block_spectra, full_spectrum
from blockspectra.spectra import Spectra

__version__ = "0.1.0"

__all__ = [
    "Block",
    "Diagnosis",
    "Problem",
    "ProblemError",
    "Spectra",
    "block_spectra",
    "cross_entropy",
    "diagnose",
    "estimate",
    "full_spectrum",
    "heterogeneity",
    "js0",
    "js_matrix",
    "partition",
]


def __getattr__(name: str):
    """Import the diagnosis only where it is asked for: it draws, which takes long to load."""
    if name not in ("Diagnosis", "diagnose"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blockspectra import diagnosis

    return getattr(diagnosis, name)
