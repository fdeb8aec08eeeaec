"""Files that are there whole or not at all, and say so where they were damaged."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np


def save_arrays(path: Path, header: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays and a header, as JSON, to an ``.npz`` with a checksum inside; atomic.

    Nothing is compressed, nor gathered in memory first: vectors do not shrink, and may fill it.
    """
    sealed = header | {"sha256": _digest(header, arrays)}
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(sealed)), **arrays)
    return path


def load_arrays(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Read header and arrays that `save_arrays` wrote; nothing in the file is run (no pickle).

    Raises a ValueError if the file is truncated, altered or not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop("header")))
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("checksum differs")
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and json each have their own for damage
        raise ValueError(
            f"{path} is damaged or no file of this kind ({error}): delete it and compute it again."
        ) from error
    return header, arrays


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically: it is there whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes this one on leaving; an OSError names the file."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, f"{error.strerror or error}, in writing", str(path)) from error


def digest(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(header: dict, arrays: dict) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]))
    return digest.hexdigest()
