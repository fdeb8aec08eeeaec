"""The store of results: computed once, found again by what they depend on, with their manifests.

A store is a folder, ``<BLOCKSPECTRA_RESULTS>/<preset>`` or ``build/results/<preset>`` of the
repository; results committed under ``data/results/<preset>`` are read, never written, unless the
environment variable asks for a store of one's own.
"""

import ast
import copy
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from blockspectra.files import digest, write_text
from blockspectra.spectra import Spectra

PACKAGE = Path(__file__).parent
PRESETS = ("smoke", "laptop", "paper")
# modules that change no stored number: they draw, compare and judge, or keep, count and share out
READERS = {
    *("__init__.py", "arrays.py", "benchmarks.py", "cells.py", "chapter.py", "claims.py"),
    *("cost.py", "descriptions.py", "distance.py", "figures", "goals.py", "journal.py"),
    *("memory.py", "one_model.py", "ranks.py", "redraw.py", "report.py", "results.py"),
    "smoothing.py",
}


def repository() -> Path | None:
    """Return the repository that the package runs from, or None where only a wheel is installed."""
    root = PACKAGE.parent.parent
    return root if (root / "notebooks").is_dir() else None


def build_folder() -> Path:
    """Return ``build/`` of the repository, or of the working folder outside one."""
    return (repository() or Path.cwd()) / "build"


@cache
def code_version(module: str = "__main__") -> str:
    """Hash of the modules that can change a number computed in ``module``.

    These are the module itself and what it imports of this package, however indirectly, less those
    that only read what is stored; for code of a notebook (``__main__``) the whole package.
    """
    every = {
        path: path.read_bytes()
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in READERS
    }
    start = _source(module)
    waiting, needed = ([start] if start in every else list(every)), set()
    while waiting:
        path = waiting.pop()
        if path in every and path not in needed:
            needed.add(path)
            waiting += map(_source, _imports(path, every[path]))
    digest = hashlib.sha256()
    for path in sorted(needed):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + every[path])
    return digest.hexdigest()[:12]


def _source(module: str) -> Path:
    """File of a module of this package; for another module one that does not exist."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(path: Path, source: bytes) -> set[str]:
    """Names of modules, or of things in modules, that a file imports, in functions too."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


class Store:
    """Results of one preset.

    Parameters
    ----------
    preset : {"smoke", "laptop", "paper"}

    Raises
    ------
    ValueError
        On any other preset.
    """

    def __init__(self, preset: str):
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")
        own = os.environ.get("BLOCKSPECTRA_RESULTS")
        self.path = (Path(own).absolute() if own else build_folder() / "results") / preset
        self.committed = (
            repository() / "data" / "results" / preset if repository() and not own else None
        )
        self.used: dict[str, str] = {}  #: file → sha256 of every result read or written
        self.products: dict[str, str] = {}  #: file of spectra → how products were taken, and why

    def get(
        self, name: str, depends_on: dict, compute: Callable[[], Spectra | pd.DataFrame]
    ) -> Spectra | pd.DataFrame:
        """Return a result, from the store if it is there, else computed and kept.

        Parameters
        ----------
        name : str
            What it is, for people: becomes the start of the file's name.
        depends_on : dict
            Everything the result depends on, as JSON: parameters, seed, checksum of the data. The
            version of the code that ``compute`` is defined in, and of what that imports, is added.
        compute : callable, () → Spectra or DataFrame
            Called only where nothing is found, or what is found is damaged (which is said).
        """
        key = self.key(name, depends_on, compute)
        for folder in (self.path, self.committed):
            for path in folder.glob(f"{name}-{key}.*") if folder else ():
                try:
                    result = read_result(path)
                except ValueError as error:
                    print(f"{error} Computing it again.", file=sys.stderr)
                else:
                    self._note(path, result)
                    return result
        result = compute()
        if isinstance(result, Spectra):
            path = result.save(self.path / f"{name}-{key}.npz")
        else:
            text = result.to_csv(index=False)
            text = f"# sha256 {hashlib.sha256(text.encode()).hexdigest()}\n{text}"
            path = write_text(self.path / f"{name}-{key}.csv", text)
        self._note(path, result)
        shutil.rmtree(self.runs(name, depends_on), ignore_errors=True)
        return read_result(path)  # what a later run will see, to the bit

    def key(self, name: str, depends_on: dict, compute: Callable) -> str:
        """Return what tells this result from others of its name, in the name of its file."""
        code = code_version(getattr(compute, "__module__", "__main__"))
        return _key({"name": name, "code": code, **depends_on})

    def runs(self, name: str, depends_on: dict) -> Path:
        """Return the folder where ``compute`` may keep what it needs to go on after being killed.

        It is deleted once the result is there.
        """
        return self.path / "runs" / f"{name}-{_key(depends_on)}"

    def part(self, name: str) -> "Store":
        """Open a folder in this store for steps on the way to a result.

        A computation that is killed goes on from them; nobody commits them.
        """
        steps = copy.copy(self)
        steps.path, steps.committed = self.path / name, None
        steps.used, steps.products = {}, {}
        return steps

    def _note(self, path: Path, result: Spectra | pd.DataFrame) -> None:
        self.used[path.name] = digest(path)
        if isinstance(result, Spectra) and "products" in result.meta:
            self.products[path.name] = result.meta["products"]


def _key(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def read_result(path: Path) -> Spectra | pd.DataFrame:
    """Read what a store keeps.

    Raises
    ------
    ValueError
        Where the file is damaged.
    """
    if path.suffix == ".npz":
        return Spectra.load(path)
    first, _, text = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    if first != f"# sha256 {hashlib.sha256(text.encode()).hexdigest()}":
        raise ValueError(f"{path} is damaged (its checksum differs).")
    missing = {"keep_default_na": False, "na_values": [""]}  # a block may be called "NA" or "a#b"
    return pd.read_csv(io.StringIO(text), float_precision="round_trip", **missing)
