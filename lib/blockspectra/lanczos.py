r"""Lanczos tridiagonalisation of a symmetric operator, and Gauss quadrature from it.

Starting from a unit vector :math:`v`, :math:`m` steps build an orthonormal basis :math:`Q` of the
Krylov space :math:`\{v, Hv, …, H^{m-1}v\}` in which :math:`H` is tridiagonal, with diagonal
:math:`α` and off-diagonal :math:`β`. The eigenvalues :math:`θ` of that matrix (Ritz values) and the
squared first components :math:`ω` of its eigenvectors are a Gauss quadrature of the spectral
measure of :math:`H` seen from :math:`v`:

.. math:: \sum_j ω_j θ_j^k = v^\top H^k v \quad\text{exactly, for } k = 0, …, 2m-1.

Nothing here knows about models or losses.
Source: Golub & Meurant, *Matrices, Moments and Quadrature*, chapters 4 and 6; Ubaru, Chen & Saad,
"Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tridiagonal(NamedTuple):
    """What a Lanczos run leaves behind, float64 on the CPU, for any batch shape ``(…)``."""

    alpha: Tensor  #: (…, m) diagonal; zero from the breakdown on
    beta: Tensor  #: (…, m) couplings; beta[…, j] links step j to j+1, the last is the residual
    taken: Tensor  #: (…) int64, the steps that count: less than m where the Krylov space was full
    orthogonality: Tensor  #: (…) largest entry of ``|Q Qᵀ − I|``: the loss of orthogonality


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    *,
    reorthogonalize: bool = True,
) -> Tridiagonal:
    """Run Lanczos on a batch of start vectors in lockstep.

    The basis, its dot products and all scalars are float64 on the device of ``start``, whatever
    dtype ``matvec`` works in: memory is ``steps × start.numel() × 8`` bytes.

    Parameters
    ----------
    matvec : callable, (…, d) float64 → (…, d) any float dtype
        Applies a symmetric operator to each vector of the batch.
    start : Tensor, (…, d)
        Start vectors; normalised here.
    steps : int
        Lanczos steps m; never more than d are taken.
    reorthogonalize : bool
        Two orthogonalisation passes a step: the three-term recurrence, then classical Gram–Schmidt
        against the whole basis. Together they hold the basis orthogonal to rounding error ("twice
        is enough"); the recurrence alone brings ghost copies of converged Ritz values, and
        Gram–Schmidt alone loses everything where a β is small beside the norm of H.

    Returns
    -------
    Tridiagonal
        A run that breaks down (the Krylov space is exhausted) stops there with the exact space.

    Raises
    ------
    ValueError
        If ``steps`` is below 1, a start vector is zero, or a product is not finite.
    """
    if steps < 1:
        raise ValueError(f"Lanczos needs at least one step, not {steps}: raise `steps`.")
    start = start.to(torch.float64)
    length = start.norm(dim=-1, keepdim=True)
    if not bool((length > 0).all()):
        raise ValueError("A start vector is zero or not finite: draw it from a Gaussian.")
    steps = min(steps, start.shape[-1])
    batch = start.shape[:-1]
    basis = start.new_zeros(*batch, steps, start.shape[-1])  # (…, m, d)
    alpha, beta = start.new_zeros(*batch, steps), start.new_zeros(*batch, steps)
    taken = torch.zeros(batch, dtype=torch.int64, device=start.device)
    alive = torch.ones(batch, dtype=torch.bool, device=start.device)
    scale = start.new_zeros(batch)  # largest |α| or β so far: a lower bound of the spectral norm
    current = start / length
    for j in range(steps):
        basis[..., j, :] = torch.where(alive[..., None], current, 0.0)
        product = matvec(current)
        if not bool(torch.isfinite(product).all()):
            raise ValueError(
                "A Hessian product is not finite: the loss overflows or has no second derivative "
                "here; try float64 and check the data and the weights for inf and nan."
            )
        noise = torch.finfo(product.dtype).eps
        residual = product.to(torch.float64)
        alpha[..., j] = torch.where(alive, (current * residual).sum(-1), 0.0)
        taken += alive
        residual = residual - alpha[..., j, None] * current
        if j:
            residual = residual - beta[..., j - 1, None] * basis[..., j - 1, :]
        if reorthogonalize:
            overlap = torch.einsum("...jd,...d->...j", basis[..., : j + 1, :], residual)
            residual = residual - torch.einsum("...jd,...j->...d", basis[..., : j + 1, :], overlap)
        norm = residual.norm(dim=-1)
        scale = torch.maximum(scale, torch.maximum(alpha[..., j].abs(), norm))
        alive = alive & (norm > 10 * noise * scale)  # below: only rounding error is left to follow
        beta[..., j] = torch.where(alive, norm, 0.0)
        if not bool(alive.any()):
            break
        current = torch.where(alive[..., None], residual / norm[..., None].clamp_min(1e-300), 0.0)
    gram = basis @ basis.transpose(-1, -2)  # (…, m, m)
    unit = torch.diag_embed((torch.arange(steps, device=start.device) < taken[..., None]).double())
    loss = (gram - unit).abs().amax(dim=(-1, -2))
    return Tridiagonal(alpha.cpu(), beta.cpu(), taken.cpu(), loss.cpu())


def gauss_quadrature(alpha: Tensor, beta: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (Ritz values) and weights of the quadrature; the arguments are those of `Tridiagonal`.

    Returns
    -------
    nodes, weights : Tensor, (…, m) float64
        Nodes ascend; the weights of one run are not negative and sum to 1. Steps after a breakdown
        repeat the largest node with weight 0, so a minimum or maximum over nodes stays right.
    """
    nodes, weights = torch.zeros_like(alpha), torch.zeros_like(alpha)
    rows = (x.view(-1, alpha.shape[-1]) for x in (alpha, beta, nodes, weights))
    for a, b, node, weight, m in zip(*rows, taken.view(-1), strict=True):  # lengths differ
        m = int(m)
        matrix = torch.diag(a[:m]) + torch.diag(b[: m - 1], 1) + torch.diag(b[: m - 1], -1)
        node[:m], vectors = torch.linalg.eigh(matrix)
        node[m:] = node[m - 1]
        weight[:m] = vectors[0] ** 2
    return nodes, weights
