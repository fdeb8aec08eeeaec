"""Eigenpairs of a block that one Lanczos run has found, for further runs to be kept off them.

A further probe finds the same extreme eigenvalues again, step by step, before it tells anything
new. Kept off their eigenvectors it is a run of the operator on the other dimensions, whose spectrum
is narrower: it needs a third to two thirds of the steps. Its start is uniform there, as it was
everywhere, so its quadrature is unbiased for the rest of the spectrum.
Source: Chen & Hallman, "Krylov-aware stochastic trace estimation", 2023.
"""

from typing import NamedTuple

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from blockspectra.deflation import ritz, single
from blockspectra.lanczos import Lanczos


class Known(NamedTuple):
    """Single eigenvalues that are not zero, with their eigenvectors."""

    values: Tensor  #: (known,) float64 on the CPU
    vectors: Tensor  #: (known, d) orthonormal, in the type of the basis and where it is

    def kept_off(self) -> dict:
        """Return the arguments of a `Lanczos` that is to be kept off them."""
        return {"outside": self.vectors, "norm": float(self.values.abs().max())}


def known_eigenpairs(run: Lanczos, size: int) -> Known | None:
    """Return the eigenpairs that a run of one probe has found, if any; see `deflation.single`."""
    m = int(run.taken)
    alpha, beta = (x[:m].cpu().numpy() for x in (run.alpha, run.beta))
    (exact,) = single([ritz(alpha, beta)], size)
    if not exact.any():
        return None
    nodes, vectors = eigh_tridiagonal(alpha, beta[:-1])
    rows = torch.from_numpy(vectors[:, exact].T.copy()).to(run.basis)
    return Known(torch.from_numpy(nodes[exact]), rows @ run.basis[:m])
