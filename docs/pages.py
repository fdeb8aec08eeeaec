"""Gather what the site is built from in one folder, and write the pages that follow from results.

``python docs/pages.py FOLDER``; the folder has the same layout as the repository, so that links
between notebooks and texts lead to the same places.
"""

import pkgutil
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

import blockspectra
from companion.claims import CLAIMS, Finding, claims_table
from companion.redraw import NotCommittedError, figure_names, manifest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "data" / "results" / "laptop"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = ("CHANGELOG.md", "LICENSE", "data/README.md", "data/reported/README.md")


def gather(folder: Path) -> None:
    """Copy the sources and write the pages that follow from them."""
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "docs", folder, ignore=ignored)
    shutil.copytree(RESULTS / "figures", folder / "figures")
    for name in TEXTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        (folder / "notebooks" / path.name).write_text(chapter(path), encoding="utf-8")
    pages = {
        "verdicts": verdicts(),
        "claims": expected_results(),
        "paper_figures": paper_figures(),
        "chapter_figures": chapter_figures(),
        "runs": runs(),
        "citation": citation(),
        "chapters": "\n".join(f"notebooks/{path.stem}" for path in NOTEBOOKS),
    }
    (folder / "generated").mkdir()
    for name, text in pages.items():
        (folder / "generated" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    write_api(folder / "api")


def chapter(path: Path) -> str:
    """Return a notebook whose tables link to pages instead of notebooks."""
    return re.sub(r'href=(\\?")(\d\d_\w+)\.ipynb', r"href=\1\2.html", path.read_text("utf-8"))


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Write a Markdown table under column names that are parted by bars."""
    names = head.split("|")
    lines = [names, ["---"] * len(names), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def link(name: str) -> str:
    """Link to a chapter from a page at the top."""
    return f"[{name}](notebooks/{name}.ipynb)"


def verdicts() -> str:
    """Say what the paper claims and what came out, one row a claim."""
    rows = claims_table(RESULTS).itertuples()
    return table(
        "|the paper says|where|here|chapter",
        ((r.claim, r.statement, r.paper, f"**{r.verdict}**", link(r.chapter)) for r in rows),
    )


def expected_results() -> str:
    """Say for each claim how to verify it and what to expect, criterion by criterion."""
    parts = []
    for claim, (statement, where, name) in CLAIMS.items():
        finding = Finding.load(RESULTS / "claims" / f"{claim}.json")
        parts += [
            f"### {claim}: {statement}",
            f"In the paper: {where}. Here: {link(name)}. To verify: `make reproduce`, or by itself "
            f"`papermill notebooks/{name}.ipynb out.ipynb`. Expected verdict: "
            f"**{finding.verdict}**.",
            table("criterion|expected|needed|result", finding.table.to_numpy()),
            f"{finding.note}",
        ]
    return "\n\n".join(parts)


def paper_figures() -> str:
    """Lead from the paper's figures and tables to claims, chapters and files."""
    rows = []
    for claim, (_, where, name) in CLAIMS.items():
        files = ", ".join(f"[{f}](figures/{name}/{f}.png)" for f in figure_names(RESULTS, name))
        rows.append((where, claim, link(name), files))
    return table("in the paper|claim|chapter|figures", sorted(rows, key=_by_number))


def chapter_figures() -> str:
    """List every figure with its caption and data, chapter by chapter."""
    parts = []
    for path in NOTEBOOKS:
        if names := figure_names(RESULTS, path.stem):
            folder = f"figures/{path.stem}"
            rows = (
                (
                    f"[{name}]({folder}/{name}.png)",
                    (RESULTS / folder / f"{name}.txt").read_text(encoding="utf-8").strip(),
                    f"[CSV]({folder}/{name}.csv)",
                )
                for name in names
            )
            parts += [f"### {path.stem}", table("figure|caption|data", rows)]
    return "\n\n".join(parts)


def runs() -> str:
    """Say on what the committed results were made, and how long each chapter took."""
    made = [manifest(RESULTS, path.stem) for path in NOTEBOOKS]
    about = {
        "commit": {m["commit"][:10] + (", changed" if m["dirty"] else "") for m in made},
        "system": {m["system"] for m in made},
        "device": {m["device"] for m in made},
        "Python": {m["python"] for m in made},
        "torch": {m["packages"]["torch"] for m in made},
        "numpy": {m["packages"]["numpy"] for m in made},
    }
    rows = ((name, ", ".join(sorted(values))) for name, values in about.items())
    times = [
        (link(m["chapter"]), f"{m['wall_time_s'] / 60:.1f}", m["peak_memory_MiB"]) for m in made
    ]
    total = sum(m["wall_time_s"] for m in made) / 60
    times.append(("all, one after the other", f"{total:.1f}", max(t[2] for t in times)))
    return "\n\n".join(
        [table("|of the committed results", rows), table("chapter|minutes|peak memory, MiB", times)]
    )


def citation() -> str:
    """BibTeX of the software and of the paper, from CITATION.cff."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = cff["references"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    year = str(cff["date-released"])[:4]
    return f"""```bibtex
@software{{blockspectra,
  author  = {{{{{cff["authors"][0]["name"]}}}}},
  title   = {{{cff["title"]}}},
  version = {{{cff["version"]}}},
  year    = {{{year}}},
  license = {{{cff["license"]}}}
}}

@inproceedings{{{paper["authors"][0]["family-names"].lower()}{paper["year"]},
  author    = {{{authors}}},
  title     = {{{paper["title"]}}},
  booktitle = {{{paper["collection-title"]}}},
  year      = {{{paper["year"]}}},
  note      = {{{paper["identifiers"][0]["value"]}}}
}}
```"""


def write_api(folder: Path) -> None:
    """Write a page a module, and one that leads to them."""
    folder.mkdir()
    found = pkgutil.walk_packages(blockspectra.__path__, "blockspectra.")
    packages = {"blockspectra": True} | {module.name: module.ispkg for module in found}
    for name, gathers in packages.items():
        options = "\n   :members:\n   :show-inheritance:"
        options += "\n   :no-index:" * gathers  # its members are indexed where they are defined
        text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}{options}\n```\n"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    toc = "\n".join(packages)
    text = (
        "# API reference\n\nFrom the docstrings. [blockspectra](blockspectra.md) is what most "
        f"programs need.\n\n```{{toctree}}\n:maxdepth: 1\n\n{toc}\n```\n"
    )
    (folder / "index.md").write_text(text, encoding="utf-8")


def _by_number(row: tuple) -> tuple[str, int]:
    """Sort Figure 5a after Figure 2 and before Figure 10."""
    number = re.search(r"\d+", row[0])
    return row[0].split()[0].rstrip("s"), int(number[0]) if number else 0


if __name__ == "__main__":
    try:
        gather(Path(sys.argv[1]))
    except NotCommittedError as error:
        sys.exit(str(error))
