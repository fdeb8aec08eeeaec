"""A one-hidden-layer MLP on tasks with few and many classes, and its exact Hessian on the way.

Images (MNIST, resized), pairs of such images, text (Shakespeare's next character), Gaussian inputs
with random labels, and Gaussian clusters. In each the number of classes can be set while the inputs
stay the same; all but the text's are about equally frequent.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockspectra.blocks import whole
from blockspectra.hessian import dense_hessian
from blockspectra.problem import Problem, cross_entropy
from companion import datasets
from companion.datasets.samples import generator
from companion.models.mlp import MLP, MLPConfig
from companion.training import OPTIMIZERS, train

#: text: characters that the next one is predicted from, and windows drawn
CONTEXT, WINDOWS = 2, 4000
#: Gaussian: points drawn; as in the author's later code
POINTS = 5000

mnist = lru_cache(maxsize=8)(datasets.mnist)  # resizing takes as long as a small network trains


def images(classes: int, *, side: int = 8, seed: int = 0) -> datasets.Data:
    """MNIST of ``side`` x ``side`` pixels; the class is the digit modulo ``classes``, 2 to 10."""
    if not 2 <= classes <= 10:
        raise ValueError(f"Images of digits have 2 to 10 classes, not {classes}.")
    data = mnist("train", side, seed=seed)
    name = f"{data.name}, {classes} classes"
    return replace(data, name=name, targets=data.targets % classes, classes=classes)


def text(classes: int, *, inputs: int = 32, seed: int = 0) -> datasets.Data:
    """Predict a character of Shakespeare from the two before it.

    Each character is written as ``inputs / 2`` Gaussian numbers, the same for every seed, because
    76 inputs a character would make the Hessian large and mostly empty. Classes are the
    ``classes - 1`` most frequent characters and one for all others; 76 are all of them.
    """
    data = datasets.shakespeare(context=CONTEXT, windows=WINDOWS, seed=seed)
    if not 2 <= classes <= data.classes or inputs < CONTEXT or inputs % CONTEXT:
        raise ValueError(
            f"Text has 2 to {data.classes} classes and a multiple of {CONTEXT} inputs, not "
            f"{classes} classes and {inputs} inputs."
        )
    codes = generator(0).standard_normal((data.classes, inputs // CONTEXT), dtype=np.float32)
    following = data.targets[:, -1]
    counts = torch.bincount(following, minlength=data.classes)
    rank = counts.argsort(descending=True, stable=True).argsort()  # 0: the most frequent
    return replace(
        data,
        name=f"{data.name}, {classes} classes",
        inputs=torch.from_numpy(codes)[data.inputs].flatten(1),
        targets=rank[following].clamp(max=classes - 1),
        classes=classes,
    )


def gaussian(classes: int, *, inputs: int = 32, seed: int = 0) -> datasets.Data:
    """Draw Gaussian inputs with labels drawn evenly: nothing to learn, classes all as frequent."""
    rng = generator(seed)
    points = torch.from_numpy(rng.standard_normal((POINTS, inputs), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, classes, POINTS))
    name = f"Gaussian inputs, random labels, {classes} classes"
    return datasets.Data(name, points, labels, classes, "drawn from the seed", "")


def pairs(classes: int, *, side: int = 8, seed: int = 0) -> datasets.Data:
    """Two images of MNIST side by side; the class is the pair of digits, each modulo √classes."""
    digits = math.isqrt(classes)
    if digits**2 != classes or not 2 <= digits <= 10:
        raise ValueError(f"Pairs of digits have 4, 9, 16 … 100 classes, not {classes}.")
    left, right = (mnist("train", side, seed=seed + shift) for shift in (0, 1000))  # other orders
    both = torch.cat([left.inputs, right.inputs], 3)
    targets = (left.targets % digits) * digits + right.targets % digits
    name = f"pairs of {left.name}, {classes} classes"
    return replace(left, name=name, inputs=both, targets=targets, classes=classes)


def clusters(classes: int, *, inputs: int = 32, seed: int = 0) -> datasets.Data:
    """Draw as many points around each of some Gaussian centres; the class is the centre."""
    rng = generator(seed)
    centres = rng.standard_normal((classes, inputs), dtype=np.float32)
    labels = rng.permutation(np.arange(POINTS) % classes)
    points = centres[labels] + rng.standard_normal((POINTS, inputs), dtype=np.float32)
    name = f"{classes} Gaussian clusters"
    found = torch.from_numpy(points), torch.from_numpy(labels)
    return datasets.Data(name, *found, classes, "drawn from the seed", "")


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of (inputs, targets) against one-hot targets, over samples and classes."""
    inputs, targets = batch
    outputs = model(inputs)
    return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[-1]).to(outputs))


LOSSES = {"cross-entropy": cross_entropy, "squared error": squared_error}
PIXELS = {"images": 1, "pairs": 2}  # images of an input
TASKS = {"images": images, "pairs": pairs, "text": text, "gaussian": gaussian, "clusters": clusters}


@dataclass(frozen=True)
class Training:
    """One training run of an MLP without biases, by Adam.

    ``task`` is a key of `TASKS`, ``loss`` one of `LOSSES`; ``side`` counts the pixels along an
    image, ``inputs`` those of the other tasks. The Hessian is averaged over ``samples`` training
    samples and taken at ``stages``, percentages of the training. The seed draws the
    initialisation, the data and their order.
    """

    task: str
    classes: int
    loss: str = "cross-entropy"
    seed: int = 0
    hidden: int = 8
    side: int = 8
    inputs: int = 32
    samples: int = 400
    batch: int = 64
    steps: int = 400
    rate: float = 0.01
    stages: tuple[int, ...] = (1, 50, 100)
    device: str = "cpu"

    def data(self) -> datasets.Data:
        """Load the task's training part."""
        size = {"side": self.side} if self.task in PIXELS else {"inputs": self.inputs}
        return TASKS[self.task](self.classes, **size, seed=self.seed)

    @property
    def parameters(self) -> int:
        """Number of weights, which is the side of the Hessian."""
        inputs = PIXELS[self.task] * self.side**2 if self.task in PIXELS else self.inputs
        return self.hidden * (inputs + self.classes)


class Snapshot(NamedTuple):
    """The model at one moment of training."""

    stage: int  #: percentage of training
    #: (size, size) float64, exact, of the loss over the samples; hidden weights first, then output
    #: weights, row by row: the weights into one neuron lie side by side
    hessian: np.ndarray
    loss: float  #: over the same samples, as is the accuracy
    accuracy: float


def snapshots(run: Training) -> list[Snapshot]:
    """Train and take the exact Hessian at the wanted stages."""
    wanted = {round(run.steps * stage / 100): stage for stage in run.stages}
    if min(wanted) < 1 or len(wanted) < len(run.stages):
        raise ValueError(
            f"{run.steps} steps are too few to look at {list(run.stages)} % of training: raise "
            f"`steps`, to 100 or more for 1 %."
        )
    data, loss = run.data(), LOSSES[run.loss]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        sizes = (data.inputs[0].numel(), run.hidden, data.classes)
        model = MLP(MLPConfig(sizes, bias=False)).to(run.device)
    (batch,) = datasets.batches(data, run.samples, 1, run.seed, device=run.device)
    problem, seen = Problem(model, loss, [batch]), []

    def observe(step: int) -> None:
        if step in wanted:
            hessian = dense_hessian(problem, whole(model)).double().cpu().numpy()
            with torch.no_grad():
                value = float(loss(model, batch))
                right = (model(batch[0]).argmax(1) == batch[1]).double().mean()
            seen.append(Snapshot(wanted[step], hessian, value, float(right)))

    stream = datasets.stream(data, run.batch, run.seed, device=run.device)
    adam = OPTIMIZERS["adam"]
    losses = train(model, loss, stream, adam, run.rate, steps=run.steps, observe=observe)
    if not np.isfinite(losses[-1]):
        raise ValueError(f"Training diverged at rate {run.rate:g}: lower `rate`.")
    return seen
