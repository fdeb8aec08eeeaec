"""Which probes of which blocks are wanted, how many steps each needs, and what came of them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from blockspectra.blocks import Block
from blockspectra.known import Known
from blockspectra.lanczos import Lanczos, Tridiagonal
from blockspectra.spectra import Spectra
from blockspectra.stopping import NONE, enough_steps, probes_needed, spectrum_error
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
    together : int
        Probes in each run.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        steps: int,
        probes: int,
        tolerance: float | None,
        mine: Callable[[int], bool],
        together: int = 1,
    ):
        self.together, self.begun = together, [0] * len(blocks)  # probes begun of each block
        self.blocks, self.probes, self.tolerance, self.mine = blocks, probes, tolerance, mine
        shape = (len(blocks), probes, min(steps, max(block.size for block in blocks)))
        self.alpha, self.beta = np.zeros(shape), np.zeros(shape)
        self.taken, self.orthogonality = np.zeros(shape[:2]), np.zeros(shape[:2])
        self.outside = np.zeros((*shape[:2], shape[2] if tolerance else 0))
        self.known: dict[int, Known | None] = {}  # of blocks that have one probe or more, not all

    def first(self) -> list[Unit]:
        """List the runs to begin with."""
        return [unit for i in range(len(self.blocks)) for unit in self._missing(i)]

    def take(self, unit: Unit, result: Tridiagonal, known: Known | None) -> list[Unit]:
        """Take in a finished run, and list those that its block needs beside all begun so far."""
        i = unit.number
        for row, k in enumerate(unit.probes):
            alpha, beta, taken, loss = (x.view(len(unit.probes), -1)[row].numpy() for x in result)
            self.alpha[i, k, : len(alpha)] = alpha
            self.beta[i, k, : len(beta)] = beta
            self.taken[i, k], self.orthogonality[i, k] = taken[0], loss[0]
            if kept_off := self.known_to(unit):
                self.outside[i, k, : len(kept_off.values)] = kept_off.values.numpy()
        if self.tolerance is None:
            return []
        if self.learn(unit):
            self.known[i] = known
        if np.count_nonzero(self.taken[i]) < self.begun[i]:
            return []  # how many are needed is asked when all have ended
        units = self._missing(i)
        if not units:
            self.known.pop(i, None)
        return units

    def learn(self, unit: Unit) -> bool:
        """Say whether eigenpairs are wanted of a run: under a tolerance, of a block's first."""
        return self.tolerance is not None and unit.probes == (0,)

    def known_to(self, unit: Unit) -> Known | None:
        """Return the eigenpairs that a run is to be kept off."""
        return self.known.get(unit.number)

    def _missing(self, i: int) -> list[Unit]:
        # under a tolerance the number of probes follows from a block's first ones
        wanted = range(self.begun[i], self._wanted(i))
        wanted = [k for k in wanted if self.mine(i if self.tolerance else i + k)]
        self.begun[i] = max(self.begun[i], self._wanted(i) if wanted else 0)
        groups = (wanted[j : j + self.together] for j in range(0, len(wanted), self.together))
        return [Unit(i, self.blocks[i], tuple(probes)) for probes in groups]

    def enough(self, unit: Unit, run: Lanczos) -> bool:
        """Say whether further steps of a run are of no use under the tolerance."""
        if self.tolerance is None or run.step % EVERY:
            return False
        rows = (x[..., : run.step].reshape(-1, run.step) for x in (run.alpha, run.beta))
        pairs = zip(*(x.cpu().numpy() for x in rows), strict=True)
        known = self.known_to(unit)
        about = unit.block.size, self.tolerance, FEWEST, known.values.numpy() if known else NONE
        return all(enough_steps(*pair, *about) for pair in pairs)

    def spectra(self, meta: dict, total: Callable[[torch.Tensor], torch.Tensor]) -> Spectra:
        """Return all runs, those of other processes too, which ``total`` adds up."""
        for key in ("alpha", "beta", "taken", "orthogonality", "outside"):
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
            self.outside[:, :probes, : int((self.outside != 0).sum(-1).max(initial=0))],
        )
        if self.tolerance is None:
            return found
        meta["error"] = [list(self._error(i)) for i in range(len(self.blocks))]
        return found.deflated()

    def _wanted(self, i: int) -> int:
        if self.tolerance is None:
            return self.probes
        have = np.count_nonzero(self.taken[i])
        known = self.known.get(i)
        if known and len(known.values) == self.blocks[i].size:
            return have  # nothing is left to be found
        if have < FEWEST:
            return have + 1  # the second is kept off what the first has found
        by_steps = min(self._error(i)[0], BY_STEPS * self.tolerance)  # more where the cap was met
        left = (self.tolerance**2 - by_steps**2) ** 0.5
        *found, outside = self._found(i)
        needed = probes_needed(*found, left, outside)
        return min(self.probes, max(have, needed))

    def _found(self, i: int) -> tuple:
        have = np.count_nonzero(self.taken[i])
        taken = self.taken[i, :have].astype(np.int64)
        coefficients = self.alpha[i, :have], self.beta[i, :have], taken
        return *coefficients, self.blocks[i].size, self.outside[i, :have]

    def _error(self, i: int) -> tuple[float, float]:
        return spectrum_error(*self._found(i))
