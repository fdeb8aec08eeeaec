"""Makes the table of reference models out of committed results.

``python -m companion.reference_numbers data/results/laptop`` reads what chapter 22 read of a
run (its manifest names the files) and writes ``references.csv`` into the package; ``make results``
does so at the laptop preset.
"""

import sys
from pathlib import Path

import pandas as pd

from blockspectra.diagnosis.references import GAP, SETTINGS, TABLE
from blockspectra.files import write_text
from blockspectra.spectra import Spectra
from companion.experiments.initial_spectra import SHAPES, by_measure
from companion.rate_search import gap
from companion.report import manifest
from companion.setups import ARCHITECTURES, REDUCED

CHAPTER = "22_predictors"


def collect(results: Path) -> pd.DataFrame:
    """Measure the reference models from the spectra and training runs of a preset's results.

    The table is that of `references`; numbers are means over seeds, as there.
    """
    files = [results / name for name in manifest(results, CHAPTER)["results"]]
    spectra = [Spectra.load(path) for path in files if path.suffix == ".npz"]
    runs = {p.stem.split("-")[1]: p for p in files if p.stem.startswith("contest-")}
    parts = []
    for name in REDUCED:
        measured = [one for one in spectra if one.meta["model"] == name]
        table = by_measure(measured).set_index("measure").drop(SHAPES)
        number, about = gap(pd.read_csv(runs[name])), ARCHITECTURES[name]
        table.loc[GAP] = (about.title, about.family, "of AdamW's progress", *number)
        settings = {key: measured[0].meta[key] for key in ("steps", "probes", "samples")}
        parts.append(table.reset_index().assign(**settings, seeds=len(measured)))
    columns = ["model", "family", "measure", "value", "standard_error", "unit", *SETTINGS]
    return pd.concat(parts, ignore_index=True)[columns]


def main() -> None:
    """Write the table into the package."""
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m companion.reference_numbers data/results/laptop")
    write_text(TABLE, collect(Path(sys.argv[1])).to_csv(index=False, float_format="%.10g"))
    print(f"Wrote {TABLE.name}.")


if __name__ == "__main__":
    main()
