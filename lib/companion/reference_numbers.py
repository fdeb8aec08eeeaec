"""Makes the table of reference models out of what chapter 22 has measured at the full preset.

``python -m companion.reference_numbers data/results/laptop`` reads the numbers behind that
chapter's figure and writes ``references.csv`` into the package; ``make results`` does so.
"""

import sys
from pathlib import Path

import pandas as pd

from blockspectra.diagnosis import references
from blockspectra.diagnosis.references import SETTINGS, TABLE
from blockspectra.files import write_text
from companion.experiments.predictors import SPECTRAL
from companion.parameters import at_preset
from companion.setups import ARCHITECTURES

CHAPTER = "22_predictors"
MEASURES = dict(zip(references.MEASURES, SPECTRAL, strict=True))  #: and chapter 22's names


def collect(results: Path) -> pd.DataFrame:
    """Return the table of `references`."""
    table = pd.read_csv(results / "figures" / CHAPTER / "gap_by_predictor_full.csv")
    names = {theirs: ours for ours, theirs in MEASURES.items()}
    table = table.assign(measure=table["predictor"].map(names)).dropna(subset="measure")
    families = {one.title: one.family for one in ARCHITECTURES.values()}
    settings = {name: at_preset(CHAPTER, "full")[name] for name in SETTINGS}
    table = table.assign(family=table["base"].map(families), **settings)
    about = ["model", "base", "family", "gap", "gap_error", "measure", "value", "value_error"]
    return table[[*about, *SETTINGS]].reset_index(drop=True)


def main() -> None:
    """Write the table into the package."""
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m companion.reference_numbers data/results/laptop")
    write_text(TABLE, collect(Path(sys.argv[1])).to_csv(index=False, float_format="%.10g"))
    print(f"Wrote {TABLE.name}.")


if __name__ == "__main__":
    main()
