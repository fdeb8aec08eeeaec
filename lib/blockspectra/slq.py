"""Stochastic Lanczos quadrature: blockwise and full Hessian spectra of a problem.

Read from `block_spectra` down: a queue of probe batches, Lanczos steps with one of them (where
graphs are not kept, with as many as fit), a result for each probe, until no block needs more.
"""

import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from blockspectra.blocks import Block, parameters_of, whole
from blockspectra.checkpoints import Checkpoints, checksum
from blockspectra.checks import CHANGED, checked, checks_bytes
from blockspectra.distributed import Ranks
from blockspectra.evaluation import check_parameters
from blockspectra.hessian import SCRATCH, BlockHessians, coordinate_scales
from blockspectra.lanczos import BASES, Lanczos, Tridiagonal, basis_name, run_bytes
from blockspectra.memory import available, give_back, in_use, readable
from blockspectra.problem import OutOfMemory, Problem, ProblemError, is_out_of_memory, leaves
from blockspectra.spectra import Spectra
from blockspectra.stopping import EVERY, FEWEST, enough_steps, probes_wanted, spectrum_error

MATRICES = ("hessian", "ggn")
SKEW, ROUNDING = 0.05, 1e-4  # of a run's largest coefficient, and of that of all
CHECKED = 1000  # numbers of each block's first probe that ranks and checkpoints compare


def block_spectra(
    problem: Problem,
    blocks: Sequence[Block],
    *,
    steps: int = 100,
    probes: int = 10,
    seed: int = 0,
    tolerance: float | None = None,
    basis: str = "auto",
    memory: str | int | None = None,
    checkpoint: str | Path | None = None,
    ranks: str | None = None,
    progress: bool | None = None,
    matrix: str = "hessian",
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Spectra:
    """Spectra of the diagonal Hessian blocks, or of the preconditioned ones.

    The cost is some fifteen gradients a batch for the checks, one for its graph, and ``len(blocks)
    × probes × steps`` products; a block's costs about half a gradient on average, the full one
    about two. A block's result depends on (seed, its name, the probe's number) alone: not on the
    other blocks, their order, or how many probes there are, and on a CPU not on kills.

    Parameters
    ----------
    problem : Problem
        Checked before anything is computed.
    blocks : sequence of Block
        From `partition`, with distinct names.
    steps : int
        Lanczos steps m a probe (fewer for blocks smaller than m): moments 0…2m−1 are exact for
        the probe.
    probes : int
        Gaussian start vectors a block.
    seed : int
        Seeds the probes together with the block's name.
    tolerance : float, optional
        Take as many steps and probes as each block needs, at most ``steps`` and ``probes`` and at
        least two probes unless one finds all eigenvalues: until the expected error, a Wasserstein-1
        distance in units of the block's root mean square eigenvalue, is below this. It is no bound:
        single spectra may be further off. The spectra are deflated, and ``meta["error"]`` says what
        each block has reached (by steps, by probes); see `stopping`.
    basis : {"auto", "float64", "float32", "none"}
        Type of the Lanczos basis, ``steps × size`` numbers a run; ``auto`` is the model's own.
        ``none`` keeps no basis and does not re-orthogonalise, for full spectra of large models:
        densities survive that, single eigenvalues do not; see `Lanczos`.
    memory : str or int, optional
        What the whole process may use, such as ``"4GiB"``; on a GPU, its tensors there. By default
        what is free. Where it is short, graphs are made again at each step, and runs taken in turn.
    checkpoint : path, optional
        A folder in which every finished probe is stored. A killed call goes on from it when made
        again, to the same bits; the folder can be deleted afterwards.
    ranks : {"blocks"}, optional
        Under ``torchrun``, each process of the default group computes other runs. All must be given
        the same problem, and get the result of one process, to the bit.
    progress : bool, optional
        Show a bar; by default where the output is a terminal or ``BLOCKSPECTRA_PROGRESS=1``.
    matrix : {"hessian", "ggn"}
        ``ggn`` is the Gauss–Newton part of the Hessian, for a `Problem` with a loss in two parts.
    preconditioner : mapping, name of a block → Tensor, optional
        Positive diagonal P, of shape (size,), or () for one number a block: the spectra are those
        of P^(−1/2) H P^(−1/2). With Adam's √v̂ it is the curvature that Adam's step meets.

    Returns
    -------
    Spectra

    Raises
    ------
    ValueError
        No blocks, two of one name, no steps or probes, an unknown matrix, basis or ranks, a
        preconditioner that does not fit, a checkpoint of another run, ranks that differ.
    ProblemError
        See `checked`; `OutOfMemory` where the least that is needed does not fit.
    """
    names = [block.name for block in blocks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Give at least one block, and each once; got {names[:10]}.")
    if steps < 1 or probes < 1:
        raise ValueError(f"steps and probes must be at least 1, not {steps} and {probes}.")
    if matrix not in MATRICES:
        raise ValueError(f"Unknown matrix {matrix!r}: choose one of {', '.join(MATRICES)}.")
    scales = coordinate_scales(blocks, preconditioner)
    check_parameters(problem, parameters_of(blocks))
    device = blocks[0].parameters[0].device
    basis = basis_name(basis, blocks[0].parameters[0].dtype)
    if tolerance is not None and (not tolerance > 0 or basis == "none" or probes < 2):
        raise ValueError(
            f"A tolerance must be above 0, and needs probes=2 or more and a basis that stays "
            f"orthogonal: float64 or float32, not {basis}."
        )
    settings = Settings(steps, probes, seed, tolerance, BASES[basis])
    largest = max(blocks, key=lambda block: block.size)
    largest_run = run_bytes(largest.size, steps, BASES[basis])
    checkpoints, results = None, {}  # (position of the block, probe) → Tridiagonal

    with Ranks(ranks, device) as team, problem.curvature_mode():
        free = available(memory, device) // (team.neighbours if memory is None else 1)
        for what, size, advice in (
            (
                f"{steps} Lanczos steps with {largest!r}",
                largest_run,
                "take fewer steps, basis='none'",
            ),
            ("Checks", checks_bytes(problem, parameters_of(blocks)), "give fewer blocks at once"),
        ):
            if size > free:
                raise OutOfMemory(
                    f"{what} take {readable(size)}, and {readable(max(0, free))} are left beside "
                    f"the {readable(in_use(device))} in use: {advice}, or raise `memory`."
                )
        about = _about(problem, blocks, settings)
        about |= {"matrix": matrix, "preconditioner": checksum(scales.values())}
        graph = checked(problem, parameters_of(blocks))
        give_back()
        about["loss"] = [graph.loss.item(), *(loss for loss, *_ in graph.fingerprints)]
        team.agree(about | {"number of probes": probes, "checkpoint": checkpoint is not None})
        if checkpoint is not None:
            checkpoints = Checkpoints(checkpoint, about)
            results = {key: run for key, run in checkpoints.found.items() if key[1] < probes}
        hessians = BlockHessians(
            problem,
            blocks,
            first_graph=graph,
            budget=free - largest_run,
            matrix=matrix,
            preconditioner=preconditioner,
        )
        del graph  # so that `hessians` alone decides whether to keep it
        graphs = len(problem.batches) if hessians.kept else 1
        free -= graphs * hessians.nbytes  # for runs and products
        scratch = int(SCRATCH * hessians.nbytes)
        # one probe after the other would leave a GPU waiting for launches, where models are small
        at_once = (
            probes if device.type == "cuda" and probes * (largest_run + scratch) <= free else 1
        )
        free -= at_once * scratch
        most = sum(min(steps, block.size) for block in blocks) * probes
        done = sum(int(run.taken) for run in results.values())
        shown = team.rank == 0 and (progress_wanted() if progress is None else progress)
        with tqdm(total=most // team.size, initial=done, unit="step", disable=not shown) as bar:
            while queue := deque(_unfinished(blocks, results, settings, team, at_once)):
                for at, run in _finished_runs(queue, hessians, settings, free, bar):
                    results[at] = run
                    if checkpoints:
                        checkpoints.save(*at, run)
        graphs = "kept graphs" if hessians.kept else "a graph made again each step"
        how = f"double backward on {graphs}, {at_once} at a time; {hessians.derivatives}"
        gathered = team.gather((results, how))
        results = {key: run for found, _ in gathered for key, run in found.items()}
        try:
            _check_symmetry(blocks, results)
            hessians.check_unchanged()
        except ProblemError:
            if checkpoints:
                checkpoints.discard()
            raise

    products = " | ".join(sorted({how for _, how in gathered}))
    meta = {"steps": steps, "probes": probes, "seed": seed, "products": products, "basis": basis}
    meta |= {} if matrix == "hessian" else {"matrix": matrix}
    meta |= {"preconditioned": True} if scales else {}
    return _spectra(blocks, results, tolerance, meta)


def full_spectrum(problem: Problem, **settings) -> Spectra:
    """Spectrum of the full Hessian over all trainable parameters, as one block.

    Takes the settings of `block_spectra`.
    """
    return block_spectra(problem, [whole(problem.model)], **settings)


def probe_vector(seed: int, name: str, probe: int, size: int) -> Tensor:
    """Gaussian start vector, (size,) float64, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}/{probe}".encode()).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(size))


def progress_wanted() -> bool:
    """Say whether to show a bar: on a terminal, or where ``BLOCKSPECTRA_PROGRESS=1``."""
    return sys.stderr.isatty() or os.environ.get("BLOCKSPECTRA_PROGRESS") == "1"


@dataclass(frozen=True)
class ProbeBatch:
    """Some probes of one block, advanced by one Hessian product."""

    number: int  #: of the block in the list given
    block: Block
    probes: tuple[int, ...]

    def split(self, result: Tridiagonal) -> Iterator[tuple[tuple[int, int], Tridiagonal]]:
        """Each probe's own result, by number of the block and probe."""
        batched = result if len(self.probes) > 1 else [x[None] for x in result]
        for probe, *row in zip(self.probes, *batched, strict=True):
            yield (self.number, probe), Tridiagonal(*row)


@dataclass(frozen=True)
class Settings:
    """What `block_spectra` was asked for, as far as runs follow it; ``basis`` is a type or None."""

    steps: int
    probes: int
    seed: int
    tolerance: float | None
    basis: torch.dtype | None

    def nbytes(self, batch: ProbeBatch) -> int:
        """Bytes that a run needs."""
        return len(batch.probes) * run_bytes(batch.block.size, self.steps, self.basis)

    def begin(self, batch: ProbeBatch) -> Lanczos:
        """Start a run from a vector, or from several as a matrix."""
        block = batch.block
        start = [probe_vector(self.seed, block.name, k, block.size) for k in batch.probes]
        start = torch.stack(start) if len(start) > 1 else start[0]
        try:
            return Lanczos(start.to(block.parameters[0].device), self.steps, basis=self.basis)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"There is no memory for {self.steps} Lanczos steps with {block!r}, "
                f"{readable(self.nbytes(batch))}: take fewer steps, or basis='none'."
            ) from error

    def should_stop(self, batch: ProbeBatch, run: Lanczos) -> bool:
        """Whether further steps would save no probes under the tolerance."""
        if self.tolerance is None or run.step % EVERY:
            return False
        rows = (x[..., : run.step].reshape(-1, run.step) for x in (run.alpha, run.beta))
        pairs = zip(*(x.cpu().numpy() for x in rows), strict=True)
        return all(enough_steps(*pair, batch.block.size, self.tolerance) for pair in pairs)

    def probes_wanted(self, block: Block, runs: Sequence[Tridiagonal]) -> int:
        """Probes that a block needs in all, judged by the runs of its first ones."""
        if self.tolerance is None:
            return self.probes
        if not runs:  # one may find all eigenvalues of a small block
            return 1 if block.size <= self.steps else FEWEST
        coefficients = (np.stack([run[j].numpy() for run in runs]) for j in range(3))
        return min(self.probes, probes_wanted(*coefficients, block.size, self.tolerance))


def _unfinished(
    blocks: Sequence[Block],
    results: Mapping[tuple[int, int], Tridiagonal],
    settings: Settings,
    team: Ranks,
    at_once: int,
) -> Iterator[ProbeBatch]:
    """Probe batches that this process has to compute, as far as the results tell."""
    for i, block in enumerate(blocks):
        runs, wanted = [], settings.probes_wanted(block, [])
        while len(runs) < wanted and (i, len(runs)) in results:
            runs.append(results[i, len(runs)])
            if len(runs) == wanted:
                wanted = settings.probes_wanted(block, runs)
        # probes go round the ranks; under a tolerance, where their number follows from the block's
        # first ones, all of a block's are one rank's
        shift = 1 if settings.tolerance is None else 0
        ours = (k for k in range(wanted) if (i + shift * k) % team.size == team.rank)
        missing = [k for k in ours if (i, k) not in results]
        for j in range(0, len(missing), at_once):
            yield ProbeBatch(i, block, tuple(missing[j : j + at_once]))


def _finished_runs(
    queue: deque[ProbeBatch], hessians: BlockHessians, settings: Settings, free: int, bar: tqdm
) -> Iterator[tuple[tuple[int, int], Tridiagonal]]:
    """Take Lanczos steps with all batches of a queue; yield each probe's result when it is there.

    With kept graphs they go one after the other, which needs least memory; otherwise as many side
    by side as fit, so that each batch's graph is made once a step for all of them.
    """
    while queue:
        group = [queue.popleft()]
        left = free - settings.nbytes(group[0])
        while not hessians.kept and queue and settings.nbytes(queue[0]) <= left:
            left -= settings.nbytes(queue[0])
            group.append(queue.popleft())
        running = {batch: settings.begin(batch) for batch in group}
        bar.set_description(group[0].block.name)
        while running:
            products = hessians.products([(b.block, run.current) for b, run in running.items()])
            for batch in list(running):
                running[batch].absorb(products.pop(0))
                bar.update(len(batch.probes))
                if running[batch].done or settings.should_stop(batch, running[batch]):
                    yield from batch.split(running.pop(batch).result())  # its basis is freed


def _spectra(
    blocks: Sequence[Block],
    results: Mapping[tuple[int, int], Tridiagonal],
    tolerance: float | None,
    meta: dict,
) -> Spectra:
    """Gather the results of all blocks, deflated under a tolerance."""
    probes = 1 + max(probe for _, probe in results)
    steps = max(len(run.alpha) if tolerance is None else int(run.taken) for run in results.values())
    alpha, beta = np.zeros((2, len(blocks), probes, steps))
    orthogonality, taken = np.zeros((len(blocks), probes)), np.zeros((len(blocks), probes), int)
    for at, run in results.items():
        m = min(steps, len(run.alpha))
        alpha[at][:m], beta[at][:m] = run.alpha[:m], run.beta[:m]
        taken[at], orthogonality[at] = run.taken, run.orthogonality
    names, sizes = [block.name for block in blocks], [block.size for block in blocks]
    spectra = Spectra(names, sizes, alpha, beta, taken, orthogonality, meta)
    if tolerance is None:
        return spectra
    each = zip(alpha, beta, taken, sizes, strict=True)
    meta |= {"tolerance": tolerance, "error": [list(spectrum_error(*block)) for block in each]}
    return spectra.deflated()


def _check_symmetry(
    blocks: Sequence[Block], results: Mapping[tuple[int, int], Tridiagonal]
) -> None:
    """Refuse products that are not those of one symmetric matrix, and no rounding error."""
    scales = {at: float(max(run.alpha.abs().max(), run.beta.max())) for at, run in results.items()}
    least = ROUNDING * max(scales.values())
    for at, run in results.items():
        if float(run.skew) > SKEW * scales[at] + least:
            raise ProblemError(f"The Hessian of {blocks[at[0]].name!r} is not symmetric. {CHANGED}")


def _about(problem: Problem, blocks: Sequence[Block], settings: Settings) -> dict:
    """Gather all that the runs depend on, as JSON: names, numbers and checksums."""
    first = [probe_vector(settings.seed, b.name, 0, min(b.size, CHECKED)) for b in blocks]
    return {
        "torch": torch.__version__,
        "blocks": [[b.name, b.size, str([p.index for p in b.pieces])] for b in blocks],
        "probes": checksum(first),
        "weights": checksum(problem.model.state_dict().values()),
        "shares": problem.weights,
        "batches": checksum(x for batch in problem.batches for x in leaves(batch)),
        "settings": [settings.steps, settings.tolerance, str(settings.basis)],
    }
