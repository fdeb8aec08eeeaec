"""Cost of a smoothed density on a fine grid, as a ratio to a loop over the points of the grid.

Two loops, both over grid points and probes with a sum over nodes in each: one of what the library
computes, the mean of the Gaussians over the cell around a point, to which it must agree; and one of
the Gaussians' values at the point, as in the code released with the paper. ``make bench`` keeps the
numbers in ``results/density.json``.
"""

import statistics
import time
from collections.abc import Callable

import bench
import numpy as np
import torch
from scipy.special import ndtr

from blockspectra import Spectra
from blockspectra.lanczos import lanczos

POINTS, PROBES, STEPS, SIGMA, REPEATS, SIZE = 50_000, 10, 100, 1e-5**0.5, 5, 2000
RANGES = ((-1, 40), (-5, 200))  # of the grid; the spectrum's own scale follows


def measured(low: float, high: float) -> Spectra:
    """Lanczos runs on a matrix with a bulk near zero and eigenvalues all over the range."""
    random = np.random.default_rng(0)
    spread = random.uniform(0.9 * low, 0.9 * high, SIZE // 10)
    eigenvalues = torch.from_numpy(np.append(0.01 * random.standard_normal(SIZE * 9 // 10), spread))
    start = torch.from_numpy(random.standard_normal((1, PROBES, len(eigenvalues))))
    run = lanczos(lambda v: eigenvalues * v, start, STEPS)
    return Spectra(["matrix"], [len(eigenvalues)], *(x.numpy() for x in run))


def cells(spectra: Spectra, grid: np.ndarray) -> np.ndarray:
    """Mean of the Gaussians over the cell of each point, in a loop; what is beyond joins the ends.

    A cell on the right of a node is integrated from the right, where a difference of two values
    next to 1 would keep no digits.
    """
    nodes, weights = spectra.nodes(0), spectra.weights(0)
    middle = (grid[1:] + grid[:-1]) / 2
    edges = np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])
    ends = np.concatenate([[-np.inf], middle, [np.inf]])
    density = np.zeros((len(nodes), len(grid)))
    for k in range(len(nodes)):
        for j in range(len(grid)):
            left, right = (ends[j] - nodes[k]) / SIGMA, (ends[j + 1] - nodes[k]) / SIGMA
            share = np.where(left > 0, ndtr(-left) - ndtr(-right), ndtr(right) - ndtr(left))
            density[k, j] = np.sum(weights[k] * share) / (edges[j + 1] - edges[j])
    return density.mean(0)


def values(spectra: Spectra, grid: np.ndarray) -> np.ndarray:
    """Values of the Gaussians at each point, in a loop."""
    nodes, weights = spectra.nodes(0), spectra.weights(0)
    density = np.zeros((len(nodes), len(grid)))
    for k in range(len(nodes)):
        for j in range(len(grid)):
            bump = np.exp(-((grid[j] - nodes[k]) ** 2) / (2 * SIGMA**2))
            density[k, j] = np.sum(weights[k] * bump / np.sqrt(2 * np.pi * SIGMA**2))
    return density.mean(0)


def timed(call: Callable[[], np.ndarray], repeats: int = 1) -> tuple[np.ndarray, float]:
    """Return the last result and the median number of seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def measure(quick: bool) -> dict:
    """Rows by range of the grid, on one thread."""
    bench.ONE.enter()
    points, repeats, rows = (500, 1, []) if quick else (POINTS, REPEATS, [])
    for low, high in RANGES:
        spectra = measured(low, high)
        _, quadrature = timed(lambda spectra=spectra: spectra.quadrature[0])
        grid = np.linspace(low, high, points)
        spectra.density(grid, SIGMA)  # warms up
        ours, seconds = timed(lambda s=spectra, g=grid: s.density(g, SIGMA)[0], repeats)
        exact, looped = timed(lambda s=spectra, g=grid: cells(s, g))
        sampled, released = timed(lambda s=spectra, g=grid: values(s, g))
        error = float(np.abs(ours - exact).max() / exact.max())
        if not error <= 1e-12:
            raise ValueError(f"The density is off by {error} of its largest value.")
        rows.append(
            {
                "range": [low, high],
                "grid_step_per_sigma": round((high - low) / (points - 1) / SIGMA, 3),
                "density_ms": round(1e3 * seconds, 3),
                "quadrature_ms": round(1e3 * quadrature, 1),
                "loop_over_cells_s": round(looped, 2),
                "loop_as_released_s": round(released, 2),
                "ratio_to_cells": round(looped / seconds),
                "ratio_to_released": round(released / seconds),
                "ratio_to_released_with_quadrature": round(released / (seconds + quadrature)),
                "difference_from_cells": float(f"{error:.1e}"),
                "difference_from_released": round(
                    float(np.abs(ours - sampled).max() / exact.max()), 4
                ),
                "mass_as_released": round(float(sampled.sum() * (grid[1] - grid[0])), 4),
            }
        )
        print(rows[-1])
    settings = {"points": points, "probes": PROBES, "steps": STEPS, "sigma": SIGMA}
    return {**settings, "repeats": repeats, "ranges": rows}


if __name__ == "__main__":
    bench.run("density", measure, __doc__)
