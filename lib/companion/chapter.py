"""What every notebook does at its start and at its end: check, keep, report.

A notebook's cell tagged ``parameters`` annotates every name; papermill puts what the caller asks
for in a cell behind it. papermill neither refuses unknown names nor checks types, so `Chapter`
does, before anything is computed.
"""

import ast
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from blockspectra.environment import environment
from blockspectra.files import digest, whole, write_text
from blockspectra.memory import in_bytes
from blockspectra.plotting.style import use_style
from companion.claims import CLAIMS, Criterion, Finding
from companion.parameters import at_preset, fits, preset_file
from companion.store import Result, Store, build_folder, declare, stored


class ParameterError(ValueError):
    """A parameter of a chapter is unknown or wrong, or its results cannot be written there."""

    def _render_traceback_(self) -> list[str]:
        """Show one sentence in a notebook, without the stack."""
        return [f"ParameterError: {self}"]


class Chapter:
    """One run of a notebook: the name of its file without suffix, and its ``globals()``.

    What it leaves (figures, claims, manifest) goes into the store of its preset; a run with other
    parameters than the preset's leaves it in a folder ``own`` there, so that trying things out
    never changes a verdict. A parameter that the ``parameters`` cell does not annotate, of another
    type or without sense, and a folder that cannot be written to, raise `ParameterError`.
    """

    def __init__(self, name: str, namespace: dict):
        self.name, self.started = name, time.perf_counter()
        self.parameters = check_parameters(namespace)
        check_values(name, self.parameters)
        try:
            self.store = Store(self.parameters["preset"])
        except ValueError as error:
            raise ParameterError(str(error)) from None
        use_style()
        pd.set_option("display.float_format", plainly, "display.max_colwidth", None)
        self.folder = self.store.path if self._is_preset() else self._own_folder()
        if self.store.read_only:  # figures are drawn again: nothing is measured, nothing concluded
            self.folder = build_folder()
        try:  # before the work rather than after it
            write_text(self.folder / ".writable", "").unlink()
        except OSError as error:
            raise ParameterError(
                f"{self.folder} cannot be written to ({error.strerror}): set BLOCKSPECTRA_RESULTS "
                f"to a folder that can."
            ) from None
        if (shell := get_ipython()) and "inline" not in mpl.get_backend():
            select_figure_formats(shell, {"png"})  # MPLBACKEND=Agg would show none
        self.data: dict[str, str] = {}  #: data set → checksum, filled by the caller
        self.wrote: dict[str, str] = {}  #: file → sha256 of what this run wrote

    def _is_preset(self) -> bool:
        """Say whether the parameters are the preset's: only then may the claims' table change."""
        preset = self.store.path.name
        there = all(preset_file(self.name, name).exists() for name in ("laptop", preset))
        return not there or self.parameters == at_preset(self.name, preset)

    def _own_folder(self) -> Path:
        """Return a folder for these parameters, so that runs at the same time do not mix."""
        text = json.dumps(self.parameters, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.store.path / "own" / f"{self.name}-{key}"

    def choose(self, text: str, known: Iterable[str]) -> list[str]:
        """Split a parameter such as ``"vgg, gpt"`` and refuse what is not known."""
        chosen = [word for word in text.replace(",", " ").split() if word]
        unknown = [word for word in chosen if word not in known]
        if unknown or not chosen:
            raise ParameterError(
                f"{self.name} does not know {', '.join(unknown) or 'an empty list'}: choose from "
                f"{', '.join(known)}."
            )
        return chosen

    def figure(self, name: str, figure: Figure, data: pd.DataFrame, caption: str) -> None:
        """Keep a figure as PDF and PNG with the CSV and the caption beside it, and show it."""
        files = save_figure(self.folder / "figures" / self.name / name, figure, data, caption)
        self.wrote |= {f.relative_to(self.folder).as_posix(): digest(f) for f in files}
        plt.close(figure)  # or the notebook would show it a second time
        display(figure, metadata={"image/png": {"alt": caption}})  # for screen readers
        display(Markdown(f"**{name.replace('_', ' ').capitalize()}.** {caption}"))

    def stored(self, declaration: Callable, preset: str = "full") -> list[Result]:
        """Read those results of a chapter's jobs at a preset that are in the repository."""
        return stored(declare(declaration, at_preset(self.name, preset)), preset)

    def conclude(self, claim: str, criteria: list[Criterion], note: str, **more) -> Finding:
        """Store what was measured of a claim, see `Finding`, and print the verdicts that follow."""
        finding = Finding(claim, criteria, note, **more)
        if CLAIMS[claim].chapter != self.name:
            raise ValueError(f"{claim} is measured by {CLAIMS[claim].chapter}, not by {self.name}.")
        if not self.store.read_only:
            path = finding.save(self.folder)
            self.wrote[f"claims/{path.name}"] = digest(path)
        print(f"{claim}: reproduced at preset full: {finding.reproduced} ({finding.held})", end="")
        print(f"; robust: {finding.robust}; rerun agrees / contradicts / open: {finding.rerun}")
        return finding

    def finish(self) -> str:
        """Write the run's manifest and say where things are."""
        figures = sum(f.endswith(".pdf") for f in self.wrote)
        if self.store.read_only:
            return f"{self.name}: {figures} figures drawn again from {self.store.path}"
        manifest = {
            "chapter": self.name,
            "parameters": self.parameters,
            "data": self.data,
            "results": self.store.used,
            "wrote": self.wrote,
            "wall_time_s": round(time.perf_counter() - self.started, 1),
            **environment(),
        }
        text = json.dumps(manifest, indent=1) + "\n"
        write_text(self.folder / "manifests" / f"{self.name}.json", text)
        own = f", under own/{self.folder.name}: not the preset's parameters"
        own = "" if self.folder == self.store.path else own
        sizes = {"result": len(self.store.used), "figure": figures}
        counts = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in sizes.items())
        return f"{self.name}: {counts}, manifest written{own}"


def save_figure(path: Path, figure: Figure, data: pd.DataFrame, caption: str) -> list[Path]:
    """Write a figure as PDF and PNG, its data as CSV, its caption as text; the path has no suffix.

    The figure is as wide as it says, to the bit: what is outside its width is cut off.
    """
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("pdf", "png", "csv", "txt")]
    with whole(files[0]) as pdf, whole(files[1]) as png:
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
        figure.savefig(png, format="png", dpi=200)
    write_text(files[2], data.to_csv(index=False, float_format="%.6g"))
    write_text(files[3], caption + "\n")
    return files


def plainly(number: float) -> str:
    """Write a number of a table: whole ones without a point, others to three digits."""
    return f"{number:,.0f}" if 1 <= abs(number) < 1e9 and number.is_integer() else f"{number:.3g}"


def check_parameters(namespace: dict) -> dict:
    """Compare what papermill injected with the annotations; returns the checked parameters."""
    annotations = namespace.get("__annotations__", {})
    if "preset" not in annotations:
        raise ParameterError("The parameters cell must annotate every parameter, and a preset.")
    if unknown := [name for name in _injected(namespace) if name not in annotations]:
        raise ParameterError(
            f"Unknown parameter {', '.join(unknown)}: this chapter takes {', '.join(annotations)}."
        )
    for name, kind in annotations.items():
        if not fits(namespace[name], kind):
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ParameterError(
                f"Parameter {name} must be of type {wanted}, not {namespace[name]!r}."
            )
    return {name: namespace[name] for name in annotations}


def check_values(chapter: str, parameters: dict) -> None:
    """Refuse negative numbers, 0 where the usual values are above it, and no amount of memory."""
    usual = at_preset(chapter, "laptop") if preset_file(chapter, "laptop").exists() else {}
    for name, value in parameters.items():
        own, given = (x if isinstance(x, list) else [x] for x in (usual.get(name), value))
        if not all(isinstance(x, int | float) for x in own + given):
            continue
        above = min(own, default=0) > 0
        if not all(0 <= x < math.inf and (x or not above) for x in given):
            least = "above" if above else "at least"
            raise ParameterError(f"Parameter {name} must be {least} 0, not {value!r}.")
    if memory := parameters.get("memory"):
        try:
            in_bytes(memory)
        except ValueError as error:
            raise ParameterError(str(error)) from None


def _injected(namespace: dict) -> list[str]:
    """Names that papermill's cell assigns, less the paths that ``--inject-paths`` adds."""
    names = []
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            targets = (n.targets[0] for n in ast.parse(source).body if isinstance(n, ast.Assign))
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("PAPERMILL_")]
