"""Costs that the library was to reach, fixed before any was measured, and what became of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from companion.benchmarks import missing, place, rows

BY_TWO = "blockspectra, two processes"  # of one thread each, which share the blocks


@dataclass(frozen=True)
class Goal:
    """A number to be reached.

    Attributes
    ----------
    file : str
        Benchmark that measures it, one of `NAMES`.
    text : str
        What the number is, with its unit.
    limit : float
    above : bool
        Whether the goal is to be at least at the limit, or at most.
    """

    file: str
    text: str
    limit: float
    above: bool = False

    @property
    def needed(self) -> str:
        """The limit as it is written, such as ``≤ 0.55``."""
        return f"{'≥' if self.above else '≤'} {self.limit:g}"


GOALS = {
    "block": Goal("products", "one block product, re-orthogonalisation included (gradients)", 0.55),
    "full": Goal("products", "one product with the full Hessian (gradients)", 2.5),
    "peers": Goal("peers", "blockwise spectrum: time of others (times ours)", 2.5, above=True),
    "accuracy": Goal(
        "accuracy",
        "spectrum as accurate as the released script's: time of that (times ours)",
        8,
        above=True,
    ),
    "density": Goal(
        "density", "smoothed density: time of the released loop (times ours)", 500, above=True
    ),
    "exact": Goal("density", "smoothed density: largest relative difference from a loop", 1e-12),
    "growth": Goal("scaling", "growth up to eight times as much: largest exponent", 1.05),
    "line": Goal(
        "scaling", "growth up to eight times as much: least R² of a line", 0.99, above=True
    ),
    "memory": Goal("scaling", "peak memory of the process (times the budget)", 1.2),
    "ranks": Goal("ranks", "two processes: time (times that of one)", 0.65),
    "same": Goal("ranks", "two processes: largest relative difference of a coefficient", 1e-9),
    "gpt2 full": Goal("gpt2", "full spectrum of GPT2 at 124 M: peak memory (GiB)", 16),
    "gpt2 blocks": Goal("gpt2", "25 blocks of GPT2 at 124 M: peak memory (GiB)", 8),
}


@dataclass(frozen=True)
class Measured:
    """One number for a goal.

    Attributes
    ----------
    goal : str
        Key in `GOALS`.
    case : str
        Of what, or where.
    value : float or None
        None where nothing was measured.
    note : str
        The reason of that, or what the reader must know.
    valid : bool
        False where the number does not count, as the note says.
    """

    goal: str
    case: str
    value: float | None
    note: str = ""
    valid: bool = True

    @property
    def result(self) -> str:
        """``met``, ``not met`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        goal = GOALS[self.goal]
        reached = self.value >= goal.limit if goal.above else self.value <= goal.limit
        return "met" if reached and self.valid else "not met"


def goals_table() -> pd.DataFrame:
    """List the goals alone, one row each: goal, needed, measured by."""
    return pd.DataFrame(
        [
            {"goal": g.text, "needed": g.needed, "measured by": f"{g.file}.py"}
            for g in GOALS.values()
        ]
    )


def verdicts(found: dict[str, dict]) -> pd.DataFrame:
    """Set every number beside its goal, in the order of `GOALS`.

    Parameters
    ----------
    found : dict
        From `read`.

    Returns
    -------
    DataFrame
        goal, case, needed, measured (text; empty if not), result (met, not met, not measured),
        note. A goal whose file is missing has one row that says so.
    """
    every = [
        one for name, content in found.items() if name in _READ for one in _READ[name](content)
    ]
    table = []
    for key, goal in GOALS.items():
        of_goal = [one for one in every if one.goal == key]
        for one in of_goal or [Measured(key, "", None, missing(goal.file))]:
            table.append(
                {
                    "goal": goal.text,
                    "case": one.case,
                    "needed": goal.needed,
                    "measured": _text(one.value),
                    "result": one.result,
                    "note": one.note,
                }
            )
    return pd.DataFrame(table)


def _text(value: float | None) -> str:
    """Write three digits, and large numbers whole."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _products(content: dict) -> Iterator[Measured]:
    kinds = {
        ("product within Lanczos, re-orthogonalised", "all"): "block",
        ("product within Lanczos, by two processes", "all"): "block",
        ("product, shared graph", "full"): "full",
    }
    for row in content["products"]:
        goal = kinds.get((row["method"], row["blocks"]))
        if goal is None and place(row) == "GPU" and row["method"] == "product, shared graph":
            goal = "block" if row["ratio"] is None else None  # an empty row says why
        if goal:
            where = "2 processes" if "two processes" in row["method"] else place(row)
            yield Measured(goal, where, row["ratio"], row["note"])


def _peers(content: dict) -> Iterator[Measured]:
    table = content["peers"]
    by_two = {place(r): r["times_ours"] for r in table if r["peer"] == BY_TWO}
    for row in table:
        value, where = row["times_ours"], place(row)
        if row["peer"] == "blockspectra":
            if value is None:
                yield Measured("peers", where, None, row["note"])
        elif row["blocks"] == "all" and row["peer"] != BY_TWO:
            note = "" if value is not None else row["note"]
            yield Measured("peers", f"{row['peer']}, {where}", value, note)
            if value is not None and by_two.get(where):
                beside = f"{row['peer']}, {where}, beside our two processes"
                yield Measured("peers", beside, value / by_two[where])


def _accuracy(content: dict) -> Iterator[Measured]:
    wanted = {r["model"]: r["error"] for r in content["accuracy"] if r["method"] == "released"}
    for row in content["accuracy"]:
        if row["method"] != "released":
            target = wanted[row["model"]]
            note = f"error {row['error']:.3g} against {target:.3g}"
            case, reached = f"{row['model']}, {row['method']}", row["error"] <= target
            yield Measured("accuracy", case, row["times_faster"], note, reached)


def _density(content: dict) -> Iterator[Measured]:
    for row in content["ranges"]:
        case = "grid from {} to {}".format(*row["range"])
        both = f"{row['ratio_to_released_with_quadrature']:g} with the quadrature"
        yield Measured("density", case, row["ratio_to_released"], both)
        yield Measured("exact", case, row["difference_from_cells"])


def _scaling(content: dict) -> Iterator[Measured]:
    table = rows(content, "growth")
    for where, part in table.groupby("place", sort=False):
        if part["exponent"].isna().any():
            yield Measured("growth", where, None, part["note"].iloc[0])
            continue
        most, least = part["exponent"].idxmax(), part["r_squared"].idxmin()
        for goal, column, i in (("growth", "exponent", most), ("line", "r_squared", least)):
            yield Measured(goal, where, table.loc[i, column], f"number of {table.loc[i, 'what']}")
    runs = [r for r in content["memory"] if r["digest"] is not None]
    peaks = [r["peak_MiB"] / r["asked_MiB"] for r in runs if r["asked_MiB"]]
    same = len({r["digest"] for r in runs}) == 1
    refused = len(content["memory"]) - len(runs)
    note = f"{len(peaks)} budgets, {refused} refused; results {'the same' if same else 'differ'}"
    yield Measured("memory", "", max(peaks, default=None), note, same)


def _ranks(content: dict) -> Iterator[Measured]:
    note = f"{content['cores']} cores, load {content['load_at_the_start']:g} at the start"
    for row in content["rows"]:
        bits = "the same bits" if row["same_bits"] else "not the same bits"
        if row["split"] == "by blocks":  # to the bit; by batches sums may be rounded differently
            yield Measured("ranks", row["split"], row["ratio"], f"{bits}; {note}", row["same_bits"])
        yield Measured("same", row["split"], row["largest_difference"], bits)


def _gpt2(content: dict) -> Iterator[Measured]:
    for row in content["rows"]:
        goal = "gpt2 full" if row["case"] == "whole" else "gpt2 blocks"
        note = f"{row['steps']} steps, 1 probe; asked to stay within {row['memory']}"
        yield Measured(goal, "", row["peak_GiB"], note)


_READ = {
    "products": _products,
    "peers": _peers,
    "accuracy": _accuracy,
    "density": _density,
    "scaling": _scaling,
    "ranks": _ranks,
    "gpt2": _gpt2,
}
