"""Every figure again, from committed results: nothing is measured.

``python -m companion.redraw RESULTS FOLDER`` runs the code of the notebooks with a store that
only reads. What a chapter works out without the store (bootstraps, distances of spectra, quadratics
of a few dimensions, chapter 12's example) is worked out again: it takes seconds.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from blockspectra.spectra import Spectra
from companion.cells import SKIPPED, run_cells
from companion.chapter import Chapter, save_figure
from companion.claims import Criterion, Finding
from companion.jobs import Job
from companion.store import Store, read_result, repository


class NotCommittedError(LookupError):
    """A result that a figure needs is not among the committed ones."""


class Committed(Store):
    """What one chapter read when the committed results were made; it computes nothing.

    Parameters
    ----------
    folder : Path
        ``data/results/<preset>``.
    chapter : str
        Whose manifest names the results.
    """

    def __init__(self, folder: Path, chapter: str):
        super().__init__(folder.name)
        self.path, self.committed, self.chapter = folder, None, chapter
        self.names = [*manifest(folder, chapter)["results"]]

    def get(
        self, name: str, depends_on: dict, compute: Callable[[], Spectra | pd.DataFrame]
    ) -> Spectra | pd.DataFrame:
        """Return a result; as `Store.get`, but refuse to compute.

        The chapter's only result of that name is taken whatever its key: a key can cover numbers
        worked out on the way, whose last bits differ from machine to machine.

        Raises
        ------
        NotCommittedError
            Where there is none, or several and none has the key.
        """
        found = [n for n in self.names if re.fullmatch(re.escape(name) + r"-[0-9a-f]{10}\.\w+", n)]
        if len(found) != 1:
            wanted = f"{name}-{self.key(name, depends_on, compute)}."
            found = [n for n in found if n.startswith(wanted)]
        if not found:
            raise NotCommittedError(
                f"{self.path} has no result {name} of {self.chapter} that this code would make: "
                f"run make reproduce PRESET={self.path.name}, then make results."
            )
        return read_result(self.path / found[0])


class Redrawn(Chapter):
    """A chapter that writes its figures into a folder of their own, and nothing else."""

    def __init__(self, results: Path, folder: Path, name: str, namespace: dict):
        super().__init__(name, namespace)
        self.store, self.folder = Committed(results, name), folder

    def figure(self, name: str, figure: Figure, data: pd.DataFrame, caption: str) -> None:
        """Write PDF, PNG, CSV and caption."""
        save_figure(self.folder / self.name / name, figure, data, caption)
        plt.close(figure)

    def conclude(self, claim: str, criteria: list[Criterion], note: str) -> Finding:
        """Count the verdict, for cells that show it."""
        return Finding(claim, criteria, note)

    def finish(self) -> str:
        """Write no manifest: this is not a run."""
        return ""


def manifest(results: Path, chapter: str) -> dict:
    """Read how a chapter's committed results were made.

    Raises
    ------
    NotCommittedError
        Where the chapter has none.
    """
    path = results / "manifests" / f"{chapter}.json"
    if not path.exists():
        raise NotCommittedError(
            f"{results} has no run of {chapter}: run make reproduce PRESET={results.name}, then "
            "make results."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def figure_names(results: Path, chapter: str) -> list[str]:
    """Names of the figures that a chapter's run drew, in its order."""
    wrote = manifest(results, chapter)["wrote"]
    return [Path(name).stem for name in wrote if name.endswith(".png")]


def redraw(notebook: Path, results: Path, folder: Path) -> float:
    """Draw the figures of one chapter.

    Parameters
    ----------
    notebook, results, folder : Path
        The chapter, ``data/results/<preset>``, and where to write ``<chapter>/<figure>.*``.

    Returns
    -------
    float
        Seconds that it took.
    """
    started = time.perf_counter()
    matplotlib.use("agg")
    torch.set_num_threads(1)
    parameters = manifest(results, notebook.stem)["parameters"]
    with (
        patch("companion.chapter.Chapter", partial(Redrawn, results, folder)),
        patch("companion.jobs.measure", _read_all),
        redirect_stdout(None),  # what chapters print about their results is in the notebooks
    ):
        run_cells(notebook, parameters, skip=SKIPPED)
    return time.perf_counter() - started


def redraw_all(
    notebooks: Sequence[Path], results: Path, folder: Path, workers: int = 2
) -> dict[str, float]:
    """Draw the figures of several chapters at once, those with most figures first.

    Returns
    -------
    dict
        Chapter → seconds, of those that have figures.
    """
    counts = {path: len(figure_names(results, path.stem)) for path in notebooks}
    drawn = sorted((p for p in notebooks if counts[p]), key=counts.__getitem__, reverse=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        seconds = pool.map(redraw, drawn, [results] * len(drawn), [folder] * len(drawn))
        return dict(zip((path.stem for path in drawn), seconds, strict=True))


def _read_all(store: Store, wanted: Sequence[Job], workers: int = 2) -> list:
    """Take the place of `measure`: no processes are needed where nothing is computed."""
    return [one.result(store) for one in wanted]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    root = repository()
    if root is None:
        parser.exit(1, "Figures are redrawn from the notebooks, which the wheel lacks: clone it.\n")
    started = time.perf_counter()
    try:
        seconds = redraw_all(
            sorted((root / "notebooks").glob("*.ipynb")), given.results, given.folder, given.workers
        )
    except NotCommittedError as error:
        parser.exit(1, f"{error}\n")
    drawn = sum(len(figure_names(given.results, name)) for name in seconds)
    took = time.perf_counter() - started
    print(f"{drawn} figures of {len(seconds)} chapters in {given.folder}, {took:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
