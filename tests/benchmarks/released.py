"""The script released with the paper, stated again in our own words, to compare costs with.

Read in the released code, and so here: one loss and one gradient with its graph for each probe,
Lanczos step and batch, shared by all blocks; then for each block a backward pass of the sum of
gradient times vector to *all* parameters, of which the block's is kept; Lanczos by the three-term
recurrence alone, all blocks in step, with vectors of float64 on the CPU, products rounded to
float32, and a β below 1e-8 taken for 1e-8; m = 100 steps, 10 Gaussian probes; nodes and weights by
a dense eigendecomposition; the density by a Python loop over the probes and 50,000 points from
(mean smallest Ritz value − 1) to (mean largest + 1), with σ² = 1e-5, divided by its sum.

Ours: products are weighted means over the batches (the script sums them), blocks may be parts of a
parameter (the script's Q, K and V are parameters), probes come from the library's generator so that
start vectors are the same; nothing is printed or written in between.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockspectra import Problem
from blockspectra.blocks import Block
from blockspectra.slq import probe_vector

STEPS, PROBES, POINTS, SIGMA, SMALLEST = 100, 10, 50_000, 1e-5**0.5, 1e-8


def products(problem: Problem, blocks: Sequence[Block], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Multiply each block by its vector, (size,) each."""
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    totals = [torch.zeros(block.size, dtype=p.dtype) for block, p in _first(blocks)]
    for batch, share in zip(problem.batches, problem.weights, strict=True):
        found = torch.autograd.grad(problem.value(batch), parameters, create_graph=True)
        gradient = dict(zip(parameters, found, strict=True))
        for i, (block, parameter) in enumerate(_first(blocks)):
            vector = block.expand(vectors[i].to(parameter.device))[0].double()
            inner = (gradient[parameter].double() * vector).sum()
            # backward() to every leaf: nothing of the graph is left out
            second = torch.autograd.grad(inner, parameters, retain_graph=True, allow_unused=True)
            own = dict(zip(parameters, second, strict=True))[parameter]
            if own is not None:  # where the loss is linear
                totals[i] += share * block.flatten([own.double()]).cpu()
    return totals


def tridiagonal(
    problem: Problem, blocks: Sequence[Block], steps: int, probe: int, seed: int = 0
) -> np.ndarray:
    """Lanczos matrices of one probe of all blocks, (block, step, step)."""
    matrices = np.zeros((len(blocks), steps, steps))
    starts = [probe_vector(seed, block.name, probe, block.size) for block in blocks]
    vectors = [start / start.norm() for start in starts]
    before, residuals = vectors, list(vectors)  # of no consequence in the first step
    for j in range(steps):
        if j:
            betas = [float(residual.norm()) for residual in residuals]
            before, vectors = (
                vectors,
                [
                    residual / max(beta, SMALLEST)
                    for residual, beta in zip(residuals, betas, strict=True)
                ],
            )
            matrices[:, j, j - 1] = matrices[:, j - 1, j] = betas
        for i, product in enumerate(products(problem, blocks, vectors)):
            alpha = (product * vectors[i]).sum()
            residuals[i] = product - alpha * vectors[i]
            if j:
                residuals[i] -= matrices[i, j, j - 1] * before[i]
            matrices[i, j, j] = alpha
    return matrices


def quadrature(
    problem: Problem,
    blocks: Sequence[Block],
    steps: int = STEPS,
    probes: int = PROBES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and weights of all blocks, (block, probe, step) each."""
    pairs = [np.linalg.eigh(tridiagonal(problem, blocks, steps, k, seed)) for k in range(probes)]
    nodes = np.stack([nodes for nodes, _ in pairs], 1)
    return nodes, np.stack([vectors[:, 0] ** 2 for _, vectors in pairs], 1)


def density(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid and smoothed density of one block from its (probe, step) nodes and weights."""
    grid = np.linspace(nodes.min(1).mean() - 1, nodes.max(1).mean() + 1, POINTS)
    values = np.zeros((len(nodes), POINTS))
    for k in range(len(nodes)):
        for i, point in enumerate(grid.tolist()):
            bumps = np.exp(-((nodes[k] - point) ** 2) / (2 * SIGMA**2))
            values[k, i] = np.sum(bumps / math.sqrt(2 * math.pi * SIGMA**2) * weights[k])
    mean = values.mean(0)
    return grid, mean / (mean.sum() * (grid[1] - grid[0]))


def _first(blocks: Sequence[Block]) -> list[tuple[Block, torch.nn.Parameter]]:
    return [(block, block.parameters[0]) for block in blocks]
