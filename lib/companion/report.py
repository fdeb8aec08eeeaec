"""A finished run: its claims in a terminal, its manifests, what of it is committed.

``python -m companion.report --print RESULTS`` prints the claims,
``python -m companion.report --keep RESULTS FOLDER`` copies what is worth committing. The pages of a
run are written by ``docs/pages.py``.
"""

import argparse
import json
import shutil
import textwrap
from pathlib import Path

from companion.claims import claims_table


def claims_text(results: Path) -> str:
    """Lay the claims of a store out for a terminal: statement, verdicts, measured, note."""
    lines = []
    for row in claims_table(results).to_dict("records"):
        head = f"{row['claim']:<4}"
        texts = [f"{row['statement']} ({row['paper']})"]
        counts = ("reproduced", "held", "robust", "rerun")
        texts += ["; ".join(f"{what}: {row[what]}" for what in counts)]
        texts += [f"{part}: {row[part]}" for part in ("measured", "note") if row[part]]
        for text in texts:
            indent = " " * len(head)
            lines += textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=indent)
            head = indent
    return "\n".join(lines)


def keep(results: Path, target: Path) -> list[Path]:
    """Replace a folder by what the last run of each chapter read or wrote, less the PDFs.

    Returns what was copied, relative to both folders.
    """
    names = set()
    for path in (results / "manifests").glob("*.json"):
        run = manifest(results, path.stem)
        names |= {*run["results"], *run["wrote"], f"manifests/{path.name}"}
        names |= {Path(name).with_suffix(".json").name for name in run["results"]}
    kept = sorted(Path(name) for name in names if not name.endswith(".pdf"))
    missing = [name for name in kept if not (results / name).exists()]
    if missing or not kept:
        what = f"{missing[0]} is" if missing else "Results are"
        raise FileNotFoundError(
            f"{what} not in {results}: run make reproduce PRESET={results.name} first."
        )
    shutil.rmtree(target, ignore_errors=True)
    for name in kept:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / name, target / name)
    return kept


def manifest(results: Path, chapter: str) -> dict:
    """Read how a chapter's results were made."""
    path = results / "manifests" / f"{chapter}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{results} has no run of {chapter}: run make reproduce PRESET={results.name}."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def figure_names(results: Path, chapter: str) -> list[str]:
    """Names of the figures that a chapter's run drew, in its order."""
    wrote = manifest(results, chapter)["wrote"]
    return [Path(name).stem for name in wrote if name.endswith(".png")]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--print", nargs=1, type=Path, metavar="RESULTS")
    parser.add_argument("--keep", nargs=2, type=Path, metavar=("RESULTS", "FOLDER"))
    given = parser.parse_args()
    try:
        if given.print:
            print(claims_text(*given.print))
        elif given.keep:
            print(f"{len(keep(*given.keep))} files in {given.keep[1]}")
        else:
            parser.error("name --print RESULTS or --keep RESULTS FOLDER")
    except (FileNotFoundError, ValueError) as error:  # a chapter that was not run, a damaged claim
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
