r"""How fast GD and frozen Adam converge on a quadratic, counted without iterating, and the bounds.

Adam with β₁ = 0 and β₂ = 1 keeps :math:`D = \mathrm{diag}|g^0|`, so it is linear as GD is:

.. math:: w^{k+1} = (I - η D^{-1} H) w^k \qquad (D = I \text{ for GD}),

and any number of steps costs one eigendecomposition of :math:`D^{-1/2} H D^{-1/2}` (`modes`).
Everything is float64, batched over starts; a step η is a number or a Tensor, one for each start.
Source: Zhang et al., "Why Transformers Need Adam: A Hessian Perspective", 2024.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from companion.quadratics.quadratic import Quadratic, as_column, require_positive


class Modes(NamedTuple):
    """A linear iteration in the eigenvectors of D⁻¹H: ``g^k = Σ_j (1 − η s_j)^k c_j``."""

    rates: Tensor  #: (start, d) eigenvalues s of D⁻¹H, ascending
    parts: Tensor  #: (start, d, d) columns c_j, which sum to g⁰

    @property
    def condition(self) -> Tensor:
        """cond(D⁻¹H) = s_max/s_min, (start,)."""
        return self.rates[:, -1] / self.rates[:, 0]

    @property
    def minimax_step(self) -> Tensor:
        """Step of the best worst-case rate, 2/(s_max + s_min), (start, 1): 2/(L+μ) for GD."""
        return 2 / (self.rates[:, -1:] + self.rates[:, :1])


def modes(quadratic: Quadratic, start: Tensor, *, frozen: bool) -> Modes:
    """Modes of frozen Adam from w⁰ = start (start, d), or of GD if not ``frozen``."""
    gradient = quadratic.gradient(start)
    root = require_positive(gradient.abs(), "|g⁰|").sqrt() if frozen else torch.ones_like(start)
    rates, vectors = torch.linalg.eigh(quadratic.hessian / (root[:, :, None] * root[:, None, :]))
    along = vectors.mT @ (root * start)[..., None]  # (start, d, 1)
    return Modes(rates, root[..., None] * vectors * (rates[..., None] * along).mT)


def gradient_norms(modes: Modes, step: float | Tensor, at: Tensor) -> Tensor:
    """‖g‖ after ``at`` steps without iterating, (start, c) if step and ``at`` broadcast to it."""
    factors = 1 - as_column(step)[..., None] * modes.rates[:, None, :]  # (start, c, d)
    return (factors ** at.to(torch.float64)[..., None] @ modes.parts.mT).norm(dim=-1)


def steps_to(modes: Modes, step: float | Tensor) -> Tensor:
    """Count the steps that cut ‖g‖ by 10⁶, (start, c) for c steps η each.

    inf where the iteration diverges, or is slower than float64 resolves (ηs_min below 1e-12).
    By doubling, then bisection, for even and odd counts separately: a mode with ηs > 1 changes sign
    each step and makes Adam's ‖g‖ zigzag. GD's never grows, so its count is exact; Adam's may rise
    again for a while even so, and then this is one of the passes.
    """
    target = 1e-6 * modes.parts.sum(-1).norm(dim=-1, keepdim=True)
    step = as_column(step).expand(len(target), -1)
    converges = (step * modes.rates[:, -1:] < 2) & (step * modes.rates[:, :1] > 1e-12)
    counts = []
    for odd in (0, 1):
        low, high = torch.full_like(step, -1), torch.zeros_like(step)  # of (count − odd) / 2
        while (short := converges & (gradient_norms(modes, step, 2 * high + odd) > target)).any():
            low, high = torch.where(short, high, low), torch.where(short, 2 * high + 1, high)
        while (high - low > 1).any():
            middle = ((low + high) / 2).floor()
            short = gradient_norms(modes, step, 2 * middle + odd) > target
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        counts.append(2 * high + odd)
    return torch.where(converges, torch.minimum(*counts), torch.inf)


def best_step(modes: Modes) -> tuple[Tensor, Tensor]:
    """Search the constant step that cuts ‖g‖ by 10⁶ soonest; it and its count, (start, 1).

    Steps η = 2(1−δ)/s_max lie on a grid of log δ, from δ = ½ (smaller steps slow every mode) to a
    hundredth of the minimax step's δ, refined five times around the best. This knows the start: the
    minimax step, which guards against the worst one, takes up to several times as many.
    """
    top, low = modes.rates[:, -1:], modes.rates[:, :1]
    left, right = (low / (low + top) / 100).log(), torch.full_like(low, 0.5).log()
    for _ in range(6):
        grid = left + (right - left) * torch.linspace(0, 1, 17, dtype=torch.float64)
        step = 2 * (1 - grid.exp()) / top
        counts = steps_to(modes, step)
        best = counts.argmin(1, keepdim=True)
        left, right = (grid.gather(1, (best + side).clamp(0, 16)) for side in (-1, 1))
    return step.gather(1, best), counts.gather(1, best)


class AdamBound(NamedTuple):
    """The constants of the upper bound on frozen Adam: `adam_upper_bound`."""

    step: Tensor  #: (start, 1) η = min_l C_{l,1}; C_{l,1} = min_i |g⁰_{l,i}| / λ_max(H_l)
    #: (start, 1) r = max_l C_{l,2} / η; C_{l,2} = max_i |g⁰_{l,i}| / λ_max(H_l); the published r
    #: (recalled) is its square
    ratio: Tensor
    rate: Tensor  #: (start, 1) max_l (1 − 1/(r κ_l))²


def adam_upper_bound(quadratic: Quadratic, start: Tensor) -> AdamBound:
    """Bound the gap of `frozen_adam` at step η: ``gap(k+1) ≤ max_l (1 − 1/(r κ_l))² gap(k)``."""
    size = require_positive(quadratic.gradient(start).abs(), "|g⁰|")
    parts = size.split([len(block) for block in quadratic.blocks], dim=1)
    scaled = [part / b.max() for part, b in zip(parts, quadratic.blocks, strict=True)]
    scaled = torch.cat(scaled, dim=1)
    step = scaled.amin(1, keepdim=True)
    ratio = scaled.amax(1, keepdim=True) / step
    return AdamBound(step, ratio, (1 - 1 / (ratio * quadratic.block_kappa.max())) ** 2)


def gd_lower_bound(kappa: float) -> float:
    """((κ−1)/(κ+1))²: from `Quadratic.worst_start` no constant step of GD cuts the gap by more."""
    return ((kappa - 1) / (kappa + 1)) ** 2
