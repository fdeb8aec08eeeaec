"""Points with weights as smoothed shares of bins, and the axis on which spectra are compared."""

import numpy as np
import torch

REACH = 9  # σ to either side: beyond, a normal CDF is 0 or 1 to double precision
PAIRS = 2**19  # of a point and a bin, handled at a time: 40 MB
SIGMA = {"signed-log": 0.4, "raw": 1e-5**0.5}  # decades; eigenvalue units (the released code's)
FLOOR = 1e-3  # c of the signed-log axis, as a share of the model's largest |λ|


def signed_log(values: np.ndarray, scale: float) -> np.ndarray:
    """``sign(λ)·log10(1 + |λ|/scale)``: linear below the scale, decades above."""
    return np.sign(values) * np.log10(1 + np.abs(values) / scale)


def bin_mass(nodes: np.ndarray, weights: np.ndarray, edges: np.ndarray, sigma: float) -> np.ndarray:
    """Share of a weighted set of points in each bin, each point smoothed by a Gaussian.

    The Gaussians are integrated over the bins, not sampled at grid points, so that no grid is too
    coarse and nothing aliases. What lies beyond the edges counts in the outer bins. A point costs
    as much as there are bins within 9 σ of it, however many the grid has.

    Parameters
    ----------
    nodes, weights : ndarray, (…, n) float64
        The weights of the last axis sum to 1.
    edges : ndarray, (bin + 1,)
        Increasing.
    sigma : float
        Width of the Gaussian in the units of ``edges``; 0 for a histogram.

    Returns
    -------
    ndarray, (…, bin)
        Sums to 1 over the bins.
    """
    bins = len(edges) - 1
    points, shares = nodes.ravel(), weights.ravel()
    # the CDF of a point is 0 before its first inner edge and 1 from its last on
    first = np.searchsorted(edges[1:-1], points - REACH * sigma)
    last = np.searchsorted(edges[1:-1], points + REACH * sigma, side="right")
    row = np.arange(len(points)) // nodes.shape[-1] * bins
    mass = np.zeros((*nodes.shape[:-1], bins))
    pairs = (last - first + 1).cumsum()
    cuts = np.searchsorted(pairs, np.arange(PAIRS, pairs[-1], PAIRS))
    for part in np.split(np.arange(len(points)), cuts):
        touched = (last - first + 1)[part]
        end = touched.cumsum()
        start = end - touched
        point = np.repeat(part, touched)  # (pair,)
        place = np.arange(len(point)) + np.repeat(first[part] - start, touched)  # of the bin
        distance = torch.from_numpy(edges[1:][place] - points[point])
        below = torch.special.ndtr(distance / sigma) if sigma > 0 else (distance > 0).double()
        below[end - 1] = 1
        share = below.diff(prepend=below.new_zeros(1)).numpy()
        share[start] = below[start]
        np.add.at(mass.reshape(-1), row[point] + place, shares[point] * share)
    return mass
