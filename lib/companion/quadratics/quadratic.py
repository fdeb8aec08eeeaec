r"""Quadratics with prescribed block spectra, and gradient descent, Adam and sign descent on them.

:math:`\min_w ½ w^\top H w` with :math:`H = \mathrm{diag}(H_1, …, H_L)`, each block
:math:`H_l = Q_l Λ_l Q_l^\top` in its own random orthogonal basis. Adam with β₁ = 0 and β₂ = 1 keeps
the preconditioner of its first gradient, :math:`D = \mathrm{diag}|g^0|`. Everything is float64,
batched over starts; a step η is a number or a Tensor, one for each start. How many steps the linear
ones of these methods take, and the bounds on them, is in `convergence`.
Source: Zhang et al., "Why Transformers Need Adam: A Hessian Perspective", 2024.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CASES = {
    3: ((1, 2, 3), (99, 100, 101), (4998, 4999, 5000)),  # heterogeneous blocks
    4: ((1, 99, 4998), (2, 100, 4999), (3, 101, 5000)),  # homogeneous blocks, the same spectrum
}
ROTATIONS, STARTS, SAMPLES = range(3)  # streams of one seed: no draw reuses another's numbers


def eigenvalues(case: int) -> list[Tensor]:
    """Eigenvalues of the blocks of Case 3 (heterogeneous) or 4 (homogeneous), κ = 5000."""
    return [torch.tensor(block, dtype=torch.float64) for block in CASES[case]]


def sampled_eigenvalues(
    nodes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    *,
    count: int = 30,
    kappa: float = 5000.0,
    seed: int = 0,
) -> list[Tensor]:
    """Draw eigenvalues from measured block spectra: Case 1 (a Transformer's) or 2 (a CNN's).

    ``count`` of the nodes (Ritz values, an array of any shape a block) are drawn by their weights,
    with replacement, and sorted.

    One affine map for all blocks takes the smallest value drawn to 1 and the largest to ``kappa``,
    so the blocks' ranges keep their proportions. Negative eigenvalues are drawn like the others and
    the map's shift makes them positive, which puts the near-zero bulk of every block in one place,
    above 1: spectra that differ in width alone come out with condition numbers that differ less.
    """
    drawn = []
    for i, (node, weight) in enumerate(zip(nodes, map(np.ravel, weights), strict=True)):
        if not weight.sum() > 0:
            raise ValueError(f"The weights of block {i} are all zero: there is nothing to draw.")
        rng = np.random.default_rng([seed, SAMPLES, i])
        drawn.append(np.sort(rng.choice(np.ravel(node), count, p=weight / weight.sum())))
    low, high = min(block[0] for block in drawn), max(block[-1] for block in drawn)
    if not high > low:
        raise ValueError(f"All values drawn are {low}: no affine map gives them a kappa above 1.")
    return [torch.from_numpy(1 + (block - low) / (high - low) * (kappa - 1)) for block in drawn]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``½ wᵀHw``, batched over draws of the rotations; made by `Quadratic.draw`."""

    blocks: tuple[Tensor, ...]  #: (d_l,) positive eigenvalues, one tensor a block
    rotations: tuple[Tensor, ...]  #: (draw, d_l, d_l) orthogonal, one tensor a block

    @classmethod
    def draw(cls, blocks: Sequence[Tensor], *, draws: int = 1, seed: int = 0) -> "Quadratic":
        """Rotate each block Haar-randomly. The first n of many draws are those of n draws."""
        rotations = []
        for i, block in enumerate(blocks):
            require_positive(block, "Every eigenvalue")
            rng = np.random.default_rng([seed, ROTATIONS, i])
            q, r = np.linalg.qr(rng.standard_normal((draws, len(block), len(block))))
            sign = np.sign(np.diagonal(r, axis1=1, axis2=2))  # LAPACK's own signs are not Haar
            rotations.append(torch.from_numpy(q * sign[:, None, :]))
        return cls(tuple(block.to(torch.float64) for block in blocks), tuple(rotations))

    @cached_property
    def hessian(self) -> Tensor:
        """H, (draw, d, d), block-diagonal."""
        dense = [(q * block) @ q.mT for block, q in zip(self.blocks, self.rotations, strict=True)]
        return torch.stack([torch.block_diag(*draw) for draw in zip(*dense, strict=True)])

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue, μ and L."""
        spectrum = torch.cat(self.blocks)
        return float(spectrum.min()), float(spectrum.max())

    @property
    def kappa(self) -> float:
        """Condition number of the whole, L/μ."""
        return self.extremes[1] / self.extremes[0]

    @property
    def block_kappa(self) -> Tensor:
        """Condition number of each block, (block,)."""
        return torch.stack([block.max() / block.min() for block in self.blocks])

    def gradient(self, w: Tensor) -> Tensor:
        """``Hw``, (start, d): one w for each draw, or any number of them on a single draw."""
        return (self.hessian @ w[..., None])[..., 0]

    def gaussian_start(self, *, starts: int | None = None, seed: int = 0) -> Tensor:
        """Draw w⁰ standard Gaussian, (start, d): one for each draw unless ``starts`` is given."""
        shape = (starts or len(self.hessian), self.hessian.shape[1])
        return torch.from_numpy(np.random.default_rng([seed, STARTS]).standard_normal(shape))

    def worst_start(self) -> Tensor:
        """Return the w⁰ with ``Hw⁰ = q_μ + q_L``, (draw, d): GD's slowest at its best step."""
        spectrum, vectors = torch.linalg.eigh(self.hessian)
        return vectors[..., 0] / spectrum[:, :1] + vectors[..., -1] / spectrum[:, -1:]


class Trajectory(NamedTuple):
    """What an iteration went through, step 0 included."""

    gradient_norm: Tensor  #: (start, steps + 1) ‖Hw‖
    gap: Tensor  #: (start, steps + 1) ½wᵀHw, the loss above its minimum
    end: Tensor  #: (start, d) the last w


def gd(
    quadratic: Quadratic,
    start: Tensor,
    steps: int,
    *,
    step: float | Tensor | None = None,
    momentum: float = 0.0,
) -> Trajectory:
    """Gradient descent, ``w ← w − ηg + β(w − w_before)``, by default at η = 2/(L+μ), β = 0."""
    step = as_column(2 / sum(quadratic.extremes) if step is None else step)
    before = start

    def update(w: Tensor, g: Tensor, k: int) -> Tensor:
        nonlocal before
        after, before = w - step * g + momentum * (w - before), w
        return after

    return _follow(quadratic, start, steps, update)


def heavy_ball(quadratic: Quadratic) -> dict[str, float]:
    """Step and momentum of the best rate with momentum, (√κ−1)/(√κ+1), for `gd` (Polyak, 1964)."""
    low, high = (extreme**0.5 for extreme in quadratic.extremes)
    return {"step": 4 / (high + low) ** 2, "momentum": ((high - low) / (high + low)) ** 2}


def frozen_adam(
    quadratic: Quadratic, start: Tensor, steps: int, *, step: float | Tensor
) -> Trajectory:
    """Adam with β₁ = 0, β₂ = 1: ``w ← w − ηD⁻¹g`` with D = diag|g⁰|."""
    step = as_column(step) / require_positive(quadratic.gradient(start).abs(), "|g⁰|")
    return _follow(quadratic, start, steps, lambda w, g, k: w - step * g)


def adam(
    quadratic: Quadratic,
    start: Tensor,
    steps: int,
    *,
    step: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Trajectory:
    """Adam with bias correction and a constant step (Kingma & Ba, 2015).

    It does not converge: in one dimension with β₁ = eps = 0 < β₂ it ends in the cycle
    ``|w| = η/2``, or underflows on its way there (far from it, β₂ near 1) and looks converged.
    """
    step = as_column(step)
    first, second = torch.zeros_like(start), torch.zeros_like(start)

    def update(w: Tensor, g: Tensor, k: int) -> Tensor:
        nonlocal first, second
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        root = (second / (1 - betas[1] ** (k + 1))).sqrt() + eps
        move = first / (1 - betas[0] ** (k + 1)) / root
        return w - step * torch.where(first == 0, 0.0, move)  # 0/0 where there was no gradient yet

    return _follow(quadratic, start, steps, update)


def sign_descent(
    quadratic: Quadratic, start: Tensor, steps: int, *, step: float | Tensor
) -> Trajectory:
    """``w ← w − η sign(g)``: Adam with β₁ = β₂ = eps = 0."""
    step = as_column(step)
    return _follow(quadratic, start, steps, lambda w, g, k: w - step * g.sign())


def _follow(
    quadratic: Quadratic,
    start: Tensor,
    steps: int,
    update: Callable[[Tensor, Tensor, int], Tensor],
) -> Trajectory:
    """Iterate ``w ← update(w, g, k)``."""
    norm = start.new_empty(steps + 1, len(start))
    gap, w = torch.empty_like(norm), start
    for k in range(steps + 1):
        g = quadratic.gradient(w)
        norm[k], gap[k] = g.norm(dim=1), (w * g).sum(1) / 2
        if k < steps:
            w = update(w, g, k)
    return Trajectory(norm.T, gap.T, w)


def as_column(step: float | Tensor) -> Tensor:
    """Make a matrix of steps, one row for each start or one for all."""
    step = torch.as_tensor(step, dtype=torch.float64)
    return require_positive(step if step.ndim == 2 else step.reshape(-1, 1), "A step")


def require_positive(values: Tensor, name: str) -> Tensor:
    """Return values that are all positive and finite, or refuse them by their name."""
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite.")
    return values
