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

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STATE = ("current", "previous", "alpha", "beta", "taken", "alive", "scale")
COPIED = 2**22  # numbers of a basis that are converted at once: at most 32 MiB


class Tridiagonal(NamedTuple):
    """What a Lanczos run leaves behind, float64 on the CPU, for any batch shape ``(…)``."""

    alpha: Tensor  #: (…, m) diagonal; zero from the breakdown on
    beta: Tensor  #: (…, m) couplings; beta[…, j] links step j to j+1, the last is the residual
    taken: Tensor  #: (…) int64, the steps that count: less than m where the Krylov space was full
    #: (…) largest entry of ``|Q Qᵀ − I|``, with vectors outside, if any; nan without a basis
    orthogonality: Tensor


class Lanczos:
    """A batch of Lanczos runs in lockstep, which can rest between two steps.

    The caller multiplies `current` by its operator and hands the product to `absorb`. All scalars
    and the recurrence are float64 on the device of ``start``.

    Parameters
    ----------
    start : Tensor, (…, d)
        Start vectors; normalised here.
    steps : int
        Lanczos steps m; never more than d are taken.
    reorthogonalize : bool
        Two orthogonalisation passes a step: the three-term recurrence, then classical Gram–Schmidt
        against the whole basis. Together they hold the basis orthogonal to rounding error ("twice
        is enough"); the recurrence alone brings ghost copies of converged Ritz values, and
        Gram–Schmidt alone loses everything where a β is small beside the norm of H.
    basis : torch.dtype or None
        In what the basis is kept, ``steps × start.numel()`` numbers. Dot products with it are in
        the wider of this type and the products', and each step shrinks what orthogonality was lost
        by the rounding error of this type. None keeps no basis: four vectors are all, no
        re-orthogonalisation is possible, its loss is not known.
    device : torch.device, optional
        Where the basis is kept, by default with ``start``: the host, where it does not fit a GPU.
    outside : Tensor, (k, d), optional
        Orthonormal vectors that every run stays orthogonal to: eigenvectors that are known. It is
        then one of the operator on the other d - k dimensions. Needs re-orthogonalisation.
    norm : float
        What the norm of the operator is known to be at least: the largest eigenvalue outside.

    Attributes
    ----------
    current : Tensor, (…, d) float64
        The vector to be multiplied next: of unit length, or zero where a run has ended.
    step : int
        Steps taken.
    done : bool
        No step is left to take.

    Raises
    ------
    ValueError
        If ``steps`` is below 1, or a start vector is zero or not finite.
    """

    def __init__(
        self,
        start: Tensor,
        steps: int,
        *,
        reorthogonalize: bool = True,
        basis: torch.dtype | None = torch.float64,
        device: torch.device | None = None,
        outside: Tensor | None = None,
        norm: float = 0.0,
    ):
        if steps < 1:
            raise ValueError(f"Lanczos needs at least one step, not {steps}: raise `steps`.")
        length = start.norm(dim=-1, keepdim=True, dtype=torch.float64)
        if not bool((torch.isfinite(length) & (length > 0)).all()):
            raise ValueError("A start vector is zero or not finite: draw it from a Gaussian.")
        self.current = start.to(torch.float64) / length
        self.outside = outside
        if outside is not None:
            for vector in self.current.view(-1, start.shape[-1]):
                for _ in range(2):  # twice is enough
                    self._subtract(vector, outside, outside.dtype)
            self.current /= self.current.norm(dim=-1, keepdim=True)
        self.previous = self.current  # of no consequence before the second step
        self.step, self.done = 0, False
        size = start.shape[-1] - (0 if outside is None else len(outside))
        batch, steps = start.shape[:-1], min(steps, size)
        self.alpha = self.current.new_zeros(*batch, steps)
        self.beta = torch.zeros_like(self.alpha)
        self.taken = torch.zeros(batch, dtype=torch.int64, device=start.device)
        self.alive = torch.ones(batch, dtype=torch.bool, device=start.device)
        # largest |α|, β so far: at most the norm of H
        self.scale = self.current.new_full(batch, norm)
        self.reorthogonalize = reorthogonalize and basis is not None
        self.basis = (
            torch.empty(*batch, steps, start.shape[-1], dtype=basis, device=device or start.device)
            if basis is not None
            else None
        )
        self._keep(0, self.current)

    def absorb(self, product: Tensor) -> None:
        """Take one step with the operator's product with `current`, (…, d) of any float dtype.

        Raises
        ------
        ValueError
            If the product is not finite; the run is left as it was.
        """
        residual = product.to(torch.float64, copy=True)
        alpha = torch.linalg.vecdot(self.current, residual)
        if not bool(torch.isfinite(alpha).all()):  # else no entry is inf or nan
            raise ValueError(
                "A Hessian product is not finite: the loss overflows or has no second derivative "
                "here; try float64 and check the data and the weights for inf and nan."
            )
        # what a product or, squared for both have a share, vectors of the basis are rounded by
        noise = torch.finfo(product.dtype).eps
        if self.reorthogonalize:
            noise = max(noise, torch.finfo(self.basis.dtype).eps ** 2)
        j = self.step
        alpha = torch.where(self.alive, alpha, 0.0)
        residual.addcmul_(self.current, alpha[..., None], value=-1)
        if j:
            residual.addcmul_(self.previous, self.beta[..., j - 1, None], value=-1)
        if self.reorthogonalize:
            self._project_out(residual, torch.promote_types(product.dtype, self.basis.dtype))
        norm = residual.norm(dim=-1)
        scale = torch.maximum(self.scale, torch.maximum(alpha.abs(), norm))
        alive = self.alive & (norm > 10 * noise * scale)  # below: rounding error is left
        self.alpha[..., j], self.beta[..., j] = alpha, torch.where(alive, norm, 0.0)
        residual /= norm[..., None].clamp_min(1e-300)
        current = residual if bool(alive.all()) else residual * alive[..., None]
        done = j + 1 == self.alpha.shape[-1] or not bool(alive.any())
        if not done:
            self._keep(j + 1, current)
        # only now, so that a step during which memory runs out can be taken again
        self.taken = self.taken + self.alive
        self.scale, self.alive, self.done, self.step = scale, alive, done, j + 1
        self.previous, self.current = self.current, current

    @property
    def unwritten(self) -> int:
        """Bytes of the basis that further steps will fill."""
        return 0 if self.basis is None else self.basis[..., self.step :, :].nbytes

    def result(self) -> Tridiagonal:
        """Return the coefficients of the steps taken so far."""
        loss = torch.full_like(self.scale, torch.nan)
        if self.basis is not None:
            gram = torch.stack(
                [
                    sum(part @ part.mT for _, part in self._columns(run, torch.float64))
                    for run in self._runs(self.step)
                ]
            ).view(*self.alpha.shape[:-1], self.step, self.step)
            used = torch.arange(self.step, device=gram.device) < self.taken[..., None]
            loss = (gram - torch.diag_embed(used.double())).abs().amax(dim=(-1, -2))
            if self.outside is not None:
                across = [
                    sum(
                        part @ self.outside[:, at].to(part).mT
                        for at, part in self._columns(run, torch.float64)
                    )
                    for run in self._runs(self.step)
                ]
                loss = loss.maximum(torch.stack(across).abs().amax(dim=(-1, -2)).view_as(loss))
        return Tridiagonal(*(x.cpu() for x in (self.alpha, self.beta, self.taken, loss)))

    def state(self, since: int = 0) -> dict[str, Tensor]:
        """Return all that `restore` needs to go on, with the basis from step ``since`` on."""
        state = {key: getattr(self, key) for key in STATE} | {"step": torch.tensor(self.step)}
        if self.basis is not None:  # as bytes: NumPy has no bfloat16
            state["basis"] = self.basis[..., since : self.step, :].view(torch.uint8)
        return state

    def restore(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go back to where states, whose bases follow one another, were taken from such a run."""
        for key in STATE:
            setattr(self, key, states[-1][key].to(self.current.device))
        self.step = int(states[-1]["step"])
        if self.basis is not None:
            rows = torch.cat([state["basis"] for state in states], dim=-2)
            self.basis[..., : self.step, :] = rows.view(self.basis.dtype).to(self.basis.device)
        self.done = self.step == self.alpha.shape[-1] or not bool(self.alive.any())
        if not self.done:
            self._keep(self.step, self.current)

    def _keep(self, step: int, vector: Tensor) -> None:
        if self.basis is not None:
            self.basis[..., step, :] = vector

    def _project_out(self, residual: Tensor, dtype: torch.dtype) -> None:
        """Subtract from ``residual``, in place, its projection on the basis so far."""
        vectors = residual.view(-1, residual.shape[-1])
        for run, vector in zip(self._runs(self.step + 1), vectors, strict=True):
            if self.outside is not None:
                self._subtract(vector, self.outside, dtype)
            self._subtract(vector, run, dtype)

    def _subtract(self, vector: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
        rounded = vector.to(dtype)
        overlap = sum(part @ rounded[at] for at, part in self._columns(rows, dtype))
        for at, part in self._columns(rows, dtype):
            vector[at].sub_(overlap @ part)  # `-=` would copy it onto itself too

    def _runs(self, rows: int) -> Tensor:
        """First rows of the basis of each run, (run, rows, d)."""
        return self.basis.view(-1, *self.basis.shape[-2:])[:, :rows]

    def _columns(self, run: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Parts of a run's basis in ``dtype`` where the run is, small if copied."""
        size = run.shape[-1]
        here = run.dtype == dtype and run.device == self.current.device
        width = size if here else max(1, COPIED // len(run))
        for at in (slice(i, i + width) for i in range(0, size, width)):
            yield at, run[:, at].to(self.current.device, dtype)


def lanczos(matvec: Callable[[Tensor], Tensor], start: Tensor, steps: int, **kept) -> Tridiagonal:
    """Run Lanczos on a batch of start vectors to its end.

    Parameters
    ----------
    matvec : callable, (…, d) float64 → (…, d) any float dtype
        Applies a symmetric operator to each vector of the batch.
    start, steps, **kept
        As in `Lanczos`.

    Returns
    -------
    Tridiagonal
        A run that breaks down (the Krylov space is exhausted) stops there with the exact space.

    Raises
    ------
    ValueError
        If ``steps`` is below 1, a start vector is zero, or a product is not finite.
    """
    run = Lanczos(start, steps, **kept)
    while not run.done:
        run.absorb(matvec(run.current))
    return run.result()


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
