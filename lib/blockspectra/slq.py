"""Stochastic Lanczos quadrature: blockwise and full Hessian spectra of a problem."""

import hashlib
import os
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from blockspectra.blocks import Block, whole
from blockspectra.lanczos import lanczos
from blockspectra.problem import Problem
from blockspectra.products import GradientGraph
from blockspectra.spectra import Spectra


def block_spectra(
    problem: Problem,
    blocks: Sequence[Block],
    *,
    steps: int = 100,
    probes: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> Spectra:
    """Spectra of the diagonal Hessian blocks.

    The cost is one gradient a batch, then ``len(blocks) × probes × steps`` products of at most
    about two gradients each. A block's result depends on (seed, its name, the probe's number)
    alone: not on the other blocks, their order, or how many probes there are.

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
    progress : bool, optional
        Show a bar; by default where the output is a terminal or ``BLOCKSPECTRA_PROGRESS=1``.

    Returns
    -------
    Spectra

    Raises
    ------
    ValueError
        No blocks, two of one name, or no steps or probes.
    ProblemError
        See `Problem.check`.
    """
    names = [block.name for block in blocks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Give at least one block, and each once; got {names[:10]}.")
    if steps < 1 or probes < 1:
        raise ValueError(f"steps and probes must be at least 1, not {steps} and {probes}.")
    shape = (len(blocks), probes, min(steps, max(block.size for block in blocks)))
    alpha, beta = np.zeros(shape), np.zeros(shape)
    taken, orthogonality = np.zeros(shape[:2], dtype=np.int64), np.zeros(shape[:2])
    if progress is None:
        progress = progress_wanted()
    with problem.curvature_mode(), tqdm(total=len(blocks) * probes, disable=not progress) as bar:
        problem.check()
        graph = GradientGraph(problem, blocks)
        for i, block in enumerate(blocks):
            bar.set_description(block.name)
            for k in range(probes):
                start = probe_vector(seed, block.name, k, block.size)
                device = block.parameters[0].device
                run = lanczos(partial(graph.product, block), start.to(device), steps)
                m = len(run.alpha)
                alpha[i, k, :m], beta[i, k, :m] = run.alpha, run.beta
                taken[i, k], orthogonality[i, k] = run.taken, run.orthogonality
                bar.update()
    sizes = [block.size for block in blocks]
    meta = {"steps": steps, "probes": probes, "seed": seed}
    return Spectra(names, sizes, alpha, beta, taken, orthogonality, meta)


def full_spectrum(problem: Problem, **settings) -> Spectra:
    """Spectrum of the full Hessian over all trainable parameters, as one block.

    Takes the settings of `block_spectra`. The Lanczos basis needs ``steps × parameters × 8`` bytes.
    """
    return block_spectra(problem, [whole(problem.model)], **settings)


def progress_wanted() -> bool:
    """Say whether to show a bar: on a terminal, or where ``BLOCKSPECTRA_PROGRESS=1``."""
    return sys.stderr.isatty() or os.environ.get("BLOCKSPECTRA_PROGRESS") == "1"


def probe_vector(seed: int, name: str, probe: int, size: int) -> torch.Tensor:
    """Gaussian start vector, (size,) float64, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}/{probe}".encode()).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(size))
