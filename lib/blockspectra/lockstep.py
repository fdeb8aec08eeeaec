"""Many Lanczos runs side by side, with one list of products a step, within a budget of memory."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock

import torch

from blockspectra.hessian import SCRATCH, BlockHessians
from blockspectra.journal import Journal
from blockspectra.known import Known, known_eigenpairs
from blockspectra.lanczos import Lanczos, Tridiagonal
from blockspectra.memory import in_use, readable
from blockspectra.problem import OutOfMemory, explained, is_out_of_memory
from blockspectra.units import Unit, run_bytes


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
    take : callable, (Unit, Tridiagonal, Known or None) → list of Unit
        Given each run when it has ended; returns those that are wanted next.
    known : callable, Unit → Known or None
        Eigenpairs that a run is to be kept off.
    learn : callable, Unit → bool
        Says of which runs eigenpairs are wanted.
    journal : Journal, optional
    lock : Lock
        Held while `advanced` is called, which workers do.
    """

    hessians: BlockHessians
    start: Callable[[Unit], torch.Tensor]
    steps: int
    basis: torch.dtype | None
    budget: int
    ended: Callable[[Unit, Lanczos], bool]
    advanced: Callable[[int], None]
    take: Callable[[Unit, Tridiagonal, Known | None], list[Unit]]
    known: Callable[[Unit], Known | None] = lambda unit: None
    learn: Callable[[Unit], bool] = lambda unit: False
    journal: Journal | None = None
    lock: Lock = field(default_factory=Lock)

    def run(self, units: Iterable[Unit]) -> None:
        """Bring all runs to their end, as many at a time as fit.

        With all graphs kept they go one after the other, which needs least memory, or one for each
        worker, without waiting for one another; otherwise side by side, so that each batch's graph
        is made once a step for all of them. Where memory runs out all the same, some wait.

        Raises
        ------
        OutOfMemory
            If not even one run fits.
        """
        waiting = deque()
        self._admit(waiting, units)
        self._together(waiting)

    def _admit(self, waiting: deque[Unit], units: Iterable[Unit]) -> None:
        """Put units before those that wait, but for those that have ended already."""
        new = []
        for unit in units:
            found = self.journal.finished(unit.name) if self.journal else None
            if found is None:
                new.append(unit)
            else:
                self._count(int(found[0].taken.sum()))
                self._admit(waiting, self.take(unit, *found))
        waiting.extendleft(reversed(new))

    def _end(self, unit: Unit, run: Lanczos) -> tuple[Tridiagonal, Known | None]:
        """Return what came of a run, once it is kept: no other's error can lose it then."""
        known = known_eigenpairs(run, unit.block.size) if self.learn(unit) else None
        result = run.result()
        if self.journal:
            self.journal.finish(unit.name, result, known)
        return result, known

    def _together(self, waiting: deque[Unit]) -> None:
        running, due = {}, None
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
                    ended = self._end(unit, running.pop(unit))
                    self._admit(waiting, self.take(unit, *ended))
            if self.journal:
                due = self.journal.keep({unit.name: run for unit, run in running.items()}, due)

    def _count(self, steps: int) -> None:
        with self.lock:
            self.advanced(steps)

    def _begin(
        self, waiting: deque[Unit], running: dict[Unit, Lanczos], beside: Sequence[Lanczos] = ()
    ) -> None:
        """Move units that are to be run side by side now, and beside others, from those waiting."""
        for unit, host in self._chunk(waiting, beside):
            try:
                running[unit] = self._new(unit, host)
            except (RuntimeError, MemoryError) as error:
                if (
                    not (running or beside)
                    or not is_out_of_memory(error)
                    or self.hessians.ranks.parts > 1
                ):
                    raise
                return  # those that were begun go first
            waiting.popleft()

    def _step(self, running: dict[Unit, Lanczos]) -> None:
        """Take one step with each run."""
        products = self.hessians.products([(u.block, run.current) for u, run in running.items()])
        before = _taken(running)
        try:
            for run, product in zip(running.values(), products, strict=True):
                run.absorb(product)
        finally:
            self._count(_taken(running) - before)

    def _chunk(
        self, waiting: deque[Unit], beside: Sequence[Lanczos]
    ) -> list[tuple[Unit, torch.device | None]]:
        """Units to be begun now, and where their bases go if not beside the model."""
        device = waiting[0].block.parameters[0].device
        rest = self.hessians.nbytes * (SCRATCH + (not self.hessians.kept))
        if device.type == "cpu":  # memory that was asked for is in use once it is written to
            rest += sum(run.unwritten for run in beside)
        room = self.budget - rest - in_use(device, trim=False)
        if not self.hessians.kept or self._need(waiting[0], self.basis) > room:
            room = self.budget - rest - in_use(device)
        hosts, needs = [], []
        most = 1 - len(beside) if self.hessians.kept else len(waiting)
        for unit in islice(waiting, most):
            away = device.type == "cuda" and self._need(unit, self.basis) > room * len(unit.probes)
            hosts.append(torch.device("cpu") if away else None)
            needs.append(self._need(unit, None if away else self.basis))
        count, left = 0, room
        while count < len(needs) and (left := left - needs[count]) >= 0:
            count += 1
        count = self.hessians.ranks.least(count)  # all take as many as the one with least room
        if count or beside:
            return list(zip(islice(waiting, count), hosts[:count], strict=True))
        if len(waiting[0].probes) > 1:  # several that do not fit together
            waiting.extendleft(reversed(waiting.popleft().split()))
            return self._chunk(waiting, beside)
        raise OutOfMemory(
            f"{self.steps} Lanczos steps with {waiting[0].block!r} take "
            f"{readable(needs[0])}, and {readable(max(0, room))} are left: take fewer steps, "
            f"basis='float32', 'bfloat16' or 'none', or raise `memory`."
        )

    def _need(self, unit: Unit, basis: torch.dtype | None) -> int:
        both = 2 if self.learn(unit) else 1  # eigenvectors are made of the basis, beside it
        return both * len(unit.probes) * run_bytes(unit.block.size, self.steps, basis)

    def _new(self, unit: Unit, host: torch.device | None) -> Lanczos:
        known = self.known(unit)
        kept_off = {} if known is None else known.kept_off()
        run = Lanczos(self.start(unit), self.steps, basis=self.basis, device=host, **kept_off)
        if self.journal:
            self.journal.resume(unit.name, run)
            self._count(run.step * len(unit.probes))
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
            self._count(-run.step * len(unit.probes) if run else 0)
            halves = unit.split() if len(units) <= 1 else [unit]
            waiting.extendleft(reversed(halves))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _taken(running: dict[Unit, Lanczos]) -> int:
    return sum(run.step * len(unit.probes) for unit, run in running.items())
