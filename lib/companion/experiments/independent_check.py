"""Stored spectra against differences of plain gradients in float64.

α₁ = vᵀHv and β₁ = ‖Hv − α₁v‖ of the first probe v follow from two gradients, without second
derivatives, kept graphs or Lanczos. The trace and the RMS eigenvalue are made of these
two. λ_max and the trace are then estimated anew: by ARPACK, and from random signs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from blockspectra.blocks import Block
from blockspectra.gradient_graph import gradients
from blockspectra.problem import Problem
from blockspectra.quadrature import ritz
from blockspectra.slq import probe_vector
from blockspectra.spectra import Spectra
from blockspectra.statistics import ValueWithError
from companion.experiments import initial_spectra
from companion.experiments.initial_spectra import InitialSpectra
from companion.store import Job, Store, declare

# Of the difference, as a share of the block's norm: so small that no ReLU of millions changes sign
# on the way, where the gradient jumps, and large enough for rounding in float64.
STEP = 1e-8
# The search for λ_max turns into the very directions in which a ReLU changes sign within a step,
# and would find that jump over the step. A shorter one leaves λ_max five digits.
SHORT_STEP = 1e-10
# of the search for λ_max, two gradients each: the mixer's largest eigenvalues lie close together
PRODUCTS = {"mixer": 60}
SIGNS = 8  # vectors of random signs for the trace

Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class IndependentCheck(Job):
    """Compare three blocks of stored ``spectra``, the first, the middle and the last one."""

    NAME = "check-{spectra.name}"
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
        problem, rows = of.setup(torch.float64).problem, []
        for number, block in chosen(of.partition(problem.model)):
            vector = probe_vector(of.seed, block.name, 0, block.size)
            vector /= vector.norm()
            product = differences(problem, block, vector)
            alpha = float(product @ vector)
            beta = float((product - alpha * vector).norm())
            row = (block.name, stored.alpha[number, 0, 0], stored.beta[number, 0, 0], alpha, beta)
            rows.append(row)
        columns = ["block", "alpha", "beta", "alpha_by_differences", "beta_by_differences"]
        return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class IndependentEstimates(IndependentCheck):
    """Estimate λ_max and trace of the same blocks anew, from other vectors.

    λ_max is the largest eigenvalue, as in `Spectra.largest`, not the largest |λ|: both ends of a
    Transformer's block lie about as far from zero, and which is further is no property of a run.
    """

    NAME = "estimates-{spectra.name}"
    VERSION = 1
    ADDED = {"products": 20}  # noqa: RUF012  a class attribute of `Job`

    products: int = 20

    def compute(self, store: Store) -> pd.DataFrame:
        """Return both, with residuals of λ_max and standard errors of traces; see `disagreement`.

        ``…_anew`` are the estimates made here, ``products`` those that λ_max took.
        """
        of, stored, rows = self.spectra, store.get(self.spectra), []
        problem = of.setup(torch.float64).problem
        for number, block in chosen(of.partition(problem.model)):

            def product(vector: np.ndarray, block: Block = block) -> np.ndarray:
                return differences(problem, block, torch.from_numpy(vector), SHORT_STEP).numpy()

            random = np.random.default_rng([of.seed, number])
            row = {"model": stored.meta["title"], "block": block.name}
            row["largest"], row["residual"] = largest_ritz(stored, number)
            row["largest_anew"], row["residual_anew"], row["products"] = largest_eigenvalue(
                product, random.standard_normal(block.size), self.products
            )
            row["trace"], row["trace_error"] = stored_trace(stored, number)
            row["trace_anew"], row["trace_error_anew"] = trace(product, block.size, random)
            rows.append(row)
        return pd.DataFrame(rows)


def chosen(blocks: list[Block]) -> list[tuple[int, Block]]:
    """Position and block of the first, the middle and the last one."""
    return [(k, blocks[k]) for k in sorted({0, len(blocks) // 2, len(blocks) - 1})]


def largest_eigenvalue(
    product: Product, start: np.ndarray, products: int = 20
) -> tuple[float, float, int]:
    """Rayleigh quotient xᵀHx of ARPACK's best vector x, ‖Hx − (xᵀHx)x‖, products taken.

    ARPACK builds one Krylov space of at most ``products`` vectors, (size,) each, and does not
    restart; how far it came is measured by one more product, not asked of it. The quotient is at
    most λ_max, and within the residual of it there is an eigenvalue.
    Source: Lehoucq, Sorensen & Yang, *ARPACK Users' Guide*, 1998.
    """
    taken = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal taken
        taken += 1
        return product(vector.ravel())

    size = len(start)
    matrix = LinearOperator((size, size), matvec=counted, dtype=np.float64)
    most = {"ncv": min(products, size), "maxiter": 1, "tol": 1}  # one space, whatever it holds
    _, vectors = eigsh(matrix, k=1, which="LA", v0=start, **most)
    x = vectors[:, 0].copy()
    hx = counted(x)
    quotient = float(x @ hx)
    return quotient, float(np.linalg.norm(hx - quotient * x)), taken


def trace(
    product: Product, size: int, random: np.random.Generator, probes: int = SIGNS
) -> ValueWithError:
    """Estimate the trace as mean of zᵀHz over random signs z, with its standard error.

    Exact where H is diagonal. Source: Hutchinson, "A stochastic estimator of the trace of the
    influence matrix", 1989.
    """
    found = []
    for _ in range(probes):
        unit = random.choice([-1.0, 1.0], size) / size**0.5
        found.append(size * float(unit @ product(unit)))
    return ValueWithError(float(np.mean(found)), float(np.std(found, ddof=1) / probes**0.5))


def largest_ritz(stored: Spectra, block: int) -> tuple[float, float]:
    """Largest Ritz value of a stored block, and its residual by the last β of its run."""
    arrays = stored.alpha[block], stored.beta[block], stored.taken[block]
    runs = [ritz(alpha[:m], beta[:m]) for alpha, beta, m in zip(*arrays, strict=True) if m]
    best = max(runs, key=lambda run: run.nodes[-1])
    return float(best.nodes[-1]), float(best.residuals[-1])


def stored_trace(stored: Spectra, block: int) -> ValueWithError:
    """Trace of a stored block and its standard error, from tr H² rather than from few probes.

    On the sphere, size·vᵀHv has the variance 2·size/(size + 2)·(tr H² − (tr H)²/size).
    """
    size, probes = stored.sizes[block], stored.counts[block]
    value, square = (size * float(np.nanmean(stored.moment(k)[block])) for k in (1, 2))
    variance = 2 * size / (size + 2) * (square - value**2 / size)
    return ValueWithError(value, (variance / probes) ** 0.5)


def differences(problem: Problem, block: Block, vector: Tensor, share: float = STEP) -> Tensor:
    """Block times unit vector, (size,), by gradients a ``share`` of its norm to either side."""
    kept = [p.detach().clone() for p in block.parameters]
    directions = block.expand(vector)
    step = share * float(block.flatten(kept).norm() or 1)
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


def estimates(**settings: Any) -> list[IndependentEstimates]:
    """Declare new estimates for each of the spectra at the paper's sizes."""
    spectra = [check.spectra for check in jobs(**settings)]
    return [IndependentEstimates(one, PRODUCTS.get(one.model, 20)) for one in spectra]


def jobs(**settings: Any) -> list[IndependentCheck]:
    """Declare a check of each of the spectra at the paper's sizes."""
    spectra = declare(initial_spectra.jobs, settings)
    return [IndependentCheck(one) for one in spectra if one.size == "paper"]


def deviations(table: pd.DataFrame) -> pd.Series:
    """Relative difference of α₁ and β₁ from those by differences, the larger one, by block."""
    scale = np.hypot(table["alpha_by_differences"], table["beta_by_differences"])
    errors = [(table[k] - table[f"{k}_by_differences"]).abs() / scale for k in ("alpha", "beta")]
    return pd.concat(errors, axis=1).max(axis=1).set_axis(table["block"])


def disagreement(table: pd.DataFrame) -> pd.DataFrame:
    """Say how far the two estimates of λ_max and of the trace differ, by model and block.

    Columns: largest, by how much the new λ_max is larger, as a share of it. Neither exceeds the
    true one, so this is what the stored one falls short by, as far as the new one came. above, by
    how much more than the new one's residual the stored one is larger: a fault, unless several
    eigenvalues lie closer together than that. trace, the difference in units of its standard error.
    """
    scale, gap = table["largest_anew"].abs(), table["largest_anew"] - table["largest"]
    errors = np.hypot(table["trace_error"], table["trace_error_anew"])
    found = {
        "largest": gap / scale,
        "above": (-gap - table["residual_anew"]).clip(lower=0) / scale,
        "trace": (table["trace_anew"] - table["trace"]) / errors,
    }
    return pd.DataFrame(found).set_axis(pd.MultiIndex.from_frame(table[["model", "block"]]))
