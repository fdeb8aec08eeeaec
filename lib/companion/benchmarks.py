"""What the benchmarks measured, as ``tests/benchmarks/results`` holds it, beside the goals.

The goals were fixed before any cost was measured.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from companion.store import repository

NAMES = ("products", "peers", "accuracy", "scaling", "density", "ranks", "gpt2", "training")
ALL = "index == index"  # every row


@dataclass(frozen=True)
class Goal:
    """A cost to be reached, and where the files have it."""

    text: str  # what the number is, with its unit
    limit: float
    source: tuple[str, str]  # a benchmark, one of `NAMES`, and a table in its file
    value: str  # the number in a row: an expression of `DataFrame.eval`
    where: str = ALL  # which rows count
    case: tuple[str, ...] = ("place",)  # columns that say what a row is
    above: bool = False  # the number must be at or above the limit, not at or below
    provided: str = ALL  # must hold too, or the number was bought with a worse result

    @property
    def needed(self) -> str:
        """The limit as it is written, such as ``≤ 0.55``."""
        return f"{'≥' if self.above else '≤'} {self.limit:g}"


GOALS = (
    Goal(
        "one block product, re-orthogonalisation included (gradients)",
        0.55,
        source=("products", "products"),
        where="blocks == 'all' and method.str.startswith('product within Lanczos')",
        value="ratio",
        case=("method", "place"),
    ),
    Goal(
        "one product with the full Hessian (gradients)",
        2.5,
        source=("products", "products"),
        where="blocks == 'full' and method == 'product, shared graph'",
        value="ratio",
    ),
    Goal(
        "all checks, before and after the products (gradients)",
        60,
        source=("products", "checks"),
        value="ratio",
    ),
    Goal(
        "blockwise spectrum: time of others (times ours)",
        2.5,
        above=True,
        source=("peers", "peers"),
        where="blocks == 'all' and not peer.str.startswith('blockspectra')",
        value="times_ours",
        case=("peer", "place"),
    ),
    Goal(
        "spectrum as accurate as the released script's: time of that (times ours)",
        8,
        above=True,
        source=("accuracy", "accuracy"),
        where="method == 'tolerance'",
        value="times_faster",
        case=("model",),
        provided="error <= error.where(method == 'released').groupby(model).transform('max')",
    ),
    Goal(
        "growth up to eight times as much: exponent",
        1.05,
        source=("scaling", "growth"),
        value="exponent",
        case=("what", "place"),
    ),
    Goal(
        "peak memory of the process (times the budget)",
        1.2,
        source=("scaling", "memory"),
        where="asked_MiB > 0 and digest.notna()",  # without a digest: refused, too small
        value="peak_MiB / asked_MiB",
        case=("asked_MiB",),
        provided="digest == digest.iloc[0]",
    ),
    Goal(
        "two processes: time (times that of one)",
        0.65,
        source=("ranks", "rows"),
        value="ratio",
        case=("split",),
        provided="same_bits",
    ),
    Goal(
        "full spectrum of GPT2 at 124 M: peak memory (GiB)",
        16,
        source=("gpt2", "rows"),
        where="case == 'whole'",
        value="peak_GiB",
        case=("memory",),
    ),
    Goal(
        "25 blocks of GPT2 at 124 M: peak memory (GiB)",
        8,
        source=("gpt2", "rows"),
        where="case == '25 blocks'",
        value="peak_GiB",
        case=("memory",),
    ),
)


def read(folder: str | Path = "") -> dict[str, dict]:
    """Read what `make bench` wrote into a folder; empty: what is committed with the repository.

    Returns name of a benchmark → what its file holds; a benchmark without a file is left out.
    """
    path = Path(folder or (repository() or Path()) / "tests" / "benchmarks" / "results")
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path} with results: run `make bench`.")
    files = {name: path / f"{name}.json" for name in NAMES}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.is_file()}


def missing(name: str) -> str:
    """Say that a benchmark has left no numbers, and what to do."""
    return f"{name}.json is missing or older than its goals: run `make bench`."


def rows(content: dict, table: str) -> pd.DataFrame:
    """Return one table of a file, with a column ``place``: ``1 thread``, ``2 threads``, ``GPU``."""
    return pd.DataFrame([row | {"place": _place(row)} for row in content[table]])


def goals_table() -> pd.DataFrame:
    """List the goals alone, one row each: goal, needed, measured by."""
    columns = ["goal", "needed", "measured by"]
    return pd.DataFrame([(g.text, g.needed, f"{g.source[0]}.py") for g in GOALS], columns=columns)


def verdicts(found: dict[str, dict]) -> pd.DataFrame:
    """Set every number of what `read` returns beside its goal, in the order of `GOALS`.

    Columns: goal, case, needed, measured (text; empty if not), result (met, not met, not measured),
    note. A goal whose file is missing has one row that says so.
    """
    parts = []
    for goal in GOALS:
        about = {"goal": goal.text, "needed": goal.needed}
        file, table = goal.source
        table = rows(found[file], table) if file in found else pd.DataFrame()
        part = table.query(goal.where) if len(table) else table
        if part.empty:
            empty = {"case": "", "measured": "", "result": "not measured"}
            parts.append(pd.DataFrame([about | empty | {"note": missing(file)}]))
            continue
        valid = table.eval(goal.provided)[part.index]
        values = part.eval(goal.value).astype(float)
        met = (values >= goal.limit if goal.above else values <= goal.limit) & valid
        result = met.map({True: "met", False: "not met"}).where(values.notna(), "not measured")
        case = part[list(goal.case)].convert_dtypes().astype(str).agg(", ".join, axis=1)
        numbers = {"case": case, "measured": values.map(_text), "result": result}
        notes = part["note"] if "note" in part else ""
        parts.append(pd.DataFrame(numbers).assign(note=notes, **about))
    columns = ["goal", "case", "needed", "measured", "result", "note"]
    return pd.concat(parts, ignore_index=True)[columns]


def unmeasured(found: dict[str, dict]) -> pd.DataFrame:
    """List what the files hold no numbers of, one row each: file, what, place, reason."""
    tables = {  # file: table, name of a row, a number
        "products": ("products", "method", "ratio"),
        "peers": ("peers", "peer", "times_ours"),
        "scaling": ("growth", "what", "exponent"),
    }
    empty = [
        {"file": file, "what": row[name], "place": _place(row), "reason": row["note"]}
        for file, (table, name, number) in tables.items()
        for row in (found[file][table] if file in found else ())
        if row[number] is None
    ]
    return pd.DataFrame(empty, columns=["file", "what", "place", "reason"])


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


def _place(row: dict) -> str:
    """Say where a row was measured; empty where the file does not tell."""
    if row.get("device") != "cpu":
        return "GPU" if "device" in row else ""
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def _text(value: float) -> str:
    """Write three digits, and large numbers whole."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
