r"""How much of a Hessian lies in its diagonal blocks, one block a neuron.

The measure is the share of the squared Frobenius norm, :math:`\sum_l \|H_{ll}\|^2 / \|H\|^2`. The
best block-diagonal approximation of :math:`H` misses :math:`\sqrt{1 - \text{share}}` of its norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from companion.datasets.images import MNIST
from companion.datasets.sources import digest_of
from companion.datasets.text import PLAYS
from companion.experiments.one_hidden_layer import LOSSES, Training, snapshots
from companion.store import Job, Store, declare

#: layers whose weights are partitioned, and the ways of it; see `grouping`
CUTS = [(layer, by) for layer in ("hidden", "output", "both") for by in ("neuron", "input")]
CUTS.append(("both", "unit"))


class Shares(NamedTuple):
    """Share of a squared Frobenius norm in the diagonal blocks, and what to compare it with."""

    share: float  #: measured; nan for a matrix of zeros
    #: expected of the same matrix with rows and columns permuted together, at random: the same
    #: entries, the diagonal still on the diagonal, no blocks
    permuted: float


def mass_shares(matrix: np.ndarray, sizes: Sequence[int]) -> Shares:
    """Measure a matrix, (n, n), whose diagonal blocks of these sizes lie side by side.

    A random permutation takes an off-diagonal entry to any other off-diagonal place with equal
    probability, so its expectation needs no draws: the diagonal's mass stays inside, and of the
    rest the blocks get their share of the off-diagonal places.
    """
    n, sides = len(matrix), np.asarray(sizes)
    squares = np.square(matrix, dtype=np.float64)
    total, diagonal = squares.sum(), np.trace(squares)
    edges = np.concatenate([[0], np.cumsum(sides)])
    inside = sum(squares[a:b, a:b].sum() for a, b in pairwise(edges))
    places = (sides * (sides - 1)).sum() / max(n * (n - 1), 1)
    if total == 0:
        return Shares(np.nan, np.nan)
    permuted = (diagonal + (total - diagonal) * places) / total
    return Shares(float(inside / total), float(permuted))


def grouping(
    shapes: Sequence[tuple[int, int]], layer: str, by: str
) -> tuple[np.ndarray, list[int]]:
    """Sort the weights of a layer, or of "both", into blocks: the Hessian's rows, rows a block.

    ``shapes``: (neurons, inputs) of the hidden and the output layer. By "neuron": the weights into
    one, as the paper has it; by "input": those out of one input of the layer, a partition that the
    network suggests just as well; by "unit", both layers only: into and out of one hidden neuron.
    """
    (hidden, inputs), (classes, _) = shapes
    first = np.arange(hidden * inputs).reshape(hidden, inputs)
    second = first.size + np.arange(classes * hidden).reshape(classes, hidden)
    if by == "unit":
        matrices = [np.concatenate([first, second.T], axis=1)]
    else:
        matrices = {"hidden": [first], "output": [second], "both": [first, second]}[layer]
        matrices = [matrix if by == "neuron" else matrix.T for matrix in matrices]
    order = np.concatenate([matrix.ravel() for matrix in matrices])
    return order, [len(row) for matrix in matrices for row in matrix]


def coarse(matrix: np.ndarray, sizes: Sequence[int], cells: int) -> tuple[np.ndarray, list[int]]:
    """Average |entries| of a matrix, (n, n), over cells that never cross a block's border.

    The blocks of one size share at most ``cells`` cells along a side; a block has at least one.
    Returns the means, (cells, cells), and the number of the block of each row of cells.
    """
    starts, blocks, at = [], [], 0
    for number, size in enumerate(sizes):
        room = max(1, cells // sizes.count(size))
        pieces = next(k for k in range(min(room, size), 0, -1) if size % k == 0)
        starts += range(at, at + size, size // pieces)
        blocks += [number] * pieces
        at += size
    sums = np.add.reduceat(np.add.reduceat(np.abs(matrix), starts, 0), starts, 1)
    lengths = np.diff([*starts, at])
    return sums / np.outer(lengths, lengths), blocks


@dataclass(frozen=True)
class BlockShares(Training, Job):
    """Shares of the diagonal blocks during one training run."""

    NAME = "blocks-{task}-{classes}"

    def data_key(self) -> str:
        """Digest of the task's files; the Gaussian tasks have none."""
        files = {"images": MNIST, "pairs": MNIST, "text": PLAYS}
        return digest_of(files[self.task]) if self.task in files else ""

    def shapes(self) -> list[tuple[int, int]]:
        """(neurons, inputs) of both layers."""
        inputs = self.parameters // self.hidden - self.classes
        return [(self.hidden, inputs), (self.classes, self.hidden)]

    def compute(self, store: Store) -> pd.DataFrame:
        """Return one row a stage, layer and cut: `Shares`, and the squared norm they are of.

        Columns also say what was trained, and its loss (``value``) and accuracy at the stage.
        """
        rows = []
        for one in snapshots(self):
            about = {key: getattr(self, key) for key in ("task", "classes", "loss", "seed")}
            about |= {"stage": one.stage, "value": one.loss, "accuracy": one.accuracy}
            for layer, by in CUTS:
                order, sizes = grouping(self.shapes(), layer, by)
                part = one.hessian[np.ix_(order, order)]
                cut = {"layer": layer, "by": by, "blocks": len(sizes), "size": len(order)}
                cut["mass"] = float(np.square(part).sum())
                rows.append(about | cut | mass_shares(part, sizes)._asdict())
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class HessianImage(BlockShares):
    """The Hessian itself during one training run, averaged over ``cells`` as in `coarse`."""

    NAME = "hessian-{task}-{classes}"

    cells: int = 64

    def compute(self, store: Store) -> pd.DataFrame:
        """Return log₁₀ of the mean |entry| of each cell; a row a stage, layer, block and row."""
        parts, (order, sizes) = [], grouping(self.shapes(), "both", "neuron")
        for one in snapshots(self):
            means, blocks = coarse(one.hessian[np.ix_(order, order)], sizes, self.cells)
            with np.errstate(divide="ignore"):  # a zero becomes -inf
                table = pd.DataFrame(np.log10(means).round(2))
            layers = ["hidden" if block < self.hidden else "output" for block in blocks]
            parts.append(table.assign(stage=one.stage, layer=layers, block=blocks))
        table = pd.concat(parts, ignore_index=True)
        return table[["stage", "layer", "block", *range(len(means))]]


def shares(
    image_classes: list[int],
    text_classes: list[int],
    gaussian_classes: list[int],
    pair_classes: list[int],
    cluster_classes: list[int],
    seeds: int,
    **settings: Any,
) -> list[BlockShares]:
    """Declare chapter 01's shares: every task, number of classes, loss and seed."""
    tasks = {"images": image_classes, "text": text_classes, "pairs": pair_classes}
    tasks |= {"clusters": cluster_classes}
    learnt = [
        {"task": task, "classes": classes, "loss": loss, "seed": seed}
        for seed in range(seeds)
        for loss in LOSSES
        for task, several in tasks.items()
        for classes in several
    ]
    random = [
        {"task": "gaussian", "classes": classes, "seed": seed, "stages": (1, 100)}
        for seed in range(seeds)
        for classes in gaussian_classes
    ]
    return [declare(BlockShares, settings, **one) for one in learnt + random]


def block_ratio(share: pd.Series, blocks: pd.Series) -> pd.Series:
    """Root mean square norm of the blocks off the diagonal over that of those on it.

    For ``blocks`` blocks of one size; unlike the share it does not fall with their number.
    """
    return ((1 - share) / share / (blocks - 1)) ** 0.5


def pictures(
    image_classes: list[int], text_classes: list[int], **settings: Any
) -> list[HessianImage]:
    """Declare chapter 01's Hessians: the images and the text of most classes, seed 0."""
    shown = {"images": (max(image_classes), 64), "text": (max(text_classes), 32)}
    return [
        declare(HessianImage, settings, task=task, classes=classes, cells=cells)
        for task, (classes, cells) in shown.items()
    ]
