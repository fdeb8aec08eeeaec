"""Data sets of images: handwritten digits, and crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from companion.datasets import images
from companion.datasets.samples import Data, build, check, generator

_SPLIT_SEED = 2402_16788  # decides which images are test images, once and for all


def _standardised(pixels: np.ndarray, moments: Sequence[tuple[float, float]]) -> np.ndarray:
    out = np.empty(pixels.shape, dtype=np.float32)
    for channel, (mean, deviation) in enumerate(moments):
        levels = ((np.arange(256) - mean) / deviation).astype(np.float32)
        out[:, channel] = levels[pixels[:, channel]]
    return out


def _handwritten(name, files, pixels, labels, split, size, seed, stands_in_for) -> Data:
    """One fifth of each digit's images is the test part, the same ones for every seed."""
    check(split, seed, size=size)
    rng, part = generator(_SPLIT_SEED), {"train": [], "test": []}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        part["test"].append(members[: len(members) // 5])
        part["train"].append(members[len(members) // 5 :])
    pixels = images.resize(pixels, size)
    moments = [images.moments([pixels[np.concatenate(part["train"])]])]
    order = generator(seed).permutation(np.concatenate(part[split]))
    inputs = _standardised(pixels[order], moments)
    name = f"{name} {size}x{size}, {split}"
    return build(name, files, inputs, labels[order], stands_in_for, map(str, range(10)))


def mnist(split: str = "train", size: int = 28, seed: int = 0) -> Data:
    """Load MNIST: 500 images of each digit, 400 of them for training.

    Parameters
    ----------
    split : {"train", "test"}
    size : int
        Height and width; other than 28, the images are resized.
    seed : int
        Draws the order of the images, not which of them are test images.

    Returns
    -------
    Data
        4,000 or 1,000 images of one channel, 10 classes, as many of each.
    """
    full = "MNIST (all 70,000 images)"
    return _handwritten("MNIST", images.MNIST, *images.mnist(), split, size, seed, full)


def digits(split: str = "train", size: int = 8, seed: int = 0) -> Data:
    """Load the 8 x 8 digits of scikit-learn: the smallest real images there are.

    Parameters
    ----------
    split : {"train", "test"}
    size : int
        Height and width; other than 8, the images are resized.
    seed : int
        Draws the order of the images, not which of them are test images.

    Returns
    -------
    Data
        1,442 or 355 images of one channel, 10 classes, about as many of each.
    """
    return _handwritten("digits", images.DIGITS, *images.digits(), split, size, seed, "MNIST")


def photographs(
    split: str = "train", size: int = 32, crops: int = 200, scale: float = 0.5, seed: int = 0
) -> Data:
    """Cut random crops out of ten colour photographs; the class is *which photograph*.

    Train crops come from the left half of each photograph, test crops from the right half: they
    have no pixel in common. Crops of the same half may overlap.

    Parameters
    ----------
    split : {"train", "test"}
    size : int
        Height and width of a crop.
    crops : int
        Crops per photograph.
    scale : float
        Magnification: at 0.5 a crop of 32 pixels shows 64 pixels of the photograph.
    seed : int
        Draws the crops and their order.

    Returns
    -------
    Data
        ``10 * crops`` images of three channels, 10 classes, as many of each. Channels are
        standardised over the left halves, each photograph counting the same.
    """
    check(split, seed, size=size, crops=crops)
    halves = {part: images.photograph_halves(part) for part in ("train", "test")}
    side = round(size / scale) if scale > 0 else 0
    name, half = min(
        zip(images.PHOTOGRAPH_NAMES, halves[split], strict=True), key=lambda p: min(p[1].shape[:2])
    )
    if not 1 <= side <= min(half.shape[:2]):
        raise ValueError(
            f"a crop of size {size} at scale {scale} covers {side} x {side} pixels, but half of "
            f"the photograph {name!r} has {half.shape[1]} x {half.shape[0]}: change size or scale."
        )
    pixels = np.concatenate(
        [
            images.crops(half, crops, size, side, generator(seed, int(split == "test"), i))
            for i, half in enumerate(halves[split])
        ]
    )
    moments = [images.moments([h[:, :, c] for h in halves["train"]]) for c in range(3)]
    order = generator(seed, int(split == "test")).permutation(len(pixels))
    labels = np.repeat(np.arange(len(halves[split]), dtype=np.int64), crops)[order]
    inputs = _standardised(pixels[order], moments)
    name = f"photographs {size}x{size}, {split}"
    names = images.PHOTOGRAPH_NAMES
    return build(name, images.PHOTOGRAPHS, inputs, labels, "ImageNet", names)
