"""Cost of training many small models together, as a ratio to one after the other.

``make bench`` runs this and keeps the numbers, with the environment, in ``results/training.json``.
Both ways are timed in turn in one process and compared by their medians; no test looks at them.
"""

import json
import statistics
import time
from pathlib import Path

import torch

from blockspectra.datasets import mnist, stream
from blockspectra.models.mlp import MLP, MLPConfig
from blockspectra.problem import cross_entropy
from blockspectra.results import environment, write_text
from blockspectra.training import OPTIMIZERS, train

STEPS, REPEATS, BATCH = 40, 5, 64


def seconds(side: int, width: int, runs: int, together: bool) -> float:
    """Time one sweep over ``runs`` learning rates of a four-layer MLP on MNIST."""
    torch.manual_seed(0)
    models = [MLP(MLPConfig((side * side, width, width, width, 10))) for _ in range(runs)]
    data = mnist(size=side)
    batches = [stream(data, BATCH, seed) for seed in range(runs)]
    rates = [1e-3] * runs
    start = time.perf_counter()
    train(models, cross_entropy, batches, OPTIMIZERS["adam"], rates, steps=STEPS, together=together)
    return time.perf_counter() - start


def main() -> None:
    """Measure all cases and write them."""
    torch.set_num_threads(1)
    rows = []
    for side, width in ((14, 32), (14, 64), (28, 64), (28, 128)):
        for runs in (7, 21):
            times = [
                (seconds(side, width, runs, False), seconds(side, width, runs, True))
                for _ in range(REPEATS + 1)
            ][1:]  # the first warms up
            apart, together = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {
                    "inputs": side * side,
                    "width": width,
                    "runs": runs,
                    "one_by_one_ms_per_step": round(1e3 * apart / runs / STEPS, 3),
                    "together_ms_per_step": round(1e3 * together / runs / STEPS, 3),
                    "ratio": round(apart / together, 2),
                }
            )
            print(rows[-1])
    path = Path(__file__).parent / "results" / "training.json"
    content = {"batch": BATCH, "repeats": REPEATS, "sweep": rows, "environment": environment()}
    write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
