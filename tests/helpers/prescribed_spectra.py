"""Eigenvalues that are known, and blocks with different numbers of probes."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from blockspectra import partition
from blockspectra.hessian import dense_hessian
from blockspectra.spectra import ARRAYS
from companion.setups import setup


def semicircle(count):
    """Quantiles of the semicircle law on [-1, 1]."""
    x = np.linspace(-1, 1, 4001)
    below = 0.5 + (x * np.sqrt(1 - x**2) + np.arcsin(x)) / np.pi
    return np.interp((np.arange(count) + 0.5) / count, below, x)


@cache
def hessian(model, block):
    """Exact eigenvalues of a block of a tiny model."""
    problem = setup(model, "tiny", samples=4, dtype=torch.float64).problem
    matrix = dense_hessian(problem, *partition(problem.model, only=block))
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()


def rms(eigenvalues):
    return (eigenvalues**2).mean() ** 0.5


SPECTRA = {
    "zeros, a bulk and outliers": lambda: np.concatenate(
        [np.zeros(350), semicircle(140), np.geomspace(2, 50, 10)]
    ),
    "a power law": lambda: np.arange(1, 801) ** -1.5,
    "a convolution": lambda: hessian("vgg", "features.3"),  # most of them zero
}


def ragged(spectra, counts):
    """The same without the last probes of each block, as they are stored: all zeros."""
    missing = np.arange(spectra.probes) >= np.array(counts)[:, None]
    kept = {key: getattr(spectra, key).copy() for key in ARRAYS}
    for array in kept.values():
        array[missing] = 0
    return replace(spectra, **kept)
