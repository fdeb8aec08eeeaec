"""One split of one data set in memory, and batches drawn from it.

Everything random is drawn by NumPy's PCG64 in whole numbers, so the same seed gives the same bits
on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.datasets.sources import PINNED


@dataclass(frozen=True, eq=False)
class Data:
    """One split of one data set, in memory."""

    name: str  # such as "photographs 32x32, train"
    # Images: float32 (N, C, H, W), each channel shifted and scaled to mean 0 and deviation 1 over
    # the *train* part, and a label each, int64 (N,). Text: int64 ids (N, T), and an id for each,
    # -100 where there is nothing to predict.
    inputs: Tensor
    targets: Tensor
    classes: int  # or size of the vocabulary
    # sha256 over the digests of all source files, the bytes of `inputs`, those of `targets` (C
    # order, little-endian): it names both the source and what was made of it
    checksum: str
    stands_in_for: str  # the paper's data set; "" if it is the real thing

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def entropy(self) -> float:
        """Loss of predicting every class with its frequency among the targets, in nats."""
        counts = torch.bincount(self.targets[self.targets >= 0].flatten()).double()
        share = counts[counts > 0] / counts.sum()
        return -float((share * share.log()).sum())


def build(
    name: str,
    files: Iterable[str],
    inputs: np.ndarray,
    targets: np.ndarray,
    stands_in_for: str,
    classes: int,
) -> Data:
    """Put arrays into a `Data` and compute its checksum; `files` are keys of `PINNED`."""
    sha = hashlib.sha256("".join(PINNED[path] for path in files).encode())
    for array in (inputs, targets):
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return Data(name, x, y, classes, sha.hexdigest(), stands_in_for)


def generator(*seeds: int) -> np.random.Generator:
    """Return a generator for a seed and the numbers that tell its uses apart."""
    return np.random.Generator(np.random.PCG64(seeds))


def batches(
    data: Data,
    size: int,
    count: int,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Draw ``count`` disjoint batches of ``size`` samples at random, as pairs (inputs, targets).

    More batches of the same size and seed begin with the same ones. ``dtype`` is that of images;
    text and targets stay int64.
    """
    if len(data) < size * count:
        raise ValueError(
            f"{count} batches of {size} need {size * count} samples, but {data.name} has "
            f"{len(data)}."
        )
    order = torch.from_numpy(generator(seed).permutation(len(data))[: size * count])
    chosen = data.inputs[order].to(device), data.targets[order].to(device)
    inputs = chosen[0].to(dtype) if chosen[0].is_floating_point() else chosen[0]
    return list(zip(inputs.split(size), chosen[1].split(size), strict=True))


def stream(
    data: Data, size: int, seed: int = 0, device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches for training without end: every epoch in a new order, its rest left out."""
    if len(data) < size:
        raise ValueError(f"A batch of {size} needs as many samples, {data.name} has {len(data)}.")
    rng = generator(seed, 1)
    while True:
        order = torch.from_numpy(rng.permutation(len(data)))
        for chosen in order[: len(data) // size * size].split(size):
            yield data.inputs[chosen].to(device), data.targets[chosen].to(device)
