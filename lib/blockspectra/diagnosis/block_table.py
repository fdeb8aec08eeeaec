"""One row a block: its curvature, its distance from the other blocks, whether it stands out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from blockspectra.blocks import Block
from blockspectra.distance import rms
from blockspectra.gradient_graph import gradients
from blockspectra.problem import Problem
from blockspectra.spectra import Spectra

OUTLYING = 3.5  # robust z-score from which a block stands out (Iglewicz and Hoaglin, 1993)
MOST = 100  # larger z-scores are shown as above it
FEWEST = 5  # blocks below which there is no bulk to stand out from
NORMAL = 0.6745  # the median absolute deviation of a standard normal


def block_table(
    problem: Problem, blocks: Sequence[Block], spectra: Spectra, divergences: pd.DataFrame
) -> pd.DataFrame:
    """Describe every block, from its spectrum and the divergences of `js_matrix`.

    Columns, indexed by block: size; lambda_max (largest Ritz value, a lower bound); rms (RMS
    eigenvalue); trace and its standard error over probes, trace_error; gradient_norm (of the mean
    loss); distance (mean divergence from the others, nats); z_distance, z_lambda_max (`robust_z` of
    the distance and of log10 λ_max); stands_out (why, or empty).
    """
    traces, counts = spectra.traces(), spectra.counts
    several = counts > 1
    error = np.full(len(counts), np.nan)
    error[several] = np.nanstd(traces[several], axis=1, ddof=1) / counts[several] ** 0.5
    largest = spectra.largest
    positive = np.where(largest > 1e-12 * np.abs(largest).max(), largest, np.nan)
    table = pd.DataFrame(
        {
            "size": spectra.sizes,
            "lambda_max": largest,
            "rms": rms(spectra),
            "trace": np.nanmean(traces, axis=1),
            "trace_error": error,
            "gradient_norm": gradient_norms(problem, blocks),
            "distance": divergences.to_numpy().sum(1) / (len(divergences) - 1),
        },
        index=pd.Index(spectra.names, name="block"),
    )
    table["z_distance"] = robust_z(table["distance"])
    table["z_lambda_max"] = robust_z(np.log10(positive))
    table["stands_out"] = [
        _why(row, zero) for row, zero in zip(table.itertuples(), np.isnan(positive), strict=True)
    ]
    return table


def robust_z(values: Sequence[float]) -> np.ndarray:
    """Distance from the median in units of the spread of the bulk.

    ``0.6745 (x − median) / median |x − median|``, about a standard normal for normal values,
    whatever a few others do. nan where a value is nan, for fewer than five values, and where more
    than half are equal.
    """
    values = np.asarray(values, dtype=float)
    if np.isfinite(values).sum() < FEWEST:
        return np.full(values.shape, np.nan)
    deviation = values - np.nanmedian(values)
    spread = np.nanmedian(np.abs(deviation))
    return NORMAL * deviation / spread if spread > 0 else np.full(values.shape, np.nan)


def gradient_norms(problem: Problem, blocks: Sequence[Block]) -> np.ndarray:
    """Norm of the gradient of the mean loss over all batches in each block, (block,)."""
    totals = [0] * len(blocks)
    with problem.curvature_mode():
        for batch, weight in zip(problem.batches, problem.weights, strict=True):
            for i, gradient in enumerate(gradients(problem, batch, blocks)):
                totals[i] = totals[i] + weight * gradient
    return np.array([total.norm().item() for total in totals])


def _why(row, zero: bool) -> str:
    """Say in words why a block stands out; empty if it does not."""
    reasons = ["its Hessian is zero"] if zero else []
    if row.z_distance >= OUTLYING:  # nearer to all others than usual is no reason
        reasons.append(f"its spectrum is far from the others ({_readable(row.z_distance)})")
    if abs(row.z_lambda_max) >= OUTLYING:
        size = "large" if row.z_lambda_max > 0 else "small"
        reasons.append(f"its λ_max is {size} ({_readable(row.z_lambda_max)})")
    return "; ".join(reasons)


def _readable(z: float) -> str:
    """Write a z-score; a large one only says that the bulk is very alike."""
    return f"|z| > {MOST}" if abs(z) > MOST else f"z = {z:+.1f}"
