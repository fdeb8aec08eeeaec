"""The store of results: each is computed once and found again by what its job declares.

A `Job` names a measurement by its declared fields, the digest of its data and an integer,
``VERSION``. Its result lies in two files of one name: the numbers (``.npz`` or ``.csv``), which
come out the same to the byte wherever rounding is the same, and beside them a JSON file that says
what was declared, the sha256 of the numbers, and with what they were computed. Editing code renames
no result; a change of the numbers beyond their tolerance must raise ``VERSION``, which
``tests/companion/test_golden.py`` watches over.

A store is a folder, ``<BLOCKSPECTRA_RESULTS>/<preset>`` or ``build/results/<preset>`` of the
repository. Results committed under ``data/results/<preset>`` are read, never written, unless that
variable asks for a store of one's own. With ``BLOCKSPECTRA_READ_ONLY=1`` nothing is computed.
"""

import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from blockspectra.environment import environment
from blockspectra.files import digest, write_text
from blockspectra.spectra import Spectra

PRESETS = ("smoke", "laptop", "full")
DEVICES = ("device",)  # where a job is computed moves its numbers within their tolerance only

Result = Spectra | pd.DataFrame


class NotStoredError(LookupError):
    """A store that only reads lacks a result."""


@dataclass(frozen=True)
class Job:
    """A measurement, declared by the fields of its class; frozen, and small enough to be pickled.

    Its key needs neither the model nor the data. Fields that came after results had been stored
    stand in ``ADDED`` with the value that those results have, so that they keep their names.
    """

    NAME: ClassVar[str] = ""  #: start of the file's name, fields in braces, the job as {0}
    VERSION: ClassVar[int] = 1  #: raise it where a stored number changes beyond its tolerance
    ADDED: ClassVar[dict[str, Any]] = {}  #: later field → its value in results from before
    #: jobs inside `compute`, and those inside them: their VERSIONs count
    MADE_OF: ClassVar[tuple[type["Job"], ...]] = ()
    FOLDER: ClassVar[str] = ""  #: ``runs`` for a step on the way to a result: not committed

    def settings(self) -> dict[str, Any]:
        """Return the fields, but for later ones that have the value of results from before."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in values.items() if self.ADDED.get(k, MISSING) != v}

    @property
    def name(self) -> str:
        """Start of the file's name, for people."""
        return self.NAME.format(self, **vars(self))

    def data_key(self) -> str:
        """Digest of the files that the data are made of; empty where there are none."""
        return ""

    def compute(self, store: "Store") -> Result:
        """Measure; what other jobs have measured comes from the store."""
        raise NotImplementedError

    def declared(self) -> dict:
        """Return what names the result, as JSON."""
        content = {
            "job": type(self).__name__,
            "version": ".".join(str(one.VERSION) for one in (type(self), *self.MADE_OF)),
            "parameters": {
                name: _declared(value)
                for name, value in self.settings().items()
                if name not in DEVICES
            },
            "data": self.data_key(),
        }
        return json.loads(json.dumps(content))  # tuples become lists, as they are read back

    @property
    def stem(self) -> str:
        """Name of the result's files, without suffix."""
        text = json.dumps(self.declared(), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _declared(value: Any) -> Any:
    """Turn a field into JSON: another job by what it declares, a dataclass with its class."""
    if isinstance(value, Job):
        return value.declared()
    if is_dataclass(value):
        inside = {field.name: _declared(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **inside}
    return value


class Store:
    """Results of one preset."""

    def __init__(self, preset: str):
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")
        own, root = os.environ.get("BLOCKSPECTRA_RESULTS"), repository()
        #: where results are written
        self.path = (Path(own).absolute() if own else build_folder() / "results") / preset
        #: where they are read from too
        self.committed = root / "data" / "results" / preset if root and not own else None
        self.read_only = os.environ.get("BLOCKSPECTRA_READ_ONLY") == "1"
        self.used: dict[str, str] = {}  #: file → sha256 of every result read or written so far

    def get(self, job: Job) -> Result:
        """Return a job's result, from the store if it is there, else computed and kept.

        A damaged result, or one of another job, is named and computed again. Where the store only
        reads, a missing one raises `NotStoredError`.
        """
        found = self.find(job)
        if found is None:
            if self.read_only:
                raise NotStoredError(
                    f"{self.path} has no result {job.stem}: run make reproduce "
                    f"PRESET={self.path.name}, then make results PRESET={self.path.name}."
                )
            started = time.perf_counter()
            result = job.compute(self)
            self._write(job, result, time.perf_counter() - started)
            shutil.rmtree(self.unfinished(job), ignore_errors=True)
            found = self.find(job)  # what a later run will see, to the bit
            if found is None:
                raise OSError(f"{self.path / job.stem} was written, but cannot be read again.")
        result, path, sha256 = found
        if not job.FOLDER:
            self.used[path.name] = sha256
        return result

    def has(self, job: Job) -> bool:
        """Say whether a job's result is there, by its name alone."""
        return any(header.exists() for header in self._headers(job))

    def find(self, job: Job) -> tuple[Result, Path, str] | None:
        """Read a job's result, or return None where there is none that is whole."""
        for header in self._headers(job):
            if header.exists():
                try:
                    return read(header, job.declared())
                except ValueError as error:
                    again = "" if self.read_only else " It is computed again."
                    print(f"{error}{again}", file=sys.stderr)
        return None

    def unfinished(self, job: Job) -> Path:
        """Folder for what a killed `Job.compute` goes on from; deleted once the job is done."""
        return self.path / "unfinished" / job.stem

    def _headers(self, job: Job) -> list[Path]:
        folders = [self.path, self.committed] if self.committed else [self.path]
        return [folder / job.FOLDER / f"{job.stem}.json" for folder in folders]

    def _write(self, job: Job, result: Result, seconds: float) -> None:
        path = self.path / job.FOLDER / job.stem
        if isinstance(result, Spectra):
            path = result.save(path.with_name(f"{path.name}.npz"))
        else:
            path = write_text(path.with_name(f"{path.name}.csv"), result.to_csv(index=False))
        where = environment(getattr(job, "device", "cpu"))
        made = {key: where[key] for key in ("commit", "dirty", "python", "device")}
        made |= {"torch": where["packages"]["torch"], "seconds": round(seconds, 1)}
        made["peak_memory_MiB"] = where["peak_memory_MiB"]
        header = job.declared() | {"file": path.name, "sha256": digest(path), "made": made}
        text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
        write_text(path.with_suffix(".json"), text)  # last: a result without it does not count


def read(header: Path, declared: dict) -> tuple[Result, Path, str]:
    """Read a result, the path of its numbers and their sha256, by its JSON file.

    Raises `ValueError` where either file is damaged or missing, or the result is not that of the
    job that ``declared`` describes.
    """
    try:
        content = json.loads(header.read_text(encoding="utf-8"))
        path = header.parent / content["file"]
        if any(content[key] != declared[key] for key in declared):
            raise ValueError("it is the result of another job")
        if path.stem != header.stem:
            raise ValueError("it names the numbers of another job")
        if digest(path) != content["sha256"]:
            raise ValueError("the checksum of its numbers differs")
        if path.suffix == ".npz":
            return Spectra.load(path), path, content["sha256"]
        text = {"keep_default_na": False, "na_values": [""]}  # a block may be called "NA"
        table = pd.read_csv(path, float_precision="round_trip", **text)
        return table, path, content["sha256"]
    except (KeyError, TypeError, OSError, ValueError) as error:  # json's own is a ValueError
        raise ValueError(f"{header} is damaged ({error}).") from error


def stored(jobs: Sequence[Job] | dict[Any, Job], preset: str) -> list[Result]:
    """Read those of some jobs' results that are committed; whole ones, wherever a run writes."""
    if (root := repository()) is None:
        return []
    folder = root / "data" / "results" / preset
    each = jobs.values() if isinstance(jobs, dict) else jobs
    headers = [(job, folder / job.FOLDER / f"{job.stem}.json") for job in each]
    return [read(path, job.declared())[0] for job, path in headers if path.exists()]


def declare(made: Callable, parameters: dict, **chosen: Any) -> Any:
    """Call a class of jobs, or a function that declares some, with what it names of parameters.

    One that takes ``**settings`` gets all of them; ``chosen`` ones go before.
    """
    named = inspect.signature(made).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in named.values()):
        parameters = {name: parameters[name] for name in named if name in parameters}
    return made(**parameters | chosen)


def repository() -> Path | None:
    """Return the repository that the package runs from, or None where only a wheel is installed."""
    root = Path(__file__).parents[2]
    return root if (root / "notebooks").is_dir() else None


def build_folder() -> Path:
    """Return ``build/`` of the repository, or of the working folder outside one."""
    return (repository() or Path.cwd()) / "build"
