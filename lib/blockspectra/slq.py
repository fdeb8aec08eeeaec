"""Stochastic Lanczos quadrature: blockwise and full Hessian spectra of a problem."""

import hashlib
import os
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from blockspectra.blocks import Block, whole
from blockspectra.distributed import Ranks
from blockspectra.hessian import BlockHessians, checked, parameters_of
from blockspectra.journal import Journal
from blockspectra.lockstep import Lockstep
from blockspectra.memory import in_bytes, in_use, readable
from blockspectra.probing import Probing
from blockspectra.problem import OutOfMemory, Problem
from blockspectra.spectra import Spectra
from blockspectra.units import Unit, run_bytes

BASES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "none": None,
}
TOGETHER = {True: "more gain nothing on a CPU", False: "a GPU waits for launches"}
CHECKED = 1000  # numbers of each block's first probe that ranks compare


def block_spectra(
    problem: Problem,
    blocks: Sequence[Block],
    *,
    steps: int = 100,
    probes: int = 10,
    seed: int = 0,
    tolerance: float | None = None,
    basis: str = "auto",
    together: int | None = None,
    memory: str | int | None = None,
    checkpoint: str | Path | None = None,
    ranks: str | None = None,
    progress: bool | None = None,
) -> Spectra:
    """Spectra of the diagonal Hessian blocks.

    The cost is one gradient a batch, then ``len(blocks) × probes × steps`` products; a block's
    costs about half a gradient on average, the full one about two. A block's result depends on
    (seed, its name, the probe's number) alone: not on the other blocks, their order, or how many
    probes there are, and on a CPU not on having been killed and resumed. (Its last bits depend on
    how many threads a product is made by: one where several are made side by side, which takes
    more than one run, a large model and half of ``memory``; all otherwise.)

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
        Take only as many steps and probes as each block needs, at most ``steps`` and ``probes``
        and at least two probes unless one finds all eigenvalues: until the estimated error, a
        Wasserstein-1 distance in units of the block's root mean square eigenvalue, is below this.
        The spectra are deflated, further probes are kept off the eigenvectors that a block's first
        one has found (see `known`; a first run needs twice the memory of its basis for them), and
        ``meta["error"]`` says for each block what was reached; see `stopping`.
    basis : {"auto", "float64", "float32", "bfloat16", "none"}
        In what the Lanczos basis is kept, ``steps × size`` numbers a run. ``auto`` takes the
        model's own precision: nothing of a product is known beyond it. ``none`` keeps none and
        does not re-orthogonalise: densities survive that, single eigenvalues do not; see `Lanczos`.
    together : int, optional
        Probes taken in one product by vmap. By default 1 on a CPU, where more gain nothing
        (measured), and all on a GPU, where small models are bound by the launching of kernels.
    memory : str or int, optional
        What the whole process may use, such as ``"4GiB"``; on a GPU, its tensors there. By
        default what is free. Blocks, probes and batches are taken in turns to stay within it.
    checkpoint : path, optional
        A folder in which every finished probe is kept, and long ones each minute. A killed call
        goes on from it when made again; the folder can be deleted afterwards.
    ranks : {"batches", "blocks"}, optional
        Under ``torchrun``, split batches (products are summed over ranks) or runs over the
        processes of the default group. All ranks must be given the same problem and get the same
        result; a checkpoint's folder must be one that all of them see.
    progress : bool, optional
        Show a bar; by default where the output is a terminal or ``BLOCKSPECTRA_PROGRESS=1``.

    Returns
    -------
    Spectra

    Raises
    ------
    ValueError
        No blocks, two of one name, no steps or probes, an unknown basis or split, a checkpoint of
        another run, ranks that differ.
    ProblemError
        See `checked`; `OutOfMemory` where the least that is needed does not fit.
    """
    names = [block.name for block in blocks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Give at least one block, and each once; got {names[:10]}.")
    if steps < 1 or probes < 1:
        raise ValueError(f"steps and probes must be at least 1, not {steps} and {probes}.")
    basis = known_basis(basis, blocks)
    orthogonal = basis in ("float64", "float32")
    if tolerance is not None and (not tolerance > 0 or not orthogonal or probes < 2):
        raise ValueError(
            f"A tolerance must be above 0, and needs probes=2 or more and a basis that stays "
            f"orthogonal: float64 or float32, not {basis}."
        )
    device = blocks[0].parameters[0].device
    chosen = "as asked" if together else TOGETHER[device.type == "cpu"]
    together = together or (1 if device.type == "cpu" else probes)
    team = Ranks(ranks, device)
    most = sum(min(steps, block.size) for block in blocks) * probes // team.ways
    shown = team.rank == 0 and (progress_wanted() if progress is None else progress)
    bar = tqdm(total=most, unit="step", disable=not shown)

    def start(unit: Unit) -> torch.Tensor:
        bar.set_description(unit.block.name)
        vectors = [probe_vector(seed, unit.block.name, k, unit.block.size) for k in unit.probes]
        return (vectors[0] if len(vectors) == 1 else torch.stack(vectors)).to(device)

    with team, problem.curvature_mode(), bar:
        budget = in_bytes(memory, device)
        if memory is None:  # what is free is for all ranks here
            held = in_use(device, trim=False)
            budget = held + (budget - held) // team.neighbours
        tight = memory is not None  # else what was freed is not worth asking for again
        if budget < in_use(device, trim=tight):
            raise OutOfMemory(
                f"memory={memory!r} is for the whole process, which holds "
                f"{readable(in_use(device))} already: raise it."
            )
        left = budget - in_use(device, trim=tight)
        known = checked(problem, parameters_of(blocks))
        about = _about(problem, blocks, seed) | {"loss": known.loss.item()}
        about["settings"] = [steps, tolerance, basis, together, team.parts]
        found = sorted(path.name for path in Path(checkpoint).glob("*")) if checkpoint else []
        team.agree(about | {"ranks": ranks, "checkpoint": found if team.parts > 1 else None})
        journal = Journal(checkpoint, about, writes=team.writes) if checkpoint else None
        least = max(run_bytes(block.size, steps, BASES[basis]) for block in blocks)
        least *= 1 if tolerance is None else 2  # eigenvectors too
        hessians = BlockHessians(
            problem,
            blocks,
            known=known,
            budget=left - (least if device.type == "cpu" else 0),
            ranks=team,
        )
        del known  # it is theirs, to be kept or not
        probing = Probing(blocks, steps, probes, tolerance, team.mine, together)
        lockstep = Lockstep(
            *(hessians, start, steps, BASES[basis], budget, probing.enough, bar.update),
            *(probing.take, probing.known_to, probing.learn, journal),
        )
        lockstep.run(probing.first())
        meta = {"steps": steps, "probes": probes, "seed": seed}
        if tolerance is not None:
            meta["tolerance"] = tolerance
        graphs = "kept graphs" if hessians.kept else "a graph made again each step"
        meta["products"] = f"double backward on {graphs}, {together} at a time ({chosen})"
        meta["products"] += f"; {hessians.derivatives}"
        meta["basis"] = basis
        return probing.spectra(meta, team.merge)


def known_basis(basis: str, blocks: Sequence[Block]) -> str:
    """Return the name in `BASES` that a choice comes to; one that is not known is an error."""
    if basis == "auto":
        return "float64" if blocks[0].parameters[0].dtype == torch.float64 else "float32"
    if basis not in BASES:
        raise ValueError(f"Unknown basis {basis!r}: choose auto, or one of {', '.join(BASES)}.")
    return basis


def full_spectrum(problem: Problem, **settings) -> Spectra:
    """Spectrum of the full Hessian over all trainable parameters, as one block.

    Takes the settings of `block_spectra`.
    """
    return block_spectra(problem, [whole(problem.model)], **settings)


def progress_wanted() -> bool:
    """Say whether to show a bar: on a terminal, or where ``BLOCKSPECTRA_PROGRESS=1``."""
    return sys.stderr.isatty() or os.environ.get("BLOCKSPECTRA_PROGRESS") == "1"


def probe_vector(seed: int, name: str, probe: int, size: int) -> torch.Tensor:
    """Gaussian start vector, (size,) float64, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}/{probe}".encode()).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(size))


def _about(problem: Problem, blocks: Sequence[Block], seed: int) -> dict:
    """All that the runs depend on beside the settings, as JSON: names and checksums."""
    first = [probe_vector(seed, b.name, 0, min(b.size, CHECKED)) for b in blocks]
    return {
        "torch": torch.__version__,
        "blocks": [[block.name, block.size] for block in blocks],
        "probes": _checksum(first),
        "weights": _checksum(problem.model.state_dict().values()),
        "batches": _checksum(
            tree_leaves([dict(b) if isinstance(b, Mapping) else b for b in problem.batches])
        ),
    }


def _checksum(tensors: Iterable) -> int:
    total = 0
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().contiguous().view(-1).view(torch.uint8)
            total = zlib.crc32(data.cpu().numpy(), total)
    return total
