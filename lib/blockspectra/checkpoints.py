"""Finished Lanczos runs on disk, so that a killed call goes on where it was when made again."""

import hashlib
import json
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch

from blockspectra.files import load_arrays, save_arrays
from blockspectra.lanczos import Tridiagonal

# tensors that are no array hold the numbers in several: sparse ones, and nested ones
PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.jagged: ("offsets", "values"),
}


class Checkpoints:
    """A folder with one file for each finished run, written atomically with a checksum.

    ``about`` is all that a run depends on, as JSON: a folder that holds runs of anything else is
    refused by a ValueError.

    Attributes
    ----------
    found : dict, (block, probe) → Tridiagonal
        The runs of one probe each that were in the folder. A damaged file is named, and left out.
    """

    def __init__(self, folder: str | Path, about: dict):
        self.folder = Path(folder)
        about = json.loads(json.dumps(about | {"arrays": Tridiagonal._fields}))
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        stored = _read(self.folder / "about.npz")
        if stored and stored[0] != about:
            differ = [key for key in about if stored[0].get(key) != about[key]]
            raise ValueError(
                f"{self.folder} holds runs of another problem or with other settings "
                f"({', '.join(differ)} differ): name another folder, or delete this one."
            )
        if not stored:
            save_arrays(self.folder / "about.npz", about, {})
        self.found = {}
        for path in self.folder.glob("block*-probe*.npz"):
            if (run := _read(path, self.key)) is not None:
                arrays = {name: torch.from_numpy(array) for name, array in run[1].items()}
                self.found[tuple(run[0]["run"])] = Tridiagonal(**arrays)

    def discard(self) -> None:
        """Delete all runs: they cannot be trusted."""
        for path in self.folder.glob("block*-probe*.npz"):
            path.unlink()

    def save(self, block: int, probe: int, result: Tridiagonal) -> None:
        """Write a run that is finished."""
        path = self.folder / f"block{block:05d}-probe{probe}.npz"
        arrays = {name: tensor.numpy() for name, tensor in result._asdict().items()}
        save_arrays(path, {"of": self.key, "run": [block, probe]}, arrays)


def checksum(things: Iterable) -> int:
    """Checksum of the numbers in all tensors among some things."""
    total = 0
    for tensor in things:
        if isinstance(tensor, torch.Tensor):
            parts = [getattr(tensor, part)() for part in PARTS.get(tensor.layout, ())] or [tensor]
            for part in parts:
                data = part.detach().resolve_conj().resolve_neg().contiguous().flatten()
                total = zlib.crc32(data.view(torch.uint8).cpu().numpy(), total)
    return total


def _read(path: Path, key: str | None = None) -> tuple[dict, dict] | None:
    """Header and arrays, or None where there is no such file, damaged or not of this key."""
    try:
        header, arrays = load_arrays(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        reason = f"is damaged ({error.__cause__})"
    else:
        if key is None or header.get("of") == key:
            return header, arrays
        reason = "is of another problem or other settings"
    print(f"{path} {reason}: computing it again.", file=sys.stderr)
    return None
