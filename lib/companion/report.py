"""A finished run for its readers: a static page, the claims in a terminal, results to commit.

``python -m companion.report RESULTS NOTEBOOKS PAGE`` writes the page,
``python -m companion.report --print RESULTS`` prints the claims,
``python -m companion.report --keep RESULTS FOLDER`` copies what is worth committing.
"""

import argparse
import json
import os
import shutil
import textwrap
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from blockspectra.files import write_text
from companion.claims import claims_table

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Why Transformers Need Adam, reproduced ({{ preset }} preset)</title>
<style>
body { max-width: 60rem; margin: auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: #222; background: #fff; overflow-wrap: break-word }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
a { color: #0550ae } figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto }
figcaption, small, details { color: #555; font-size: .9rem } details { overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-bottom: 1px solid #ddd }
td b { white-space: nowrap } .supported { color: #1a6b2f } .partly { color: #8a5a00 }
.not-supported { color: #b3261e } .not-measured { color: #666; font-weight: normal }
@media (max-width: 40rem) {
  thead { display: none } tr { display: block; border-bottom: 1px solid #ccc }
  td { display: block; border: 0; padding: .2rem 0 } }
</style>
<h1>Why Transformers Need Adam: A Hessian Perspective, reproduced</h1>
<p>One run, at the <b>{{ preset }}</b> preset, of the notebooks that measure the claims of that
paper anew (Zhang, Chen, Ding, Li, Sun and Luo, NeurIPS 2024, arXiv 2402.16788). A verdict is
counted from the criteria under <i>measured here</i>: <b class="supported">supported</b> where all
hold, <b class="partly">partly</b> where some do, <b class="not-supported">not supported</b> where
none does. Where data or sizes are not the paper's, the note says so.</p>
<table>
<thead><tr><th>Claim<th>What the paper says<th>Measured here<th>Verdict</thead>
{% for row in claims %}<tr><td>{{ row.claim }}
<td>{{ row.statement }} <small>({{ row.paper }})</small>
<td>{% for part in row.measured.split("; ") %}{{ part }}<br>{% endfor %}
{% if row.note %}<small>{{ row.note }}</small>{% endif %}
<td><b class="{{ row.verdict.replace(' ', '-') }}">{{ row.verdict }}</b>
{% if row.link %}<br><a href="{{ row.link }}">{{ row.chapter }}</a>{% endif %}
{% endfor %}</table>
{% for chapter in chapters %}{% set run = chapter.manifest %}
<h2 id="{{ chapter.name }}">{{ chapter.title }}</h2>
<p><a href="{{ chapter.html }}">Read the chapter</a> ·
<a href="{{ chapter.notebook }}">notebook as run</a> ·
{{ "%.0f" | format(run.wall_time_s) }} s · {{ run.peak_memory_MiB }} MiB · {{ run.device }} ·
{{ "commit " ~ run.commit[:10] if run.commit else "no commit" }}
{%- if run.dirty %} with changes on top{% endif %}</p>
{% for figure in chapter.figures %}<figure>
<a href="{{ figure.png }}"><img src="{{ figure.png }}" alt="{{ figure.caption }}"></a>
<figcaption>{{ figure.caption }}
(<a href="{{ figure.pdf }}">PDF</a>, <a href="{{ figure.csv }}">data</a>)</figcaption>
</figure>
{% endfor %}<details><summary>Parameters, data and packages</summary><table>
{% for part in (run.parameters, run.data, {"python": run.python}, run.packages) %}
{%- for name, value in part.items() %}<tr><td>{{ name }}<td>{{ value }}
{% endfor %}{% endfor %}</table></details>
{% endfor %}</html>
"""


def write_page(results: Path, notebooks: Path, page: Path) -> Path:
    """Write the report of one preset.

    Parameters
    ----------
    results, notebooks : Path
        The preset's store, and its executed notebooks with their HTML beside them.
    page : Path
        Where to write; links are relative to its folder.
    """

    def link(path: Path) -> str:
        return quote(Path(os.path.relpath(path, page.parent)).as_posix())

    claims = claims_table(results).to_dict("records")
    for row in claims:
        html = notebooks / f"{row['chapter']}.html"
        row["link"] = link(html) if html.exists() else ""
    chapters = []
    for notebook in sorted(notebooks.glob("*.ipynb")):
        manifest = _read(results / "manifests" / f"{notebook.stem}.json")
        figures = []
        for png in (results / name for name in manifest["wrote"] if name.endswith(".png")):
            sidecar = png.with_suffix(".txt")
            caption = sidecar.read_text(encoding="utf-8").strip() if sidecar.exists() else ""
            links = {kind: link(png.with_suffix(f".{kind}")) for kind in ("png", "pdf", "csv")}
            figures.append({"caption": caption or png.stem.replace("_", " "), **links})
        chapters.append(
            {
                "name": notebook.stem,
                "title": _title(notebook),
                "notebook": link(notebook),
                "html": link(notebook.with_suffix(".html")),
                "figures": figures,
                "manifest": manifest,
            }
        )
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    text = template.render(preset=results.name, claims=claims, chapters=chapters)
    return write_text(page, text)


def claims_text(results: Path, width: int = 100) -> str:
    """Lay the claims of a store out for a terminal: verdict, statement, measured, note."""
    lines = []
    for row in claims_table(results).to_dict("records"):
        head = f"{row['claim']:<4}{row['verdict'].upper():<15}"
        texts = [f"{row['statement']} ({row['paper']})"]
        texts += [f"{part}: {row[part]}" for part in ("measured", "note") if row[part]]
        for text in texts:
            indent = " " * len(head)
            lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent)
            head = indent
    return "\n".join(lines)


def keep(results: Path, target: Path) -> list[Path]:
    """Replace a folder by what the last run of each chapter read or wrote, less the PDFs.

    Parameters
    ----------
    results, target : Path
        A preset's store after all chapters have run, and the folder.

    Returns
    -------
    list of Path
        What was copied, relative to both.

    Raises
    ------
    FileNotFoundError
        Where nothing was run, or a result that a manifest names is not in the store.
    """
    names = set()
    for path in (results / "manifests").glob("*.json"):
        manifest = _read(path)
        names |= {*manifest["results"], *manifest["wrote"], f"manifests/{path.name}"}
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


def _read(manifest: Path) -> dict:
    return json.loads(manifest.read_text(encoding="utf-8"))


def _title(notebook: Path) -> str:
    """First heading of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    return headings[0] if headings else notebook.stem


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--print", nargs=1, type=Path, metavar="RESULTS")
    parser.add_argument("--keep", nargs=2, type=Path, metavar=("RESULTS", "FOLDER"))
    parser.add_argument("page", nargs="*", type=Path, help="RESULTS NOTEBOOKS PAGE")
    given = parser.parse_args()
    if given.print:
        print(claims_text(*given.print))
    elif given.keep:
        try:
            print(f"{len(keep(*given.keep))} files in {given.keep[1]}")
        except FileNotFoundError as error:
            parser.exit(1, f"{error}\n")
    elif len(given.page) == 3:
        write_page(*given.page)
    else:
        parser.error("name RESULTS, NOTEBOOKS and PAGE")


if __name__ == "__main__":
    main()
