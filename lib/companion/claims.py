"""The paper's claims, what was measured of each, and the verdicts that follow.

A claim has criteria: each a number with an uncertainty, and a threshold that the chapter argues
*before* the number. A criterion holds where the number is beyond the threshold by two standard
errors, fails where it is short of it by two, and is undecided between. Verdicts are counted from
the criteria, never set. They answer three questions: is the claim *reproduced* at the largest size
that was run, is it *robust* to how it is measured, and does the *rerun* that anybody can make on a
laptop, with fewer seeds and smaller models, agree?
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from blockspectra.files import digest, write_text
from blockspectra.statistics import WORDS, Criterion, with_error
from companion.store import repository


class Claim(NamedTuple):
    """What the paper claims, where it does so, and the chapter that measures it."""

    statement: str
    paper: str
    chapter: str


_TEXTS = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
CLAIMS = {name: Claim(**claim) for name, claim in yaml.safe_load(_TEXTS).items()}


def verdict(criteria: Sequence[Criterion]) -> str:
    """Count the criteria.

    ``supported`` if all hold, ``partly`` if some do, ``not supported`` if none does and one fails,
    ``undecided`` if all are within two standard errors of their thresholds.
    """
    found = [criterion.holds for criterion in criteria]
    if all(found):
        return "supported"
    if any(found):
        return "partly"
    return "not supported" if False in found else "undecided"


@dataclass(frozen=True)
class Finding:
    """A claim, by its id in `CLAIMS`, as measured here."""

    claim: str
    criteria: list[Criterion]  #: of the run at hand; empty where it computes nothing of its own
    note: str  #: tells of stand-in data, reduced sizes, the likely reason of a failure
    #: the same of the stored results at the ``full`` preset; empty if there are none
    full: list[Criterion] = field(default_factory=list)
    #: other ways to measure it, and whether the claim holds under each
    variations: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self):
        if self.claim not in CLAIMS:
            raise ValueError(f"Unknown claim {self.claim!r}: choose one of {', '.join(CLAIMS)}.")
        if not self.criteria + self.full:
            raise ValueError(f"Claim {self.claim} needs at least one criterion.")

    @property
    def reproduced(self) -> str:
        """Verdict of the results stored at the full preset."""
        return verdict(self.full) if self.full else "not run"

    @property
    def held(self) -> str:
        """How many of the criteria hold at the full preset, in words."""
        return f"{sum(c.holds is True for c in self.full)} of {len(self.full)}"

    @property
    def rerun(self) -> str:
        """In how many of the full preset's criteria the run at hand agrees, contradicts, or cannot.

        As in ``1 / 2 / 1``; the last are those that one of the two leaves undecided. No verdict,
        since the run has few seeds. A dash where it measures none of them.
        """
        stored = {c.text: c.holds for c in self.full}
        both = [{c.holds, stored[c.text]} for c in self.criteria if c.text in stored]
        still_open = sum(None in pair for pair in both)
        contradicted = both.count({True, False})
        agreed = len(both) - contradicted - still_open
        return f"{agreed} / {contradicted} / {still_open}" if both else "–"

    @property
    def robust(self) -> str:
        """Under how many of the variations the claim holds, in words."""
        holding = sum(self.variations.values())
        return f"{holding} of {len(self.variations)}" if self.variations else "–"

    @property
    def table(self) -> pd.DataFrame:
        """The criteria with their numbers, one row each, those of the full preset first."""
        rows = [
            (
                preset,
                c.text,
                with_error(c.value, c.error),
                f"{'≥' if c.above else '≤'} {c.threshold:.3g}",
                WORDS[c.holds],
            )
            for preset, criteria in (("full", self.full), ("this run", self.criteria))
            for c in criteria
        ]
        return pd.DataFrame(rows, columns=["preset", "criterion", "measured", "needed", "result"])

    def save(self, folder: Path) -> Path:
        """Write ``<folder>/claims/<id>.json``."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        return write_text(folder / "claims" / f"{self.claim}.json", text)

    @classmethod
    def load(cls, path: Path) -> "Finding":
        """Read what `save` wrote; the verdict is counted anew from the criteria.

        Raises `ValueError` where the file is damaged, or differs from what its chapter wrote.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name in ("criteria", "full"):
                content[name] = [Criterion(**c) for c in content.get(name, [])]
            found = cls(**content)
            chapter = CLAIMS[found.claim].chapter
            manifest = path.parents[1] / "manifests" / f"{chapter}.json"
            if manifest.exists():
                wrote = json.loads(manifest.read_text(encoding="utf-8"))["wrote"]
                if wrote.get(f"claims/{path.name}") != digest(path):
                    raise ValueError(f"it is not what {chapter} wrote")
        except (KeyError, TypeError, ValueError) as error:  # json's own is a ValueError
            raise ValueError(f"{path} is damaged ({error}): run its chapter again.") from error
        return found


def claims_table(*folders: Path | None) -> pd.DataFrame:
    """All claims with what the stores hold of them, one row a claim; the first folder wins.

    Columns: claim, statement, paper, reproduced, held, robust, rerun, measured, note, chapter; a
    claim that no chapter has measured says ``not measured``.
    """
    rows = []
    for name, claim in CLAIMS.items():
        paths = [f / "claims" / f"{name}.json" for f in folders if f is not None]
        found = next((Finding.load(path) for path in paths if path.exists()), None)
        measured = ("not measured", "–", "–", "–", "", "")
        if found:
            criteria = "; ".join(map(str, found.full or found.criteria))
            measured = (found.reproduced, found.held, found.robust, found.rerun)
            measured += (criteria, found.note)
        rows.append((name, claim.statement, claim.paper, *measured, claim.chapter))
    columns = "claim statement paper reproduced held robust rerun measured note chapter"
    return pd.DataFrame(rows, columns=columns.split())


def reported(table: str) -> pd.DataFrame:
    """Read one of the paper's tables from ``data/reported``, e.g. ``table1``."""
    root = repository()
    if root is None:
        raise FileNotFoundError("The paper's tables are in the repository alone: clone it.")
    return pd.read_csv(root / "data" / "reported" / f"{table}.csv")
