"""What spectra will cost, measured on one product of each kind before anything slow."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from blockspectra.blocks import Block, parameters_of
from blockspectra.checks import checked, checks_bytes
from blockspectra.gradient_graph import GradientGraph
from blockspectra.hessian import SCRATCH
from blockspectra.lanczos import BASES, Lanczos, basis_name, run_bytes
from blockspectra.memory import available, in_use, readable
from blockspectra.problem import Problem

RECURRENCE = 5  # passes over a vector that a Lanczos step makes beside those over its basis
SAMPLE = 2**20  # numbers in the vectors that Lanczos itself is timed with


@dataclass(frozen=True)
class Cost:
    """What a call of `block_spectra` will take; print it."""

    products: int  #: with a block and a batch
    seconds: float  #: in all, on this machine as busy as it is now
    gradient: float  #: seconds of one gradient of one batch: the unit to compare costs in
    memory: int  #: bytes of the process at its peak; on a GPU, of its tensors there
    threads: int = 1  #: of PyTorch on the CPU; 1 on a GPU
    one_thread: float = 1.0  #: a gradient's time on one thread, in units of that on all of them

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        time = f"{minutes} min {seconds} s" if minutes else f"{self.seconds:.2g} s"
        hint = ""
        if self.one_thread < 0.8:
            hint = (
                f"; a gradient takes {self.one_thread:.2g} times as long on one thread as on the "
                f"{self.threads} in use: call torch.set_num_threads(1), or set OMP_NUM_THREADS=1"
            )
        return (
            f"{self.products:,} products, about {time} "
            f"({self.seconds / self.products / self.gradient:.2f} gradients each), "
            f"{readable(self.memory)} of memory{hint}"
        )


def estimate(
    problem: Problem,
    blocks: Sequence[Block],
    steps: int = 100,
    probes: int = 10,
    *,
    basis: str = "auto",
    memory: str | int | None = None,
) -> Cost:
    """Time one product for each parameter that blocks lie in, and add up.

    Arguments as in `block_spectra`. Blocks of the same parameters (heads, neurons) cost the same.
    The first batch stands for all; under a tolerance this is the most that can be needed.
    """
    if steps < 1 or probes < 1:
        raise ValueError(f"steps and probes must be at least 1, not {steps} and {probes}.")
    device = blocks[0].parameters[0].device
    dtype = BASES[basis_name(basis, blocks[0].parameters[0].dtype)]
    before, room = in_use(device), available(memory, device)
    parameters = parameters_of(blocks)
    every = [p for p in problem.model.parameters() if p.requires_grad]
    batch, batches, product = problem.batches[0], len(problem.batches), {}
    need = max(run_bytes(block.size, steps, dtype) for block in blocks)
    with problem.curvature_mode():
        graph = checked(problem, parameters)
        plain = partial(_gradient, problem, batch, every)
        gradient, threads, one_thread = _seconds(plain, device), 1, 1.0
        if device.type == "cpu" and (threads := torch.get_num_threads()) > 1:
            torch.set_num_threads(1)
            try:
                one_thread = _seconds(plain, device) / gradient
            finally:
                torch.set_num_threads(threads)
        for block in blocks:
            if (kind := tuple(block.parameters)) not in product:
                given = block, torch.randn(block.size, device=device)
                product[kind] = _seconds(partial(graph.product, *given), device)
        nbytes = graph.nbytes()
        kept = nbytes * (batches + SCRATCH) + need <= room
        how = graph.derivatives
        del graph  # there may be room for one alone
        again = partial(GradientGraph, problem, batch, parameters, how)
        made = 0 if kept else _seconds(again, device, 1)
    per_number = _lanczos_seconds(max(block.size for block in blocks), dtype, device)
    seconds = 0.0
    for block in blocks:
        m = min(steps, block.size)
        rows = RECURRENCE + (m / 2 if dtype is not None else 0)
        one = batches * product[tuple(block.parameters)]
        seconds += probes * m * (one + rows * block.size * per_number)
    total = sum(min(steps, block.size) for block in blocks) * probes
    if not kept:  # all runs side by side share a graph that is made again for each batch
        side_by_side = max(1, (room - nbytes * (1 + SCRATCH)) // need)
        seconds += made * batches * max(steps, total / side_by_side)
    graphs = nbytes * ((batches if kept else 1) + SCRATCH)
    peak = before + max(graphs + need, checks_bytes(problem, parameters))
    return Cost(total * batches, seconds, gradient, int(peak), threads, one_thread)


def _gradient(problem: Problem, batch, parameters) -> tuple:
    return torch.autograd.grad(problem.value(batch), parameters, allow_unused=True)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 2) -> float:
    """Shortest time of a few repeats: the first may have to warm up."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _lanczos_seconds(size: int, basis: torch.dtype | None, device: torch.device) -> float:
    """Seconds of Lanczos itself for each number in each row of the basis that a step touches."""
    steps = 8
    size = max(4 * steps, min(size, SAMPLE))  # a smaller space could be exhausted before
    start, *vectors = torch.randn(1 + steps, size, dtype=torch.float32, device=device)

    def run() -> None:
        lanczos = Lanczos(start, steps, basis=basis)
        for vector in vectors:  # what a product would be is of no consequence
            lanczos.absorb(vector)

    rows = sum(RECURRENCE + (j if basis is not None else 0) for j in range(1, steps + 1))
    return _seconds(run, device) / (rows * size)
