"""Spectra of Hessian blocks, stored as Lanczos coefficients.

Only the recurrence coefficients (α, β) are stored: they are small, and every density, moment or
distance follows from them for any grid and any σ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blockspectra.files import load_arrays, save_arrays
from blockspectra.quadrature import ORTHOGONAL, deflated_quadrature, gauss_quadrature
from blockspectra.smoothing import bin_mass

if TYPE_CHECKING:  # slow to import
    import pandas as pd
    from matplotlib.figure import Figure

ARRAYS = ("alpha", "beta", "taken", "orthogonality")


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of several blocks, as Lanczos coefficients; all arrays are float64 on the CPU.

    Blocks may have different numbers of probes: those that a block lacks have ``taken == 0``.
    """

    names: list[str]  #: of the blocks
    sizes: list[int]  #: their numbers of parameters
    alpha: np.ndarray  #: (block, probe, step) diagonal
    #: (block, probe, step) off-diagonal: ``beta[…, j]`` links step j to j+1, 0 from a breakdown on
    beta: np.ndarray
    #: (block, probe) int, steps that count: fewer where the Krylov space was exhausted
    taken: np.ndarray
    orthogonality: np.ndarray  #: (block, probe) largest entry of ``|Q Qᵀ − I|`` of a Lanczos basis
    meta: dict = field(default_factory=dict)  #: anything that JSON can hold: seed, model, data

    @property
    def probes(self) -> int:
        """Number of probes of the blocks that have most."""
        return self.alpha.shape[1]

    @property
    def present(self) -> np.ndarray:
        """Which probes a block has, (block, probe) bool."""
        return self.taken > 0

    @property
    def counts(self) -> np.ndarray:
        """Number of probes that each block has, (block,)."""
        return self.present.sum(1)

    @cached_property
    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights of all blocks, (block, probe, step) each.

        A missing probe has the nodes of its block's first one, with weights 0: a minimum or
        maximum over nodes and a sum of weights stay right.
        """
        arrays = self.alpha, self.beta, self.taken
        if self.meta.get("deflated"):
            nodes, weights = deflated_quadrature(*arrays, self.sizes)
        else:
            nodes, weights = gauss_quadrature(*arrays)
        blocks, missing = np.nonzero(~self.present)
        nodes[blocks, missing] = nodes[blocks, self.present.argmax(1)[blocks]]
        return nodes, weights

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
        """Gauss weights of a block, (probe, step); each probe's sum to 1, or 0 if it is missing."""
        return self.quadrature[1][self.index(block)]

    @cached_property
    def largest(self) -> np.ndarray:
        """Largest Ritz value of each block over its probes, (block,): λ_max from below."""
        return self.quadrature[0].max(axis=(1, 2))

    def eigenvalues(self, top: int = 1) -> pd.DataFrame:
        """Bounds from below on each block's largest eigenvalues, a row a block, columns 1 … top.

        The k-th largest Ritz value of a probe is at most the k-th largest eigenvalue; here is the
        best of all probes, nan where none found as many. The largest converge first, and a multiple
        eigenvalue is found once.
        """
        import pandas as pd

        nodes = self.quadrature[0]
        taken = np.arange(nodes.shape[-1]) < self.taken[..., None]
        best = np.sort(np.where(taken, nodes, -np.inf), axis=-1)[..., ::-1].max(axis=1)[:, :top]
        columns = pd.RangeIndex(1, best.shape[1] + 1, name="eigenvalue")
        table = pd.DataFrame(best, pd.Index(self.names, name="block"), columns)
        return table.where(np.isfinite(best)).reindex(columns=range(1, top + 1))

    def to_frame(self) -> pd.DataFrame:
        """Nodes and weights as a table: block, probe, eigenvalue, weight, a row a Ritz value."""
        import pandas as pd

        taken = np.arange(self.alpha.shape[-1]) < self.taken[..., None]
        block, probe, _ = np.nonzero(taken)
        nodes, weights = (array[taken] for array in self.quadrature)
        columns = {"block": np.array(self.names, dtype=object)[block], "probe": probe}
        return pd.DataFrame(columns | {"eigenvalue": nodes, "weight": weights})

    def plot(self, title: str = "") -> Figure:
        """Draw the spectra, a row a block: density per decade on a signed-log axis, as colour."""
        from blockspectra.plotting.spectra import relative_density, spectrum_raster

        figure = spectrum_raster(relative_density(self).assign(model=title), title)
        figure.axes[0].set_title(title)
        return figure

    def moment(self, order: int) -> np.ndarray:
        """Mean of λ^order, (block, probe), ``order < 2·steps``; nan for missing probes."""
        nodes, weights = self.quadrature
        return np.where(self.present, (weights * nodes**order).sum(-1), np.nan)

    def traces(self) -> np.ndarray:
        """Estimated trace, per probe, (block, probe); nan for missing probes."""
        return self.moment(1) * np.array(self.sizes)[:, None]

    def mass(self, edges: np.ndarray, sigma: float, transform=None) -> np.ndarray:
        """Share of the smoothed spectrum in each bin, (block, probe, bin); see `bin_mass`.

        ``transform`` maps nodes to the axis of ``edges``, e.g. a signed logarithm; ``sigma`` is in
        units of that axis. nan for missing probes.
        """
        nodes, weights = self.quadrature
        mass = bin_mass(nodes if transform is None else transform(nodes), weights, edges, sigma)
        mass[~self.present] = np.nan
        return mass

    def density(self, grid: np.ndarray, sigma: float) -> np.ndarray:
        """Smoothed eigenvalue density, averaged over probes, (block, len(grid)).

        The value at a point of the increasing grid is the mean density over the cell around it
        (halfway to its neighbours), so it integrates to 1 over the cells of any grid. ``sigma`` is
        the width of the Gaussian, in units of the eigenvalues.
        """
        grid = np.asarray(grid, dtype=np.float64)
        middle = (grid[1:] + grid[:-1]) / 2
        edges = np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])
        nodes, weights = self.quadrature
        weights = weights / self.counts[:, None, None]
        pooled = (x.reshape(len(x), -1) for x in (nodes, weights))  # (block, probe·step)
        return bin_mass(*pooled, edges, sigma) / np.diff(edges)

    def select(self, blocks: Sequence[int | str] = (), probes: Sequence[int] | None = None):
        """Return the Spectra of some blocks (default: all) and some probes (default: all).

        A probe that none of these blocks has is left out; ValueError if a block would have none.
        """
        rows = [self.index(b) for b in blocks] or list(range(len(self.names)))
        columns = list(range(self.probes)) if probes is None else list(probes)
        present = self.present[np.ix_(rows, columns)]
        if not present.any(1).all():
            bare = self.names[rows[int(np.argmin(present.any(1)))]]
            raise ValueError(f"Block {bare!r} has none of the probes {columns}: keep one it has.")
        pick = np.ix_(rows, [k for k, some in zip(columns, present.any(0), strict=True) if some])
        return replace(
            self,
            names=[self.names[i] for i in rows],
            sizes=[self.sizes[i] for i in rows],
            **{key: getattr(self, key)[pick] for key in ARRAYS},
        )

    def deflated(self) -> Spectra:
        """Return a copy whose quadrature weighs single eigenvalues that were found exactly.

        It has ``meta["deflated"]``, which files keep. Moments and traces are then no longer exact
        for a probe, but nearer to the block's: see `quadrature`. ValueError if a basis was not kept
        orthogonal.
        """
        loss = self.orthogonality[self.present]
        if not (loss <= ORTHOGONAL).all():
            raise ValueError(
                f"Deflation needs Lanczos bases orthogonal to {ORTHOGONAL:g}, not {loss.max():.1g} "
                '(nan: no basis was kept): compute the spectra again with basis="float64".'
            )
        return replace(self, meta={**self.meta, "deflated": True})

    def save(self, path: str | Path) -> Path:
        """Write to an ``.npz`` without pickle, with a checksum inside; atomic."""
        arrays = {key: getattr(self, key) for key in ARRAYS}
        header = {"names": self.names, "sizes": self.sizes, "meta": self.meta}
        return save_arrays(Path(path), header, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Spectra:
        """Read what `save` wrote; ValueError if the file is damaged or holds something else."""
        header, arrays = load_arrays(Path(path))
        if set(header) != {"names", "sizes", "meta"} or set(arrays) != set(ARRAYS):
            raise ValueError(f"{path} holds no spectra: delete it and compute it again.")
        return cls(**header, **arrays)


def concat(parts: Sequence[Spectra], names: Sequence[str] | None = None) -> Spectra:
    """Put the blocks of several spectra side by side.

    All parts must have as many probes and steps. ``names`` has one for each block of each part, in
    their order; by default those they have. ``meta`` of the result is what all parts have in
    common.
    """
    first = parts[0]
    names = [name for part in parts for name in part.names] if names is None else list(names)
    sizes = [size for part in parts for size in part.sizes]
    if len(names) != len(sizes) or len(set(names)) < len(names):
        raise ValueError(f"Give a name of its own to each of the {len(sizes)} spectra: {names}.")
    if len({(part.alpha.shape[1:], part.meta.get("deflated", False)) for part in parts}) > 1:
        raise ValueError(
            "Spectra differ in probes, in steps or in being deflated: compute them alike."
        )
    shared = [item for item in first.meta.items() if all(item in p.meta.items() for p in parts)]
    arrays = {key: np.concatenate([getattr(part, key) for part in parts]) for key in ARRAYS}
    return replace(first, names=names, sizes=sizes, meta=dict(shared), **arrays)
