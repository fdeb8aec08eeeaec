"""How much time two ranks that share the blocks save over one process.

One process and two ranks take turns, one thread each; the second rank waits, idle, while the first
is alone. Needs two free cores: the load of the machine at the start is kept beside the numbers.
``make bench`` keeps them in ``results/ranks.json``.
"""

import json
import os
import tempfile
from pathlib import Path

import bench
import torch.distributed as dist
import torch.multiprocessing

from blockspectra import block_spectra, partition

STEPS, PROBES, BATCHES, REPEATS = 15, 2, 4, 5
WAYS = {"one process": None, "by blocks": "blocks"}


def rank_rows(rank: int, folder: Path, quick: bool) -> None:
    """Take part as one of two ranks; the first writes down the row."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    bench.ONE.enter()
    sizes = {"context": 8, "samples": 2} if quick else {"samples": 4}
    problem = bench.gpt(1 if quick else 2, 16 if quick else 64, number=BATCHES, **sizes)
    blocks, found = partition(problem.model), {}

    def spectra(way: str) -> None:
        dist.barrier()
        if rank == 0 or WAYS[way]:
            found[way] = block_spectra(
                problem, blocks, steps=STEPS, probes=PROBES, ranks=WAYS[way], progress=False
            )

    cases = {way: lambda way=way: spectra(way) for way in WAYS}
    times = bench.rounds(cases, 1 if quick else REPEATS, bench.ONE)
    dist.destroy_process_group()
    if rank:
        return
    alone, shared = WAYS
    row = {
        "split": shared,
        "seconds": round(times.median(shared), 3),
        "seconds_of_one_process": round(times.median(alone), 3),
        **times.ratio(shared, alone),
        "same_bits": same_bits(found[shared], found[alone]),
    }
    content = {**bench.described(problem), "blocks": len(blocks), "rows": [row]}
    (folder / "rows.json").write_text(json.dumps(content))


def same_bits(found, wanted) -> bool:
    """Whether all coefficients are the same to the last bit."""
    keys = ("alpha", "beta", "taken", "orthogonality")
    return all(getattr(found, k).tobytes() == getattr(wanted, k).tobytes() for k in keys)


def measure(quick: bool) -> dict:
    """The time of two ranks beside that of one process."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_rows, (Path(folder), quick), nprocs=2)
        content = json.loads((Path(folder) / "rows.json").read_text())
    settings = {"steps": STEPS, "probes": PROBES, "repeats": 1 if quick else REPEATS}
    return {**content, **settings, "cores": os.cpu_count(), "load_at_the_start": round(load, 2)}


if __name__ == "__main__":
    bench.run("ranks", measure, __doc__)
