"""The four quadratic cases: fixed eigenvalues, or eigenvalues drawn from measured spectra."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockspectra.distance import ZERO
from blockspectra.spectra import Spectra
from companion.quadratics.quadratic import Quadratic, eigenvalues, sampled_eigenvalues

#: eigenvalues of one quadratic, a tensor a block
Blocks = list[Tensor]

#: how eigenvalues are drawn from measured spectra: see `from_spectra`
VARIANTS = ("one shift", "random blocks", "shift per block", "positive only", "zeros kept")


def fixed(case: int, samples: int) -> list[Blocks]:
    """Case 3 or 4, the same eigenvalues in every sample."""
    return [eigenvalues(case)] * samples


def family(kappa: float, block_kappa: float, samples: int) -> list[Blocks]:
    """Three blocks of three eigenvalues, whose κ and κ_l are chosen separately (ours).

    Each block holds 1, √κ_l and κ_l times its smallest eigenvalue, and these are evenly spread
    logarithms from 1 to κ/κ_l: the blocks are alike where κ_l = κ; the smaller it is, the more they
    differ.
    """
    if not 1 < block_kappa <= kappa:
        raise ValueError(f"block_kappa must be above 1 and at most kappa, not {block_kappa}.")
    smallest = (kappa / block_kappa) ** np.linspace(0, 1, 3)
    within = block_kappa ** np.linspace(0, 1, 3)
    return [[torch.from_numpy(low * within) for low in smallest]] * samples


def from_spectra(
    spectra: Spectra,
    blocks: Sequence[str],
    *,
    samples: int,
    variant: str = "one shift",
    count: int = 30,
    kappa: float = 5000.0,
) -> list[Blocks]:
    """Draw the eigenvalues of Case 1 or 2 from blocks of measured spectra, ``samples`` times.

    Sample i is drawn with a seed of its own; ``count`` and ``kappa`` as in `sampled_eigenvalues`.
    Variants: ``one shift`` leaves out what counts as zero (|λ| up to 1e-6 of the model's largest),
    and one affine map for all blocks takes the rest to [1, κ]. The others change one thing each: as
    many blocks as are given, drawn from all of the model for each sample; the smallest eigenvalue
    of each block shifted to zero first; negative eigenvalues left out too; zeros drawn like the
    others, where a sample of nothing but zeros is drawn again.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}.")
    zero = ZERO * np.abs(spectra.quadrature[0]).max()
    found: list[Blocks] = []
    seed = -1
    while len(found) < samples:
        seed += 1
        names: Sequence[str] = blocks
        if variant == "random blocks":
            names = np.random.default_rng(seed).choice(spectra.names, len(blocks), replace=False)
        nodes, weights = [], []
        for name in map(str, names):
            node, weight = spectra.nodes(name), spectra.weights(name)
            node = np.where(np.abs(node) > zero, node, 0)
            if variant != "zeros kept":
                weight = np.where(node > 0 if variant == "positive only" else node != 0, weight, 0)
            if variant == "shift per block":
                node = node - node[weight > 0].min()
            nodes.append(node)
            weights.append(weight)
        try:
            found.append(sampled_eigenvalues(nodes, weights, count=count, kappa=kappa, seed=seed))
        except ValueError:
            if variant != "zeros kept" or seed > 100 * samples:
                raise  # else this sample has drawn nothing but zeros
    return found


def draw(blocks: Blocks, draws: int, seed: int) -> tuple[Quadratic, Tensor]:
    """Rotations of a quadratic and a Gaussian start for each."""
    quadratic = Quadratic.draw(blocks, draws=draws, seed=seed)
    return quadratic, quadratic.gaussian_start(seed=seed)
