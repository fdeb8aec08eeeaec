"""Gather what the site is built from in one folder, and write what follows from results.

``python docs/pages.py FOLDER [RESULTS NOTEBOOKS]``; by default from what is committed, in `make
reproduce` from a run. The folder has the layout of the repository, but for the texts of ``docs``,
which lie at its top. ``python docs/pages.py`` alone writes anew, in the texts of ``docs``, what
stands between ``<!-- name: … -->`` and ``<!-- end -->``, so that they can be read as they are.
"""

import html
import json
import pkgutil
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

import blockspectra
import companion
from companion.claims import CLAIMS, Finding, claims_table
from companion.report import figure_names, manifest

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "data" / "results" / "laptop"
TEXTS = ("CHANGELOG.md", "LICENSE", "data/README.md", "data/reported/README.md")
PART = re.compile(r"(<!-- (\w+): [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
BRIEF = 4  # lines of code beside an output that are not folded
HOSTED = "https://mybinder.org/v2/gh/OWNER/blockspectra/main?urlpath=lab/tree/notebooks"


def gather(folder: Path, results: Path = COMMITTED, notebooks: Path = ROOT / "notebooks") -> None:
    """Copy the sources and write the parts that follow from results.

    Parameters
    ----------
    folder : Path
        Emptied first.
    results, notebooks : Path
        A preset's results, and the notebooks as they were run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(results / "figures", folder / figures(results))
    for name in TEXTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    paths = sorted(notebooks.glob("*.ipynb"))
    for path in paths:
        text = json.dumps(for_reading(json.loads(path.read_text("utf-8")), path.name))
        (folder / "notebooks" / path.name).write_text(text, encoding="utf-8")
    parts = written(results, [path.stem for path in paths])
    for path in folder.glob("*.md"):
        text = fill(path.read_text("utf-8"), parts).replace("](../", "](")
        path.write_text(text, encoding="utf-8")
    write_api(folder / "api")


def for_reading(notebook: dict, name: str) -> dict:
    """Fold code that is long or shows nothing, link to pages, offer the notebook itself."""
    cells = notebook.get("cells", [])
    for cell in cells:
        tags = cell["metadata"].setdefault("tags", [])
        brief = cell.get("outputs") and "".join(cell["source"]).count("\n") < BRIEF
        if cell["cell_type"] == "code" and not brief and not {"parameters", "show-input"} & {*tags}:
            tags.append("hide-input")
        for output in cell.get("outputs", []):
            if shown := output.get("data", {}).get("text/html"):
                linked = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', "".join(shown))
                output["data"]["text/html"] = linked.replace(" ± ", "\u00a0±\u00a0")
    if cells:
        title, _, rest = "".join(cells[0]["source"]).partition("\n")
        offer = f"{{download}}`Download this notebook <{name}>` · [Binder]({HOSTED}/{name})"
        cells[0]["source"] = f"{title}\n\n{offer}\n{rest}"
    return notebook


def written(results: Path, chapters: list[str]) -> dict[str, str]:
    """Write all parts of texts that follow from results, by their names."""
    return {
        "hero": readme("**In short:**", "## What came out") if results == COMMITTED else "",
        "own": readme("## Your own model", "## Reproduce").replace("](docs/", "]("),
        "verdicts": verdicts(results),
        "claims": expected_results(results),
        "paper_figures": paper_figures(results),
        "chapter_figures": chapter_figures(results, chapters),
        "runs": runs(results, chapters),
        "citation": citation(),
    }


def fill(text: str, parts: dict[str, str]) -> str:
    """Put each part between the marks that name it."""
    return PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n\n{found[3]}", text)


def commit() -> None:
    """Write the parts of the texts anew that are read in the repository: all but the home page."""
    parts = written(COMMITTED, sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
    for path in (ROOT / "docs").glob("*.md"):
        if path.stem != "index":
            path.write_text(fill(path.read_text("utf-8"), parts), encoding="utf-8")


def figures(results: Path) -> str:
    """Say where the figures of a preset lie, in the repository and in the folder of the site."""
    return f"data/results/{results.name}/figures"


def readme(first: str, last: str) -> str:
    """Return what the README says from some words up to others."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text[text.index(first) : text.index(last)].strip()


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Write a Markdown table under column names that are parted by bars."""
    names = head.split("|")
    lines = [names, ["---"] * len(names), *rows]
    cells = ([_escaped(str(cell)) for cell in row] for row in lines)
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def link(name: str) -> str:
    """Link to a chapter from a text in ``docs``."""
    return f"[{name}](../notebooks/{name}.ipynb)"


def verdicts(results: Path) -> str:
    """Say what the paper claims and what came out: a tally, then one row a claim."""
    found = claims_table(results)
    about = (
        "*Reproduced* judges by the largest size that was run, and says how many criteria hold; "
        "*robust* counts the ways to measure it under which the claim holds (C3, C4: under which "
        "every Transformer is above every CNN), *rerun* in how many of these criteria the "
        f"{results.name} preset, with smaller models and few seeds, agrees / contradicts / leaves "
        "it open. Data stand in where data/README says so. Verdicts are counted from criteria that "
        "the chapter argues before it shows a number."
    )
    counts = Counter(found["reproduced"]).most_common()
    tally = "**Reproduced:** " + ", ".join(f"{n} {coloured(word)}" for word, n in counts)
    rows = [
        (
            *(f"[{r.claim}](../notebooks/{r.chapter}.ipynb)", f"{r.statement} ({r.paper})"),
            f"{coloured(r.reproduced)} " + r.held.replace(" ", "\u00a0"),
            *(count.replace(" ", "\u00a0") for count in (r.robust, r.rerun)),  # in one line
        )
        for r in found.itertuples()
    ]
    head = "|claim|reproduced|robust|rerun"
    return "\n\n".join([tally, table(head, rows), about])


def coloured(word: str) -> str:
    """Mark a verdict by a class that the style sheet of the site colours."""
    return f'<span class="verdict {word.replace(" ", "-")}">{word}</span>'


def expected_results(results: Path) -> str:
    """Say for each claim how to verify it and what to expect, criterion by criterion."""
    parts = []
    for name, claim in CLAIMS.items():
        parts += [
            f"### {name}: {claim.statement}",
            f"In the paper: {claim.paper}. Here: {link(claim.chapter)}. To verify: `make "
            f"reproduce`, or by itself `papermill notebooks/{claim.chapter}.ipynb out.ipynb`.",
        ]
        path = results / "claims" / f"{name}.json"
        if not path.exists():
            parts.append("Not measured.")
            continue
        finding = Finding.load(path)
        parts += [
            f"Expected: reproduced: **{finding.reproduced}** ({finding.held} criteria hold); "
            f"robust: {finding.robust}; rerun agrees / contradicts / open: {finding.rerun}.",
            table("preset|criterion|expected|needed|result", finding.table.to_numpy()),
            finding.note,
        ]
    return "\n\n".join(parts)


def paper_figures(results: Path) -> str:
    """Lead from the paper's figures and tables to claims, chapters and files."""
    rows = []
    for name, (_, paper, chapter) in CLAIMS.items():
        folder = f"../{figures(results)}/{chapter}"
        files = (f"[{f}]({folder}/{f}.png)" for f in figure_names(results, chapter))
        rows.append((paper, name, link(chapter), ", ".join(files)))
    return table("in the paper|claim|chapter|figures", sorted(rows, key=_by_number))


def chapter_figures(results: Path, chapters: list[str]) -> str:
    """List every figure with its caption and data, chapter by chapter."""
    parts = []
    for chapter in chapters:
        rows = []
        for name in figure_names(results, chapter):
            file = f"../{figures(results)}/{chapter}/{name}"
            caption = (results / "figures" / chapter / f"{name}.txt").read_text("utf-8").strip()
            rows.append((f"[{name}]({file}.png)", caption, f"[CSV]({file}.csv)"))
        if rows:
            parts += [f"### {chapter}", table("figure|caption|data", rows)]
    return "\n\n".join(parts)


def runs(results: Path, chapters: list[str]) -> str:
    """Say on what the results were made, and how long each chapter took."""
    made = [manifest(results, chapter) for chapter in chapters]
    about = {
        "commit": {str(m["commit"])[:10] + (", changed" if m["dirty"] else "") for m in made},
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
        [table("|of these results", rows), table("chapter|minutes|peak memory, MiB", times)]
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
    """Write a page a module or subpackage, the library's first, and one that leads there."""
    folder.mkdir()
    toc = []
    for package in (blockspectra, companion):
        modules = {package.__name__: True}  # whether it is a package
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        modules |= {module.name: module.ispkg for module in found}
        pages = {}
        for name, is_package in modules.items():
            options = "\n   :members:\n   :show-inheritance:"
            options += "\n   :no-index:" * is_package  # members are indexed where they are defined
            page = ".".join(name.split(".")[:2])
            heading = f"{'#' if name == page else '##'} {name}"
            text = f"{heading}\n\n```{{eval-rst}}\n.. automodule:: {name}{options}\n```\n\n"
            pages[page] = pages.get(page, "") + text
        for page, text in pages.items():
            (folder / f"{page}.md").write_text(text, encoding="utf-8")
        toc += [f"```{{toctree}}\n:maxdepth: 1\n:caption: {package.__name__}\n", *pages, "```\n"]
    text = (
        "# API reference\n\nFrom the docstrings. [blockspectra](blockspectra.md) is what most "
        "programs need; [companion](companion.md) is the paper's side.\n\n"
    )
    (folder / "index.md").write_text(text + "\n".join(toc), encoding="utf-8")


def _escaped(cell: str) -> str:
    """Escape a cell, unless it is one of our own marks."""
    return cell if cell.startswith("<span class=") else html.escape(cell, quote=False)


def _by_number(row: tuple) -> tuple[str, int]:
    """Sort Figure 5a after Figure 2 and before Figure 10."""
    number = re.search(r"\d+", row[0])
    return row[0].split()[0].rstrip("s"), int(number[0]) if number else 0


if __name__ == "__main__":
    try:
        gather(*map(Path, sys.argv[1:])) if sys.argv[1:] else commit()
    except FileNotFoundError as error:
        sys.exit(str(error))
