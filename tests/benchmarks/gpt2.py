"""GPT2 at its full size within a budget of memory: the whole spectrum, and that of 25 blocks.

The blocks are those of the script released with the paper: the embedding, and the matrices of the
first, last and two layers between. Each case is a process of its own, whose peak resident memory
is kept beside its budget. Weights are at initialisation and tokens at random: costs depend on
neither. ``make bench`` keeps the numbers in ``results/gpt2.json``.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace

import bench
import torch

from blockspectra import Problem, block_spectra, cross_entropy, partition
from blockspectra.blocks import whole
from blockspectra.hessian import BlockHessians
from blockspectra.memory import in_bytes
from companion.models.gpt import GPT, GPT2

TOKENS, REPEATS = 128, 3
MATRICES = ("c_attn.q", "c_attn.k", "c_attn.v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LAYERS = (0, 3, 7, 11)
CASES = {
    "whole": {"steps": 6, "basis": "float32", "memory": "16GiB"},
    "25 blocks": {"steps": 3, "basis": "float64", "memory": "8GiB"},
}


def row(case: str, quick: bool) -> dict:
    """Measure one case in this process."""
    bench.ONE.enter()
    torch.manual_seed(0)
    config = replace(GPT2, layers=12, heads=2, width=8, vocab=64) if quick else GPT2
    model = GPT(config).eval()
    tokens = torch.randint(config.vocab, (2, 1, TOKENS))
    problem = Problem(model, cross_entropy, [(tokens[0], tokens[1])])
    names = [f"h.{layer}.*{matrix}" for layer in LAYERS for matrix in MATRICES]
    blocks = [whole(model)] if case == "whole" else partition(model, only=["wte", *names])
    gradients = bench.rounds({"one": bench.gradient(problem)}, REPEATS, bench.ONE)

    seconds, products = [], BlockHessians.products

    def timed(hessians, wanted):
        start = time.perf_counter()
        found = products(hessians, wanted)
        seconds.append((time.perf_counter() - start) / len(wanted))
        return found

    BlockHessians.products = timed
    start = time.perf_counter()
    spectra = block_spectra(problem, blocks, probes=1, progress=False, **CASES[case])
    elapsed = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB, on Linux
    unit = gradients.median("one")
    return {
        "case": case,
        "blocks": len(blocks),
        "parameters_in_blocks": sum(block.size for block in blocks),
        "largest_block": max(block.size for block in blocks),
        **CASES[case],
        "peak_GiB": round(peak / 2**30, 2),
        "peak_as_share_of_budget": round(peak / in_bytes(CASES[case]["memory"]), 3),
        "gradient_seconds": round(unit, 3),
        "product_in_gradients": round(statistics.median(seconds) / unit, 3),
        "step_in_gradients": round(elapsed / spectra.taken.sum() / unit, 3),
        "largest_orthogonality_loss": float(spectra.orthogonality.max()),
        "products": spectra.meta["products"],
    }


def measure(quick: bool) -> dict:
    """Measure all cases, each in a process of its own."""
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case} failed: {done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    return {"model": asdict(GPT2), "batch": [1, TOKENS], "probes": 1, "rows": rows}


if __name__ == "__main__":
    if "--case" in sys.argv:
        print(json.dumps(row(sys.argv[sys.argv.index("--case") + 1], "--quick" in sys.argv)))
    else:
        bench.run("gpt2", measure, __doc__)
