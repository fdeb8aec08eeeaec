"""What the benchmarks share: their GPT, how they time, where they write.

Cases are timed in turn, round after round in one process, so that noise hits all alike, and are
compared by their medians. No test looks at a time.
"""

import argparse
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from blockspectra import Problem, block_spectra, cross_entropy, partition
from blockspectra.environment import environment
from blockspectra.files import write_text
from companion.datasets import batches, shakespeare
from companion.models.gpt import GPT, GPTConfig

RESULTS = Path(__file__).parent / "results"
NO_GPU = "no GPU where this was measured"


@dataclass(frozen=True)
class Place:
    """Where to compute: ``cpu`` with a number of threads, or ``cuda``."""

    device: str
    threads: int | None

    @property
    def missing(self) -> bool:
        """Whether there is none here."""
        return self.device == "cuda" and not torch.cuda.is_available()

    def enter(self) -> None:
        """Compute here from now on."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @property
    def columns(self) -> dict:
        """How a row says it."""
        return {"device": self.device, "threads": self.threads}


ONE, TWO, GPU = Place("cpu", 1), Place("cpu", 2), Place("cuda", None)
PLACES = (ONE, TWO, GPU)


@dataclass(frozen=True)
class Times:
    """Seconds of each case in each round."""

    seconds: dict[str, list[float]]

    def median(self, case: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds[case])

    def ratio(self, cases: str | list[str], unit: str, share: float = 1) -> dict:
        """Mean of some cases, times ``share``, as a ratio to another, medians of both.

        ``low`` and ``high`` are the extremes of the same ratio taken round by round.
        """
        cases = [cases] if isinstance(cases, str) else cases
        rows = list(zip(*(self.seconds[case] for case in cases), strict=True))
        means = [share * statistics.fmean(row) for row in rows]
        each = [mean / one for mean, one in zip(means, self.seconds[unit], strict=True)]
        ratio = statistics.median(means) / self.median(unit)
        return {"ratio": round(ratio, 3), "low": round(min(each), 3), "high": round(max(each), 3)}


def rounds(
    cases: dict[str, Callable[[], object]], repeats: int, place: Place, warm: bool = True
) -> Times:
    """Time all cases in turn, ``repeats`` times, after a first round that only warms up."""
    seconds = {case: [] for case in cases}
    for repeat in range(-1 if warm else 0, repeats):
        for case, call in cases.items():
            place.wait()
            start = time.perf_counter()
            call()
            place.wait()
            if repeat >= 0:
                seconds[case].append(time.perf_counter() - start)
    return Times(seconds)


def gradient(problem: Problem) -> Callable[[], object]:
    """Return the unit of all costs: forward and backward over all parameters and batches."""
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    return lambda: [torch.autograd.grad(problem.value(b), parameters) for b in problem.batches]


def gpt(
    layers: int,
    width: int,
    *,
    context: int = 64,
    samples: int = 16,
    number: int = 1,
    heads: int = 4,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """Build a GPT at initialisation on ``number`` batches of ``samples`` windows of Shakespeare."""
    data = shakespeare(context=context, windows=samples * number, seed=seed)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(layers, heads, width, context, data.classes)).eval().to(device)
    return Problem(
        model, cross_entropy, batches(data, samples, number, seed, torch.float32, device)
    )


def reference(quick: bool, device: str) -> Problem:
    """Return the GPT on which products and peers are compared."""
    if quick:
        return gpt(1, 8, context=8, samples=2, heads=2, device=device)
    return gpt(4, 128, device=device)


class Pair:
    """Two processes of one thread each, which share the blocks of `reference` as ranks.

    Between calls they wait, idle.
    """

    def __init__(self, quick: bool):
        context, self.pipes = torch.multiprocessing.get_context("spawn"), []
        self.folder = tempfile.TemporaryDirectory()
        for rank in range(2):
            here, there = context.Pipe()
            settings = rank, self.folder.name, quick, there
            context.Process(target=_serve, args=settings, daemon=True).start()
            self.pipes.append(here)
        self._wait()

    def spectra(self, steps: int, probes: int) -> None:
        """Have them compute the spectra of all blocks together."""
        for pipe in self.pipes:
            pipe.send({"steps": steps, "probes": probes})
        self._wait()

    def end(self) -> None:
        """Let them go."""
        for pipe in self.pipes:
            pipe.send(None)
        self._wait()
        self.folder.cleanup()

    def _wait(self) -> None:
        for pipe in self.pipes:
            pipe.recv()


def _serve(rank: int, folder: str, quick: bool, pipe) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ONE.enter()
    problem = reference(quick, "cpu")
    blocks = partition(problem.model)
    pipe.send("ready")
    while (settings := pipe.recv()) is not None:
        block_spectra(problem, blocks, ranks="blocks", progress=False, **settings)
        pipe.send("done")
    dist.destroy_process_group()
    pipe.send("gone")


def described(problem: Problem) -> dict:
    """Model and data, for the record."""
    config = problem.model.config
    inputs, _ = problem.batches[0]
    return {
        "model": f"GPT, {config.layers} layers, {config.heads} heads, width {config.width}",
        "parameters": sum(p.numel() for p in problem.model.parameters()),
        "vocabulary": config.vocab,
        "batch": list(inputs.shape),
        "batches": len(problem.batches),
    }


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm of what is right."""
    found, wanted = found.detach().double().reshape(-1), wanted.detach().double().reshape(-1)
    return float((found - wanted).norm() / wanted.norm())


def processor() -> str:
    """Name the processor's model, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", about.read_text()) if about.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def run(name: str, measure: Callable[[bool], dict], doc: str) -> None:
    """Measure and write ``<name>.json``; ``--quick`` only shows that it runs."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    wanted = parser.parse_args()
    content = measure(wanted.quick)
    content["environment"] = {**environment(), "processor": processor()}
    print(write_text(wanted.out / f"{name}.json", json.dumps(content, indent=1) + "\n"))
