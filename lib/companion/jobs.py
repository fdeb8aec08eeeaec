"""Jobs by worker processes, and every chapter's jobs at every preset from the command line.

``python -m companion.jobs CHAPTER … --preset full`` computes what the chapters' results lack, in
the order in which they are declared, and can be stopped at any time: what is finished is kept.
``--list`` shows what is there and what is not; ``--model NAME`` takes the jobs of one model.
Every worker runs on one thread, so a number does not depend on how many workers there are.
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from blockspectra.environment import environment
from blockspectra.files import write_text
from blockspectra.slq import progress_wanted
from companion.experiments import (
    block_diagonality,
    estimator_accuracy,
    independent_check,
    initial_spectra,
    interventions,
    man_made_mlp,
    optimizer_comparison,
    preconditioned_spectra,
    predictors,
    pretraining,
    quadratic_runs,
    spectra_during_training,
)
from companion.parameters import at_preset
from companion.store import PRESETS, Job, Result, Store, declare

Declaration = Callable[..., list[Job] | dict[Any, Job]]

#: chapter → functions of its parameters that declare what it computes
CHAPTERS: dict[str, Sequence[Declaration]] = {
    "01_block_diagonal_hessian": [block_diagonality.shares, block_diagonality.pictures],
    "02_estimator_accuracy": [estimator_accuracy.jobs],
    "03_full_spectra": [spectra_during_training.jobs],
    "04_block_spectra": [
        *(initial_spectra.jobs, initial_spectra.deeper, initial_spectra.ladder),
        initial_spectra.variants,
        *(independent_check.jobs, independent_check.estimates),
    ],
    "05_block_heterogeneity": [initial_spectra.jobs, initial_spectra.sweep_of_samples],
    "06_adam_vs_sgd": [optimizer_comparison.jobs, optimizer_comparison.map_of_batches],
    "07_man_made_mlp": [man_made_mlp.comparisons, man_made_mlp.spectra],
    "08_mlp_mixer": [initial_spectra.jobs, optimizer_comparison.jobs_of_train_size],
    "09_pretrained_gpt2": [pretraining.pretrainings, pretraining.spectra, pretraining.tunings],
    "10_quadratics": [quadratic_runs.jobs],
    "11_theory": [quadratic_runs.families],
    "20_what_adam_sees": [preconditioned_spectra.jobs, spectra_during_training.along_training],
    "21_interventions": [interventions.jobs, interventions.scales],
    "22_predictors": [predictors.comparisons, initial_spectra.jobs, predictors.statistics],
}


def measure(store: Store, jobs: Sequence[Job], workers: int = 2) -> list[Result]:
    """Take several measurements in processes; the finished ones are kept if a later one fails."""
    lacking = [job for job in dict.fromkeys(jobs) if not store.has(job)]
    if lacking and not store.read_only:
        for _ in compute(store, lacking, workers):
            pass
    return [store.get(job) for job in jobs]  # read, and noted as used


def compute(store: Store, jobs: Sequence[Job], workers: int):
    """Compute jobs in their order by worker processes; yields each when it is in the store."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin) as pool:
        futures = {pool.submit(store.get, job): job for job in jobs}
        bar = tqdm(total=len(jobs), disable=not progress_wanted())
        try:
            for future in as_completed(futures):
                future.result()
                bar.set_description(futures[future].name)
                bar.update()
                yield futures[future]
        finally:
            bar.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Work on one thread, and end with the process that began this one, however it is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def declared(chapter: str, preset: str) -> list[Job]:
    """All jobs of a chapter at a preset."""
    parameters, jobs = at_preset(chapter, preset), []
    for declaration in CHAPTERS[chapter]:
        made = declare(declaration, parameters)
        jobs += made.values() if isinstance(made, dict) else made
    return jobs


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m companion.jobs", description=__doc__)
    parser.add_argument("chapters", nargs="*", default=list(CHAPTERS), metavar="CHAPTER")
    parser.add_argument("--preset", choices=PRESETS, default="laptop")
    parser.add_argument("--model", metavar="NAME", help="only the jobs of this model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--done", type=Path, metavar="FILE", help="write this file at the end")
    given = parser.parse_args()
    if unknown := sorted(set(given.chapters) - set(CHAPTERS)):
        parser.error(f"unknown chapter {', '.join(unknown)}: choose from {', '.join(CHAPTERS)}")
    store = Store(given.preset)
    every = chain.from_iterable(declared(one, given.preset) for one in given.chapters)
    jobs = [j for j in dict.fromkeys(every) if given.model in (None, getattr(j, "model", None))]
    if not jobs:
        parser.error(f"no job of these chapters is of the model {given.model!r}")
    if given.list:
        for job in jobs:
            print("there  " if store.has(job) else "lacking", job.stem)
        return
    lacking = [job for job in jobs if not store.has(job)]
    print(f"{len(jobs) - len(lacking)} of {len(jobs)} results are there.", flush=True)
    started = time.perf_counter()
    try:
        for number, job in enumerate(compute(store, lacking, given.workers) if lacking else (), 1):
            minutes = (time.perf_counter() - started) / 60
            print(f"{number}/{len(lacking)} after {minutes:.1f} min: {job.stem}", flush=True)
    except KeyboardInterrupt:
        sys.exit("Stopped; what was finished is kept, the same command goes on from there.")
    if given.done:
        for job in jobs:
            store.get(job)
        write_text(given.done, json.dumps({"results": store.used} | environment(), indent=1) + "\n")


if __name__ == "__main__":
    main()
