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
    """One split of one data set, in memory.

    Attributes
    ----------
    name : str
        Such as ``"photographs 32x32, train"``.
    inputs : Tensor
        Images: float32, (N, C, H, W), each channel shifted and scaled to mean 0 and deviation 1
        over the *train* part. Text: int64 ids, (N, T).
    targets : Tensor
        int64: a label an image, (N,); an id a position of a text, (N, T), -100 where there is
        nothing to predict.
    classes : int
        Number of classes, or size of the vocabulary.
    checksum : str
        sha256 over the sha256 digests of all source files, then the bytes of `inputs`, then those
        of `targets` (C order, little-endian). It names both the source and what was made of it.
    stands_in_for : str
        The paper's data set in whose place this one is used; ``""`` if it is the real thing.
    class_names : tuple of str
        What each class, character or token id means.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    classes: int
    checksum: str
    stands_in_for: str
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images or sequences."""
        return len(self.inputs)


def build(
    name: str,
    files: Iterable[str],
    inputs: np.ndarray,
    targets: np.ndarray,
    stands_in_for: str,
    class_names: Iterable[str],
) -> Data:
    """Put arrays into a `Data` and compute its checksum; `files` are keys of `PINNED`."""
    class_names = tuple(class_names)
    sha = hashlib.sha256("".join(PINNED[path] for path in files).encode())
    for array in (inputs, targets):
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return Data(name, x, y, len(class_names), sha.hexdigest(), stands_in_for, class_names)


def check(split: str = "train", seed: int = 0, **counts: int) -> None:
    """Refuse an unknown split, a negative seed, and a count that is not 1 or more."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}.")
    for name, value, least in [("seed", seed, 0), *((k, v, 1) for k, v in counts.items())]:
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} up, not {value!r}.")


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
    """Draw disjoint batches at random: no image or sequence is in two of them, or twice in one.

    Parameters
    ----------
    data : Data
    size : int
        Images or sequences in a batch.
    count : int
        Number of batches.
    seed : int
        Draws which go where; more batches of the same size begin with the same ones.
    dtype : torch.dtype, optional
        For the inputs, if these are images; text and targets stay int64.
    device : torch.device or str, optional

    Returns
    -------
    list of (inputs, targets)
    """
    check(seed=seed, size=size, count=count)
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
    """Draw batches for training without end: every epoch in a new order, its rest left out.

    Parameters
    ----------
    data : Data
    size : int
        Images or sequences in a batch.
    seed : int
        Draws the orders.
    device : torch.device or str, optional

    Yields
    ------
    (inputs, targets)
    """
    check(seed=seed, size=size)
    if len(data) < size:
        raise ValueError(f"A batch of {size} needs as many samples, {data.name} has {len(data)}.")
    rng = generator(seed, 1)
    while True:
        order = torch.from_numpy(rng.permutation(len(data)))
        for chosen in order[: len(data) // size * size].split(size):
            yield data.inputs[chosen].to(device), data.targets[chosen].to(device)
