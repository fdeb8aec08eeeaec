"""First Lanczos coefficients of stored spectra against differences of plain gradients.

α₁ = vᵀHv and β₁ = ‖Hv − α₁v‖ of the first probe v follow from two gradients in float64, without
second derivatives, kept graphs or Lanczos. The trace and the root mean square eigenvalue are made
of these two.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from blockspectra.blocks import Block
from blockspectra.gradient_graph import gradients
from blockspectra.problem import Problem
from blockspectra.slq import probe_vector
from companion.experiments import initial_spectra
from companion.experiments.initial_spectra import InitialSpectra
from companion.store import Job, Store, declare

# Of the difference, as a share of the block's norm: so small that no ReLU of millions changes sign
# on the way, where the gradient jumps, and large enough for rounding in float64.
STEP = 1e-8


@dataclass(frozen=True)
class IndependentCheck(Job):
    """Compare three blocks of stored ``spectra``, the first, the middle and the last one."""

    NAME = "check-{spectra.name}"
    TITLE = "check of {spectra.model}"
    VERSION = 2

    spectra: InitialSpectra

    @property
    def model(self) -> str:
        """Model of the spectra."""
        return self.spectra.model

    def data_key(self) -> str:
        """Digest of the data of the spectra."""
        return self.spectra.data_key()

    def compute(self, store: Store) -> pd.DataFrame:
        """Return block, alpha, beta, and both by differences."""
        of, stored = self.spectra, store.get(self.spectra)
        problem = of.setup(torch.float64).problem
        blocks, rows = of.partition(problem.model), []
        for number in sorted({0, len(blocks) // 2, len(blocks) - 1}):
            block = blocks[number]
            vector = probe_vector(of.seed, block.name, 0, block.size)
            vector /= vector.norm()
            product = differences(problem, block, vector)
            alpha = float(product @ vector)
            beta = float((product - alpha * vector).norm())
            row = (block.name, stored.alpha[number, 0, 0], stored.beta[number, 0, 0], alpha, beta)
            rows.append(row)
        columns = ["block", "alpha", "beta", "alpha_by_differences", "beta_by_differences"]
        return pd.DataFrame(rows, columns=columns)


def differences(problem: Problem, block: Block, vector: Tensor) -> Tensor:
    """Take central differences of plain gradients: block times vector, (size,)."""
    kept = [p.detach().clone() for p in block.parameters]
    directions = block.expand(vector)
    step = STEP * float(block.flatten(kept).norm() or 1)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, at, direction in zip(block.parameters, kept, directions, strict=True):
                p.copy_(at + sign * step * direction)
        with problem.curvature_mode():
            total = 0
            for batch, weight in zip(problem.batches, problem.weights, strict=True):
                total = total + weight * gradients(problem, batch, [block])[0]
        sides.append(total)
    with torch.no_grad():
        for p, at in zip(block.parameters, kept, strict=True):
            p.copy_(at)
    return (sides[0] - sides[1]) / (2 * step)


def jobs(**settings: Any) -> list[IndependentCheck]:
    """Declare a check of each of the spectra at the paper's sizes."""
    spectra = declare(initial_spectra.jobs, settings)
    return [IndependentCheck(one) for one in spectra if one.size == "paper"]


def deviations(table: pd.DataFrame) -> pd.Series:
    """Relative difference of α₁ and β₁ from those by differences, the larger one, by block."""
    scale = np.hypot(table["alpha_by_differences"], table["beta_by_differences"])
    errors = [(table[k] - table[f"{k}_by_differences"]).abs() / scale for k in ("alpha", "beta")]
    return pd.concat(errors, axis=1).max(axis=1).set_axis(table["block"])
