"""How time grows with blocks, probes, steps and batches, and whether a budget of memory holds.

Time should grow in proportion to each. Peak memory is that of a fresh process, asked to stay within
``memory=``; results must not depend on it. ``make bench`` keeps the numbers in
``results/scaling.json``.
"""

import hashlib
import json
import resource
import subprocess
import sys
import time

import bench
import numpy as np
import psutil

from blockspectra import ProblemError, block_spectra, partition

FACTORS = (1, 2, 4, 8)
STEPS, REPEATS = 64, 11
BUDGETS = (None, 2048, 1024, 896, 768, 640, 512)  # MiB, of the whole process
MIB = 2**20


def growth(place: bench.Place, quick: bool) -> list[dict]:
    """Time of `block_spectra` against one number at a time; the heads of Q and K are the blocks.

    They lie in one matrix, so that all cost the same.
    """
    steps = 4 if quick else STEPS
    sizes = {"context": 8, "samples": 2} if quick else {"context": 32, "samples": 8}
    problems = {
        n: bench.gpt(1 if quick else 2, 16 if quick else 64, number=n, device=place.device, **sizes)
        for n in FACTORS
    }

    def spectra(blocks=1, batches=1, **settings) -> None:
        problem = problems[batches]
        heads = partition(problem.model, by="head", only="h.0.attn.c_attn.[qk].*")
        settings = {"steps": steps, "probes": 1, **settings}
        block_spectra(problem, heads[:blocks], progress=False, **settings)

    cases = {}
    for n in FACTORS:
        cases[f"{n} blocks"] = lambda n=n: spectra(blocks=n)
        cases[f"{n} probes"] = lambda n=n: spectra(probes=n)
        cases[f"{n} steps"] = lambda n=n: spectra(steps=steps // 4 * n)
        cases[f"{n} batches"] = lambda n=n: spectra(batches=n)
    times = bench.rounds(
        {"gradient": bench.gradient(problems[1]), **cases}, 1 if quick else REPEATS, place
    )
    rows = []
    for what in ("blocks", "probes", "steps", "batches"):
        unit = steps // 4 if what == "steps" else 1
        numbers = [unit * n for n in FACTORS]
        gradients = [times.ratio(f"{n} {what}", "gradient")["ratio"] for n in FACTORS]
        rows.append(
            {
                **place.columns,
                "what": what,
                "numbers": numbers,
                "gradients": gradients,
                **fitted(np.array(FACTORS), np.array(gradients)),
            }
        )
    return rows


def fitted(factors: np.ndarray, costs: np.ndarray) -> dict:
    """Exponent of a power law, and how well a fixed cost and a line do."""
    slope, fixed = np.polyfit(factors, costs, 1)
    rest = costs - (fixed + slope * factors)
    return {
        "exponent": round(float(np.polyfit(np.log(factors), np.log(costs), 1)[0]), 3),
        "fixed_share": round(float(fixed / costs[0]), 3),
        "r_squared": round(float(1 - (rest @ rest) / ((costs - costs.mean()) ** 2).sum()), 5),
        "note": "",
    }


def within(budget: int | None, quick: bool) -> dict:
    """Compute spectra within a budget, in this process; the peak is that of its whole life."""
    bench.ONE.enter()
    problem = (
        bench.gpt(1, 16, context=8, samples=2, number=2)
        if quick
        else bench.gpt(4, 128, samples=8, number=8)
    )
    blocks = partition(problem.model)[:: 1 if quick else 5]
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    row = {"asked_MiB": budget, "before_MiB": round(before / MIB)}
    asked = f"{budget}MiB" if budget else None
    try:
        spectra = block_spectra(problem, blocks, steps=2, probes=2, memory=asked, progress=False)
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["digest"] = hashlib.sha256(spectra.alpha.tobytes()).hexdigest()[:12]
        row["note"] = spectra.meta["products"]
    except ProblemError as error:
        row |= {"seconds": None, "digest": None, "note": f"refused: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row["peak_MiB"] = round(peak / (1024 if sys.platform != "darwin" else MIB))
    return row


def memory(quick: bool) -> list[dict]:
    """One process a budget; without one the time is the floor."""
    rows = []
    for budget in BUDGETS[:: 3 if quick else 1]:
        command = [sys.executable, __file__, "within", json.dumps([budget, quick])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def measure(quick: bool) -> dict:
    """Measure everything."""
    budgets, rows = memory(quick), []
    for place in bench.PLACES:
        if place.missing:
            unknown = ("numbers", "gradients", "exponent", "fixed_share", "r_squared")
            empty = dict.fromkeys(unknown)
            rows.append({**place.columns, "what": "blocks", **empty, "note": bench.NO_GPU})
        else:
            place.enter()
            rows += growth(place, quick)
    for row in [*budgets, *rows]:
        print(row)
    return {"repeats": REPEATS, "growth": rows, "memory": budgets}


if __name__ == "__main__":
    if sys.argv[1:2] == ["within"]:
        print(json.dumps(within(*json.loads(sys.argv[2]))))
    else:
        bench.run("scaling", measure, __doc__)
