r"""Lanczos tridiagonalisation of a symmetric operator.

Starting from a unit vector :math:`v`, :math:`m` steps build an orthonormal basis :math:`Q` of the
Krylov space :math:`\{v, Hv, …, H^{m-1}v\}` in which :math:`H` is tridiagonal, with diagonal
:math:`α` and off-diagonal :math:`β`. The eigenvalues :math:`θ` of that matrix (Ritz values) and the
squared first components :math:`ω` of its eigenvectors are a Gauss quadrature of the spectral
measure of :math:`H` seen from :math:`v` (see `quadrature`):

.. math:: \sum_j ω_j θ_j^k = v^\top H^k v \quad\text{exactly, for } k = 0, …, 2m-1.

Nothing here knows about models or losses.
Source: Golub & Meurant, *Matrices, Moments and Quadrature*, chapters 4 and 6; Ubaru, Chen & Saad,
"Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BASES = {"float64": torch.float64, "float32": torch.float32, "none": None}
VECTORS = 6  # float64 vectors a run needs beside its basis: three of its own, three in a step
COLUMNS = 2**16  # of a basis that are converted to float64 at a time


class Tridiagonal(NamedTuple):
    """What a Lanczos run leaves behind, float64 on the CPU, for any batch shape ``(…)``."""

    alpha: Tensor  #: (…, m) diagonal; zero from the breakdown on
    beta: Tensor  #: (…, m) couplings; beta[…, j] links step j to j+1, the last is the residual
    taken: Tensor  #: (…) int64, the steps that count: less than m where the Krylov space was full
    orthogonality: Tensor  #: (…) largest entry of ``|Q Qᵀ − I|``; nan without a basis
    skew: Tensor  #: (…) largest difference of ``qᵢᵀHqⱼ`` and ``qⱼᵀHqᵢ`` of neighbours


class Lanczos:
    """Lanczos runs from a batch of start vectors, advanced one product at a time.

    The caller multiplies `current` by its operator and hands the product to `absorb`. All scalars
    and the recurrence are float64 on the device of ``start``.

    Parameters
    ----------
    start : Tensor, (…, d)
        Start vectors; normalised here. ValueError if one is zero or not finite.
    steps : int
        Lanczos steps m, 1 or more; never more than d are taken.
    reorthogonalize : bool
        Orthogonalise twice a step: by the three-term recurrence, then by classical Gram–Schmidt
        against the whole basis. Together they hold the basis orthogonal to rounding error ("twice
        is enough"); the recurrence alone brings ghost copies of converged Ritz values, and
        Gram–Schmidt alone loses everything where a β is small beside the norm of H.
    basis : {torch.float64, torch.float32, None}
        Type of the basis, ``steps × start.numel()`` numbers, and of the dot products with it.
        None keeps no basis: four vectors are all, no re-orthogonalisation is possible, and the
        loss of orthogonality is not known.

    Attributes
    ----------
    current : Tensor, (…, d) float64
        The vector to be multiplied next: of unit length, or zero where a run has broken down.
    alpha, beta : Tensor, (…, m) float64
        Coefficients of the ``step`` steps taken so far, then zeros.
    """

    def __init__(
        self,
        start: Tensor,
        steps: int,
        *,
        reorthogonalize: bool = True,
        basis: torch.dtype | None = torch.float64,
    ):
        if steps < 1:
            raise ValueError(f"Lanczos needs at least one step, not {steps}: raise `steps`.")
        length = start.norm(dim=-1, keepdim=True, dtype=torch.float64)
        if not bool((torch.isfinite(length) & (length > 0)).all()):
            raise ValueError("A start vector is zero or not finite: draw it from a Gaussian.")
        batch, d = start.shape[:-1], start.shape[-1]
        self.current = self.previous = start.to(torch.float64) / length
        self.alpha = self.current.new_zeros(*batch, min(steps, d))
        self.beta = torch.zeros_like(self.alpha)
        self.step = 0
        self.taken = torch.zeros(batch, dtype=torch.int64, device=start.device)
        self.alive = torch.ones(batch, dtype=torch.bool, device=start.device)
        self.skew = self.current.new_zeros(batch)
        self.scale = self.current.new_zeros(batch)  # largest |α|, β so far: at most the norm of H
        self.basis = None
        if basis is not None:
            self.basis = start.new_empty(*self.alpha.shape, d, dtype=basis)  # (…, m, d)
            self.basis[..., 0, :] = self.current
        self.reorthogonalize = reorthogonalize and basis is not None

    @property
    def done(self) -> bool:
        """No step is left to take."""
        return self.step == self.alpha.shape[-1] or not bool(self.alive.any())

    def absorb(self, product: Tensor) -> None:
        """Take one step with the operator's product with `current`, (…, d) of any float dtype.

        Raises a ValueError if the product is not finite.
        """
        j, residual = self.step, product.to(torch.float64, copy=True)
        alpha = torch.linalg.vecdot(self.current, residual)
        if not bool(torch.isfinite(alpha).all()):  # else no entry is inf or nan
            raise ValueError(
                "A Hessian product is not finite: the loss overflows or has no second derivative "
                "here; try float64 and check the data and the weights for inf and nan."
            )
        alpha = torch.where(self.alive, alpha, 0.0)
        residual.addcmul_(self.current, alpha[..., None], value=-1)
        if j:
            back = torch.linalg.vecdot(self.previous, residual) - self.beta[..., j - 1]
            self.skew = torch.maximum(self.skew, torch.where(self.alive, back.abs(), 0.0))
            residual.addcmul_(self.previous, self.beta[..., j - 1, None], value=-1)
        noise = torch.finfo(product.dtype).eps
        if self.reorthogonalize:
            noise = max(noise, torch.finfo(self.basis.dtype).eps ** 2)  # both passes have a share
            for q, r in zip(self._rows(j + 1), residual.view(-1, residual.shape[-1]), strict=True):
                r -= (q @ r.to(q.dtype)) @ q
        norm = residual.norm(dim=-1)
        self.scale = torch.maximum(self.scale, torch.maximum(alpha.abs(), norm))
        self.taken += self.alive
        self.alive &= norm > 10 * noise * self.scale  # below: rounding error is left
        self.alpha[..., j], self.beta[..., j] = alpha, torch.where(self.alive, norm, 0.0)
        residual /= norm[..., None].clamp_min(1e-300)
        if not bool(self.alive.all()):
            residual *= self.alive[..., None]
        self.previous, self.current, self.step = self.current, residual, j + 1
        if self.basis is not None and not self.done:
            self.basis[..., j + 1, :] = self.current

    def result(self) -> Tridiagonal:
        """Return the coefficients of the steps taken so far."""
        loss = torch.full_like(self.scale, torch.nan)
        if self.basis is not None:
            identity = torch.arange(self.step, device=loss.device) < self.taken[..., None]
            gram = torch.stack([_gram(q) for q in self._rows(self.step)])
            gram = gram.view(*identity.shape, self.step)
            loss = (gram - torch.diag_embed(identity.double())).abs().amax(dim=(-1, -2))
        found = self.alpha, self.beta, self.taken, loss, self.skew
        return Tridiagonal(*(x.cpu() for x in found))

    def _rows(self, count: int) -> Tensor:
        """First vectors of the basis of each run, (run, count, d)."""
        return self.basis.view(-1, *self.basis.shape[-2:])[:, :count]


def _gram(rows: Tensor) -> Tensor:
    """``Q Qᵀ`` in float64, (row, row)."""
    parts = (part.double() for part in rows.split(COLUMNS, dim=-1))
    return sum(part @ part.mT for part in parts)


def basis_name(basis: str, dtype: torch.dtype) -> str:
    """Return the name in `BASES` that a choice means for a model of this dtype."""
    if basis == "auto":
        return "float64" if dtype == torch.float64 else "float32"
    if basis not in BASES:
        raise ValueError(f"Unknown basis {basis!r}: choose auto, or one of {', '.join(BASES)}.")
    return basis


def run_bytes(size: int, steps: int, basis: torch.dtype | None) -> int:
    """Bytes that one Lanczos run over a block of this size needs."""
    return size * (8 * VECTORS + (min(steps, size) * basis.itemsize if basis is not None else 0))


def lanczos(
    matvec: Callable[[Tensor], Tensor], start: Tensor, steps: int, **options
) -> Tridiagonal:
    """Run Lanczos on a batch of start vectors to its end; arguments as in `Lanczos`.

    ``matvec`` applies a symmetric operator to each vector of a batch, (…, d) float64. A run that
    breaks down (the Krylov space is exhausted) stops there with the exact space.
    """
    run = Lanczos(start, steps, **options)
    while not run.done:
        run.absorb(matvec(run.current))
    return run.result()
