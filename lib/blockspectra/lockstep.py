"""Many Lanczos runs side by side, with one list of products a step, within a budget of memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from blockspectra.blocks import Block
from blockspectra.double_backward import OutOfMemory, explained, is_out_of_memory
from blockspectra.journal import Journal
from blockspectra.lanczos import Lanczos, Tridiagonal
from blockspectra.memory import in_use, readable
from blockspectra.products import SCRATCH, BlockHessians

VECTORS = 6  # float64 vectors a run needs beside its basis: three of its own, three on the way


def run_bytes(size: int, steps: int, basis: torch.dtype | None) -> int:
    """Bytes that one Lanczos run over a block of this size takes."""
    kept = min(steps, size) * basis.itemsize if basis is not None else 0
    return size * (8 * VECTORS + kept)


@dataclass(frozen=True)
class Unit:
    """Some probes of a block, advanced by one product."""

    number: int  #: of the block among all
    block: Block
    probes: tuple[int, ...]

    @property
    def name(self) -> str:
        """What its file is called."""
        probes = "-".join(map(str, self.probes))
        return f"block{self.number:05d}-probe{probes}"

    def split(self) -> list["Unit"]:
        """Cut it in two halves of the probes."""
        half = len(self.probes) // 2
        return [Unit(self.number, self.block, p) for p in (self.probes[:half], self.probes[half:])]


@dataclass(frozen=True)
class Lockstep:
    """What all runs have in common.

    Attributes
    ----------
    hessians : BlockHessians
    start : callable, Unit → Tensor
        Start vectors, (size,), or (probe, size) for several probes.
    steps : int
    basis : torch.dtype or None
        See `Lanczos`.
    budget : int
        Bytes for the whole process; see `memory.in_bytes`.
    ended : callable, (Unit, Lanczos) → bool
        Asked after each step whether a run has enough of them.
    advanced : callable, int → None
        Told how many steps were taken (or, below zero, lost).
    journal : Journal, optional
    """

    hessians: BlockHessians
    start: Callable[[Unit], torch.Tensor]
    steps: int
    basis: torch.dtype | None
    budget: int
    ended: Callable[[Unit, Lanczos], bool]
    advanced: Callable[[int], None]
    journal: Journal | None = None

    def run(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Tridiagonal]]:
        """Bring all runs to their end, as many at a time as fit, and yield each when it ends.

        With all graphs kept they go one after the other, which needs least memory; otherwise side
        by side, so that each batch's graph is made once a step for all of them. Where memory runs
        out all the same, half of them wait.

        Raises
        ------
        OutOfMemory
            If not even one run fits.
        """
        waiting, running = deque(), {}
        for unit in units:
            known = self.journal.finished(unit.name) if self.journal else None
            if known is None:
                waiting.append(unit)
            else:
                self.advanced(int(known.taken.sum()))
                yield unit, known
        while waiting or running:
            try:
                if not running:
                    self._begin(waiting, running)
                self._step(running)
            except (OutOfMemory, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.hessians.ranks.parts > 1:
                    raise  # other ranks count on this one's products
                self._make_room(waiting, running, error)
            begun = [unit for unit, run in running.items() if run.step]
            for unit in begun:  # no other name holds on to a run that has ended, nor to its basis
                if running[unit].done or self.ended(unit, running[unit]):
                    result = running.pop(unit).result()
                    if self.journal:
                        self.journal.finish(unit.name, result)
                    yield unit, result
            if self.journal:
                self.journal.keep({unit.name: run for unit, run in running.items()})

    def _begin(self, waiting: deque[Unit], running: dict[Unit, Lanczos]) -> None:
        """Move units that are to be run side by side now from those that wait."""
        for unit, host in self._chunk(waiting):
            try:
                running[unit] = self._new(unit, host)
            except (RuntimeError, MemoryError) as error:
                if not running or not is_out_of_memory(error) or self.hessians.ranks.parts > 1:
                    raise
                return  # those that were begun go first
            waiting.popleft()

    def _step(self, running: dict[Unit, Lanczos]) -> None:
        """Take one step with each run."""
        products = self.hessians.products([(u.block, run.current) for u, run in running.items()])
        for (unit, run), product in zip(running.items(), products, strict=True):
            run.absorb(product)
            self.advanced(len(unit.probes))

    def _chunk(self, waiting: deque[Unit]) -> list[tuple[Unit, torch.device | None]]:
        """Units to be run side by side now, and where their bases go if not beside the model."""
        device = waiting[0].block.parameters[0].device
        rest = self.hessians.nbytes * (SCRATCH + (not self.hessians.kept))
        room = self.budget - rest - in_use(device, trim=False)
        if not self.hessians.kept or self._need(waiting[0], self.basis) > room:
            room = self.budget - rest - in_use(device)
        hosts, needs = [], []
        for unit in waiting:
            away = device.type == "cuda" and self._need(unit, self.basis) > room * len(unit.probes)
            hosts.append(torch.device("cpu") if away else None)
            needs.append(self._need(unit, None if away else self.basis))
        if needs[0] > room and len(waiting[0].probes) == 1:
            raise OutOfMemory(
                f"{self.steps} Lanczos steps with {waiting[0].block!r} take "
                f"{readable(needs[0])}, and {readable(max(0, room))} are left: take fewer steps, "
                f"basis='float32', 'bfloat16' or 'none', or raise `memory`."
            )
        count, most = 0, 1 if self.hessians.kept else len(waiting)
        while count < most and (room := room - needs[count]) >= 0:
            count += 1
        count = self.hessians.ranks.least(count)  # all take as many as the one with least room
        if not count:  # several probes that do not fit together
            waiting.extendleft(reversed(waiting.popleft().split()))
            return self._chunk(waiting)
        return list(zip(waiting, hosts, strict=True))[:count]

    def _need(self, unit: Unit, basis: torch.dtype | None) -> int:
        return len(unit.probes) * run_bytes(unit.block.size, self.steps, basis)

    def _new(self, unit: Unit, host: torch.device | None) -> Lanczos:
        run = Lanczos(self.start(unit), self.steps, basis=self.basis, device=host)
        if self.journal:
            self.journal.resume(unit.name, run)
            self.advanced(run.step * len(unit.probes))
        return run

    def _make_room(self, waiting: deque[Unit], running: dict[Unit, Lanczos], error) -> None:
        """Leave half of the work for later, or graphs, or give up."""
        units = list(running)
        if len(units) > 1:
            back = units[len(units) // 2 :]
        elif len((units or list(waiting))[0].probes) > 1:
            back = units or [waiting.popleft()]
        elif self.hessians.kept and len(self.hessians.batches) > 1:
            self.hessians.drop()
            back = []
        else:
            raise error if isinstance(error, OutOfMemory) else explained(error) from error
        for unit in reversed(back):
            run = running.pop(unit, None)
            self.advanced(-run.step * len(unit.probes) if run else 0)
            halves = unit.split() if len(units) <= 1 else [unit]
            waiting.extendleft(reversed(halves))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
