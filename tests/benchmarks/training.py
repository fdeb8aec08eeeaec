"""Cost of training many small models together, as a ratio to one after the other.

A sweep over learning rates of a four-layer MLP on MNIST is timed in both ways in turn, in one
process, on one thread. ``make bench`` keeps the numbers in ``results/training.json``.
"""

import bench
import torch

from blockspectra.problem import cross_entropy
from companion.datasets import mnist, stream
from companion.models.mlp import MLP, MLPConfig
from companion.training import OPTIMIZERS, train, train_together

STEPS, REPEATS, BATCH = 40, 3, 64
SIZES = ((14, 32), (14, 64), (28, 64), (28, 128))  # side of the images, width of the layers
RUNS = (7, 21)


def sweep(side: int, width: int, runs: int, steps: int, together: bool) -> None:
    """Train with ``runs`` learning rates."""
    torch.manual_seed(0)
    models = [MLP(MLPConfig((side * side, width, width, width, 10))) for _ in range(runs)]
    data = mnist(size=side)
    batches = [stream(data, BATCH, seed) for seed in range(runs)]
    rates = [1e-3] * runs
    if together:
        train_together(models, cross_entropy, batches, OPTIMIZERS["adam"], rates, steps=steps)
        return
    for model, source, rate in zip(models, batches, rates, strict=True):
        train(model, cross_entropy, source, OPTIMIZERS["adam"], rate, steps=steps)


def measure(quick: bool) -> dict:
    """Rows by size and number of runs."""
    bench.ONE.enter()
    steps, repeats, rows = (2, 1, []) if quick else (STEPS, REPEATS, [])
    for side, width in SIZES[: 1 if quick else None]:
        for runs in RUNS:
            ways = {"one by one": False, "together": True}
            cases = {
                way: lambda s=side, w=width, n=runs, t=together: sweep(s, w, n, steps, t)
                for way, together in ways.items()
            }
            times = bench.rounds(cases, repeats, bench.ONE)
            each = {way: 1e3 * times.median(way) / runs / steps for way in ways}
            rows.append(
                {
                    "inputs": side * side,
                    "width": width,
                    "runs": runs,
                    "one_by_one_ms_per_step": round(each["one by one"], 3),
                    "together_ms_per_step": round(each["together"], 3),
                    **times.ratio("one by one", "together"),
                }
            )
            print(rows[-1])
    return {"batch": BATCH, "steps": steps, "repeats": repeats, "sweep": rows}


if __name__ == "__main__":
    bench.run("training", measure, __doc__)
