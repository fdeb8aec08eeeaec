"""What a chapter measures first of one model, computed by itself: so that many computers share it.

``python -m companion.one_model NOTEBOOK PARAMETERS MODEL MANIFEST`` runs the code of a notebook
up to its first call of `measure` and does there the jobs of that model alone. They are in the store
when the chapter itself is run, which finds them.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import yaml

from blockspectra.environment import environment
from blockspectra.files import write_text
from companion import jobs as measure
from companion.cells import run_cells
from companion.store import Store


class _Measured(Exception):
    """The jobs of the model are done, in this store: the rest of the notebook is not wanted."""


def measure_one_model(notebook: Path, parameters: Path, model: str) -> Store:
    """Run a notebook up to its first call of `measure`, and of that the jobs of one model.

    Parameters
    ----------
    notebook, parameters : Path
        As given to papermill: an ``.ipynb``, and YAML.
    model : str
        The ``title`` of the jobs to do.

    Returns
    -------
    Store
        The chapter's; ``used`` names the results of the model.

    Raises
    ------
    ValueError
        If none of the jobs is the model's, or the notebook has no call of `measure`.
    """
    measure_all = measure.measure

    def measure_jobs_of_model(store: Store, wanted: Sequence[measure.Job], workers: int = 2):
        jobs = [job for job in wanted if job.title == model]
        if not jobs:
            titles = ", ".join(dict.fromkeys(job.title for job in wanted))
            raise ValueError(f"{notebook} measures nothing of {model} first, but {titles}.")
        measure_all(store, jobs, workers)
        raise _Measured(store)

    given = yaml.safe_load(parameters.read_text(encoding="utf-8"))
    try:
        with patch.object(measure, "measure", measure_jobs_of_model):
            run_cells(notebook, given)
    except _Measured as done:
        return done.args[0]
    raise ValueError(f"{notebook} never calls measure: it cannot be split by model.")


def main() -> None:
    """Measure, and write a manifest: what was computed, where and in what time."""
    started = time.perf_counter()
    notebook, parameters, model, manifest = sys.argv[1:]
    store = measure_one_model(Path(notebook), Path(parameters), model)
    about = {
        "chapter": Path(notebook).stem,
        "model": model,
        "results": store.used,
        "wall_time_s": round(time.perf_counter() - started, 1),
        **environment(),
    }
    write_text(Path(manifest), json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
