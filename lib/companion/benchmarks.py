"""What the benchmarks measured, as their files in ``tests/benchmarks/results`` hold it."""

import json
from pathlib import Path

import pandas as pd

from companion.store import repository

NAMES = ("products", "peers", "accuracy", "scaling", "density", "ranks", "gpt2", "training")


def read(folder: str | Path = "") -> dict[str, dict]:
    """Read the files that `make bench` wrote.

    Parameters
    ----------
    folder : str or Path
        Where they are; empty: those committed with the repository.

    Returns
    -------
    dict
        Name of a benchmark → what its file holds; a benchmark without a file is left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    root = repository()
    if not folder and root is None:
        raise FileNotFoundError(
            "The benchmarks are in the repository, not in the wheel: clone it, or name a folder."
        )
    path = Path(folder) if folder else root / "tests" / "benchmarks" / "results"
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path} with results of benchmarks: run `make bench`."
        )
    files = {name: path / f"{name}.json" for name in NAMES}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.is_file()}


def missing(name: str) -> str:
    """Say that a benchmark has left no file, and what to do."""
    return f"{name}.json is missing: run `make bench`."


def rows(content: dict, table: str) -> pd.DataFrame:
    """Return one table of a file, with a column ``place``: ``1 thread``, ``2 threads``, ``GPU``."""
    return pd.DataFrame([row | {"place": place(row)} for row in content[table]])


def unmeasured(found: dict[str, dict]) -> pd.DataFrame:
    """List what the files hold no numbers of, one row each: file, what, place, reason."""
    tables = {  # file: table, name of a row, a number
        "products": ("products", "method", "ratio"),
        "peers": ("peers", "peer", "times_ours"),
        "scaling": ("growth", "what", "exponent"),
    }
    empty = [
        {"file": file, "what": row[name], "place": place(row), "reason": row["note"]}
        for file, (table, name, number) in tables.items()
        for row in (found[file][table] if file in found else ())
        if row[number] is None
    ]
    return pd.DataFrame(empty, columns=["file", "what", "place", "reason"])


def place(row: dict) -> str:
    """Say where a row was measured."""
    if row["device"] != "cpu":
        return "GPU"
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def environments(found: dict[str, dict]) -> pd.DataFrame:
    """Tell what each file was measured with, one row a file."""
    about = {}
    for name, content in found.items():
        env = content["environment"]
        about[name] = {
            "commit": (env["commit"] or "none")[:10] + (" and changes" if env["dirty"] else ""),
            "processor": env.get("processor", "not recorded"),
            "torch": env["packages"]["torch"],
            "python": env["python"],
            "system": env["system"],
        }
    return pd.DataFrame.from_dict(about, orient="index")
