"""Lanczos runs on disk: finished ones, and long ones half-way, so that a killed run goes on."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from blockspectra.files import load_arrays, save_arrays
from blockspectra.known import Known
from blockspectra.lanczos import Lanczos, Tridiagonal

INTERVAL = 60.0  # seconds between two savings of the runs that are under way
SHARE = 0.1  # most of the time that these may take, where they are large
STATES = 2  # of a run under way that are there at a time, should the last one be damaged


class Journal:
    """A folder in which Lanczos runs are kept, one file when a run ends and some on the way.

    Each file is written atomically with a checksum. A run under way has a part of its basis in a
    file for each time it was saved, so that every vector is written once, and its state after the
    last of them. A damaged file is named, and what it held is computed again.

    Parameters
    ----------
    folder : path
    about : dict
        All that a run depends on, as JSON: a folder that holds runs of anything else is refused.
    writes : bool
        False where another process keeps the same runs.

    Raises
    ------
    ValueError
        If the folder holds runs of another problem or other settings.
    """

    def __init__(self, folder, about: dict, *, writes: bool = True):
        self.folder, self.writes = Path(folder), writes
        about = json.loads(json.dumps(about))
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.kept: dict[str, int] = {}  # run → step up to which its basis is on disk
        self.files: dict[str, list[Path]] = {}  # run → its files until it ends
        found = self._read(self.folder / "about.npz")
        if found and found[0] != about:
            differ = [k for k in about if found[0].get(k) != about[k]]
            raise ValueError(
                f"{self.folder} holds runs of another problem or with other settings "
                f"({', '.join(differ)} differ): name another folder, or delete this one."
            )
        if writes and not found:
            save_arrays(self.folder / "about.npz", about, {})
        for path in self.folder.glob("*.*.*"):  # more than ``run.npz``: on the way, or cut short
            self.files.setdefault(path.name.strip(".").partition(".")[0], []).append(path)

    def finished(self, name: str) -> tuple[Tridiagonal, Known | None] | None:
        """Return a run that has ended, with the eigenpairs kept of it, or None."""
        found = self._read(self.folder / f"{name}.npz", self.key)
        if found is None:
            return None
        known = {key: found[1].pop(key) for key in Known._fields if key in found[1]}
        return Tridiagonal(**found[1]), Known(**known) if known else None

    def finish(self, name: str, result: Tridiagonal, known: Known | None = None) -> None:
        """Keep a run that has ended, and forget what was kept of it on the way."""
        if self.writes:
            self._write(name, result._asdict() | (known._asdict() if known else {}))
            self._forget(name, self.files.get(name, []))

    def keep(self, runs: Mapping[str, Lanczos], due: float | None = None) -> float:
        """Keep runs under way, for each of which `resume` was called, if it is time to.

        Parameters
        ----------
        runs : dict
            By the name of their file.
        due : float, optional
            What the last call for such runs returned; None where this is the first.

        Returns
        -------
        float
            When it is time, in seconds of `time.monotonic`.
        """
        began = time.monotonic()
        due = began + INTERVAL if due is None else due
        if not self.writes or began < due:
            return due
        for name, run in runs.items():
            state, files = run.state(self.kept[name]), self.files.setdefault(name, [])
            if "basis" in state:  # before the state that needs it
                basis = {"basis": state.pop("basis")}
                files.append(self._write(f"{name}.{run.step:06d}.basis", basis, self.kept[name]))
            files.append(self._write(f"{name}.{run.step:06d}.state", state))
            self.kept[name] = run.step
            self._forget(name, _of_kind("state", files)[:-STATES])
        now = time.monotonic()
        return now + max(INTERVAL, (now - began) / SHARE)

    def resume(self, name: str, run: Lanczos) -> None:
        """Bring a new run to where it was kept last, as far as the files are whole."""
        files = self.files.get(name, [])
        self.kept[name] = 0
        for path in reversed(_of_kind("state", files)):
            found = self._read(path, self.key)
            parts = self._parts(files, _step(path)) if found and run.basis is not None else []
            if found and (parts or run.basis is None):
                bases = [self._read(part, self.key)[1] for part in parts] or [{}]
                run.restore([basis | found[1] for basis in bases])
                self.kept[name] = run.step
                break
        # what was kept later, and could not be used, would not follow what comes now
        later = [path for path in _of_kind("*", files) if _step(path) > self.kept[name]]
        if self.writes:
            self._forget(name, later)

    def _parts(self, files: list[Path], end: int) -> list[Path]:
        """Files with a whole basis up to a step; none where one of them is missing or damaged."""
        parts, step = [], 0
        for path in _of_kind("basis", files):
            if _step(path) <= end:
                found = self._read(path, self.key)
                if found is None or found[0]["since"] != step:
                    return []
                parts.append(path)
                step = _step(path)
        return parts if step == end else []

    def _write(self, name: str, tensors: dict[str, Tensor], since: int = 0) -> Path:
        arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
        header = {"of": self.key, "since": since}
        return save_arrays(self.folder / f"{name}.npz", header, arrays)

    def _read(self, path: Path, key: str | None = None) -> tuple[dict, dict[str, Tensor]] | None:
        """Header and tensors, or None where there is no such file, damaged or not of this key."""
        try:
            header, arrays = load_arrays(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            reason = f"is damaged ({error.__cause__})"
        else:
            if key is None or header.get("of") == key:
                return header, {name: torch.from_numpy(array) for name, array in arrays.items()}
            reason = "is of another problem or other settings"
        print(f"{path} {reason}: computing it again.", file=sys.stderr)
        return None

    def _forget(self, name: str, paths: list[Path]) -> None:
        self.files[name] = [path for path in self.files.get(name, []) if path not in paths]
        for path in paths:
            path.unlink(missing_ok=True)


def _of_kind(kind: str, files: list[Path]) -> list[Path]:
    return sorted(path for path in files if path.match(f"*.{kind}.npz"))


def _step(path: Path) -> int:
    return int(path.name.split(".")[1])
