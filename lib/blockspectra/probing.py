"""Which probes of which blocks are wanted, how many steps each needs, and what came of them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from blockspectra.blocks import Block
from blockspectra.lanczos import Lanczos, Tridiagonal
from blockspectra.spectra import Spectra
from blockspectra.stopping import enough_steps, probes_needed, spectrum_error
from blockspectra.units import Unit

EVERY = 10  # steps between two looks at whether there are enough
BY_STEPS = 0.9  # share of a tolerance that too few steps may take up where more were not allowed:
# no number of probes makes up for all of it
FEWEST = 2  # probes of a block under a tolerance: with one the spread between them is not known


class Probing:
    """The probes of all blocks: a fixed number of steps and probes, or as many as are needed.

    Parameters
    ----------
    blocks : sequence of Block
    steps, probes : int
        The most of either.
    tolerance : float or None
        See `block_spectra`.
    mine : callable, int → bool
        Says which runs this process computes.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        steps: int,
        probes: int,
        tolerance: float | None,
        mine: Callable[[int], bool],
    ):
        self.blocks, self.probes, self.tolerance, self.mine = blocks, probes, tolerance, mine
        shape = (len(blocks), probes, min(steps, max(block.size for block in blocks)))
        self.alpha, self.beta = np.zeros(shape), np.zeros(shape)
        self.taken, self.orthogonality = np.zeros(shape[:2]), np.zeros(shape[:2])

    def missing(self, together: int) -> list[Unit]:
        """List the runs that are still to be made, ``together`` probes in each."""
        units = []
        for i, block in enumerate(self.blocks):
            # under a tolerance the number of probes follows from a block's first ones
            wanted = [k for k in range(self._wanted(i)) if self.taken[i, k] == 0]
            wanted = [k for k in wanted if self.mine(i if self.tolerance else i + k)]
            groups = (tuple(wanted[j : j + together]) for j in range(0, len(wanted), together))
            units += [Unit(i, block, probes) for probes in groups]
        return units

    def enough(self, unit: Unit, run: Lanczos) -> bool:
        """Say whether further steps of a run are of no use under the tolerance."""
        if self.tolerance is None or run.step % EVERY:
            return False
        rows = (x[..., : run.step].reshape(-1, run.step) for x in (run.alpha, run.beta))
        pairs = zip(*(x.cpu().numpy() for x in rows), strict=True)
        about = unit.block.size, self.tolerance, FEWEST
        return all(enough_steps(*pair, *about) for pair in pairs)

    def add(self, unit: Unit, result: Tridiagonal) -> None:
        """Take in a finished run."""
        for row, k in enumerate(unit.probes):
            alpha, beta, taken, loss = (x.view(len(unit.probes), -1)[row].numpy() for x in result)
            self.alpha[unit.number, k, : len(alpha)] = alpha
            self.beta[unit.number, k, : len(beta)] = beta
            self.taken[unit.number, k], self.orthogonality[unit.number, k] = taken[0], loss[0]

    def spectra(self, meta: dict, total: Callable[[torch.Tensor], torch.Tensor]) -> Spectra:
        """Return all runs, those of other processes too, which ``total`` adds up."""
        for key in ("alpha", "beta", "taken", "orthogonality"):
            setattr(self, key, total(torch.from_numpy(getattr(self, key))).numpy())
        probes = int((self.taken > 0).sum(1).max())
        steps = self.alpha.shape[2] if self.tolerance is None else int(self.taken.max())
        found = Spectra(
            [block.name for block in self.blocks],
            [block.size for block in self.blocks],
            self.alpha[:, :probes, :steps],
            self.beta[:, :probes, :steps],
            self.taken[:, :probes].astype(np.int64),
            self.orthogonality[:, :probes],
            meta,
        )
        if self.tolerance is None:
            return found
        meta["error"] = [list(self._error(i)) for i in range(len(self.blocks))]
        return found.deflated()

    def _wanted(self, i: int) -> int:
        if self.tolerance is None:
            return self.probes
        have = np.count_nonzero(self.taken[i])
        if have < FEWEST:
            return FEWEST
        by_steps = min(self._error(i)[0], BY_STEPS * self.tolerance)  # more where the cap was met
        left = (self.tolerance**2 - by_steps**2) ** 0.5
        needed = probes_needed(*self._known(i), self.blocks[i].size, left)
        return min(self.probes, max(have, needed))

    def _known(self, i: int) -> tuple[np.ndarray, ...]:
        have = np.count_nonzero(self.taken[i])
        return self.alpha[i, :have], self.beta[i, :have], self.taken[i, :have].astype(np.int64)

    def _error(self, i: int) -> tuple[float, float]:
        return spectrum_error(*self._known(i), self.blocks[i].size)
