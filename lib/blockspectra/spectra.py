"""Spectra of Hessian blocks, kept as Lanczos coefficients.

Only the recurrence coefficients (α, β) are kept: they are small, and every density, moment or
distance follows from them for any grid and any σ.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from blockspectra.lanczos import gauss_quadrature


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of several blocks, as Lanczos coefficients; all arrays are float64 on the CPU.

    Attributes
    ----------
    names, sizes : list of str, list of int
        The blocks and their numbers of parameters.
    alpha, beta : ndarray, (block, probe, step)
        Diagonal and off-diagonal; ``beta[…, j]`` links step j to j+1, zero from a breakdown on.
    taken : ndarray of int, (block, probe)
        Steps that count: fewer where the Krylov space was exhausted.
    orthogonality : ndarray, (block, probe)
        Largest entry of ``|Q Qᵀ − I|`` of each Lanczos basis.
    meta : dict
        Anything that JSON can hold: seed, model, data.
    """

    names: list[str]
    sizes: list[int]
    alpha: np.ndarray
    beta: np.ndarray
    taken: np.ndarray
    orthogonality: np.ndarray
    meta: dict = field(default_factory=dict)

    @property
    def probes(self) -> int:
        """Number of probes of each block."""
        return self.alpha.shape[1]

    @cached_property
    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights of all blocks, (block, probe, step) each."""
        parts = (torch.from_numpy(x) for x in (self.alpha, self.beta, self.taken))
        nodes, weights = gauss_quadrature(*parts)
        return nodes.numpy(), weights.numpy()

    def index(self, block: int | str) -> int:
        """Position of a block given by position or name."""
        if isinstance(block, str):
            if block not in self.names:
                raise ValueError(f"No spectrum of a block {block!r}: there are {self.names}.")
            return self.names.index(block)
        return block

    def nodes(self, block: int | str) -> np.ndarray:
        """Ritz values of a block, (probe, step), ascending; the last repeats after a breakdown."""
        return self.quadrature[0][self.index(block)]

    def weights(self, block: int | str) -> np.ndarray:
        """Gauss weights of a block, (probe, step); each probe's sum to 1."""
        return self.quadrature[1][self.index(block)]

    @cached_property
    def largest(self) -> np.ndarray:
        """Largest Ritz value of each block over its probes, (block,): λ_max from below."""
        return self.quadrature[0].max(axis=(1, 2))

    def moment(self, order: int) -> np.ndarray:
        """Mean of λ^order over the spectrum, per probe, (block, probe); ``order < 2·steps``."""
        nodes, weights = self.quadrature
        return (weights * nodes**order).sum(-1)

    def traces(self) -> np.ndarray:
        """Estimated trace, per probe, (block, probe)."""
        return self.moment(1) * np.array(self.sizes)[:, None]

    def mass(self, edges: np.ndarray, sigma: float, transform=None) -> np.ndarray:
        """Share of the smoothed spectrum in each bin, per probe, (block, probe, bin).

        Parameters
        ----------
        edges : ndarray, (bin + 1,)
            Increasing.
        sigma : float
            In the units of ``edges``; see `bin_mass`.
        transform : callable, optional
            Maps nodes to the axis of ``edges``, e.g. a signed logarithm.
        """
        nodes, weights = self.quadrature
        nodes = nodes if transform is None else transform(nodes)
        return np.stack(
            [bin_mass(*pair, edges, sigma) for pair in zip(nodes, weights, strict=True)]
        )

    def density(self, grid: np.ndarray, sigma: float) -> np.ndarray:
        """Smoothed eigenvalue density, averaged over probes, (block, len(grid)).

        Parameters
        ----------
        grid : ndarray
            Increasing points; the value at a point is the mean density over the cell around it
            (halfway to its neighbours), so it integrates to 1 over the cells of any grid.
        sigma : float
            Width of the Gaussian, in units of the eigenvalues.
        """
        grid = np.asarray(grid, dtype=np.float64)
        middle = (grid[1:] + grid[:-1]) / 2
        edges = np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])
        return self.mass(edges, sigma).mean(1) / np.diff(edges)

    def select(self, blocks: Sequence[int | str] = (), probes: Sequence[int] | None = None):
        """Return the Spectra of some blocks (default: all) and some probes (default: all)."""
        rows = [self.index(b) for b in blocks] or list(range(len(self.names)))
        columns = list(range(self.probes)) if probes is None else list(probes)
        pick = np.ix_(rows, columns)
        return Spectra(
            [self.names[i] for i in rows],
            [self.sizes[i] for i in rows],
            *(x[pick] for x in (self.alpha, self.beta, self.taken, self.orthogonality)),
            self.meta,
        )

    def save(self, path: str | Path) -> Path:
        """Write to an ``.npz`` without pickle, with a checksum inside; atomic."""
        path = Path(path)
        arrays = {k: getattr(self, k) for k in ("alpha", "beta", "taken", "orthogonality")}
        header = {"names": self.names, "sizes": self.sizes, "meta": self.meta}
        header["sha256"] = _digest(header, arrays)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Spectra":
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is truncated, altered or not such a file: delete it and compute again.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in ("alpha", "beta", "taken", "orthogonality")}
                header = json.loads(str(file["header"]))
            found = header.pop("sha256")
            if found != _digest(header, arrays):
                raise ValueError("checksum differs")
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib, numpy and json each have their own for damage
            raise ValueError(
                f"{path} is damaged or no spectrum file ({error}): delete it and compute it again."
            ) from error
        return cls(header["names"], header["sizes"], **arrays, meta=header["meta"])


def bin_mass(nodes: np.ndarray, weights: np.ndarray, edges: np.ndarray, sigma: float) -> np.ndarray:
    """Share of a weighted set of points in each bin, each point smoothed by a Gaussian.

    The Gaussians are integrated over the bins, not sampled at grid points, so that no grid is too
    coarse and nothing aliases. What lies beyond the edges counts in the outer bins.

    Parameters
    ----------
    nodes, weights : ndarray, (…, n) float64
        The weights of the last axis sum to 1.
    edges : ndarray, (bin + 1,)
        Increasing.
    sigma : float
        Width of the Gaussian in the units of ``edges``; 0 for a histogram.

    Returns
    -------
    ndarray, (…, bin)
        Sums to 1 over the bins.
    """
    points, weights, inner = (torch.from_numpy(x) for x in (nodes, weights, edges[1:-1]))
    distance = inner - points[..., None]  # (…, n, bin - 1)
    below = torch.special.ndtr(distance / sigma) if sigma > 0 else (distance > 0).double()
    cumulative = torch.einsum("...n,...nx->...x", weights, below)
    total = weights.sum(-1, keepdim=True)
    return torch.cat([torch.zeros_like(total), cumulative, total], -1).diff().numpy()


def _digest(header: dict, arrays: dict) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
