"""The pages of `make site`, built anew: sees what Sphinx lets pass.

A link or an image that leads nowhere, a figure without alternative text, a script, style or font
from another host, a chapter that was left out; and pages of a run that say what the run did not.
"""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from blockspectra.environment import environment
from blockspectra.files import digest
from browser import CHROMIUM, width
from companion.claims import CLAIMS, Criterion, Finding
from companion.report import figure_names

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results" / "laptop"
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class Page(HTMLParser):
    """What a page links to, shows and loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.images, self.loaded, self.text = set(), [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "img":
            self.images.append(values)
        if tag in {"script", "img", "iframe", "source", "embed"} and "src" in values:
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            self.loaded.append(values.get("href", ""))


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make site` does; a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    run("docs/pages.py", folder / "source")
    options = ("-E", "-W", "--keep-going", "-q", "-d", folder / "cache")
    run("-m", "sphinx", *options, folder / "source", folder / "html")
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_make_site_builds_as_this_file_does():
    (recipe,) = re.findall(
        r"^site:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert "docs/pages.py" in recipe
    assert "-m sphinx -E -W --keep-going -q -d" in recipe


def test_every_chapter_and_every_reference_has_a_page(pages, site):
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {f"notebooks/{path.stem}.html" for path in CHAPTERS} <= names
    texts = ("index", "glossary", "figures", "cite", "CHANGELOG", "reproducibility", "artifact")
    assert {f"{name}.html" for name in (*texts, "data/README", "api/blockspectra")} <= names
    assert "js0" in pages[site / "api" / "blockspectra.distance.html"].text
    assert "block_table" in pages[site / "api" / "blockspectra.diagnosis.html"].text
    assert "claims_table" in pages[site / "api" / "companion.claims.html"].text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "name", ["index", "artifact", "recipes", "notebooks/00_claims", "notebooks/11_theory"]
)
def test_no_page_is_wider_than_a_phone(site, name, tmp_path):
    assert width(site / f"{name}.html", tmp_path) <= 390


def test_links_lead_somewhere(pages, site):
    broken = []
    for path, page in pages.items():
        for target in (*page.links, *page.loaded):
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = file.is_file() and file.is_relative_to(site)
            if known and parts.fragment and file in pages:
                known = unquote(parts.fragment) in pages[file].ids
            if not known:
                broken.append(f"{path.name}: {target}")
    assert not broken


def test_every_figure_of_a_chapter_is_shown_with_an_alternative_text(pages, site):
    for chapter in CHAPTERS:
        page = pages[site / "notebooks" / f"{chapter.stem}.html"]
        images = page.images
        assert all(len(image.get("alt", "")) > 20 for image in images), chapter.stem
        # on a phone it is too small to be read until it is opened by itself
        assert {image["src"] for image in images} <= {*page.links}, chapter.stem
        assert len(images) >= len(figure_names(RESULTS, chapter.stem))
    for path, page in pages.items():
        assert all("alt" in image for image in page.images), path.name


def test_a_link_to_a_figure_opens_it_and_a_link_to_its_data_saves_it(site):
    links = re.findall(r"<a [^>]*>", (site / "figures.html").read_text(encoding="utf-8"))
    for ending, saved in ((".png", False), (".csv", True)):
        chosen = [link for link in links if f'{ending}"' in link]
        assert chosen
        assert all((" download=" in link) is saved for link in chosen)


def test_nothing_is_loaded_from_another_host(pages, site):
    loaded = {src for page in pages.values() for src in page.loaded}
    assert loaded
    assert not [
        src for src in loaded if urlsplit(src).scheme not in {"", "data"} or src[:2] == "//"
    ]
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text("utf-8")), path


def test_the_home_page_says_what_was_found_and_how_to_begin(pages, site):
    home = pages[site / "index.html"]
    place = home.text.index("A reproducible companion")
    for words in ("How to cite", "In short:", "What came out", "pip install .", "make reproduce"):
        place = home.text.index(words, place)  # fails where they come in another order
    assert {"notebooks/00_claims.html", "cite.html", "recipes.html"} <= set(home.links)
    assert all(f"\n{claim}\n" in home.text for claim in CLAIMS)
    assert any("scale_of_blocks_at_paper_size" in image["src"] for image in home.images)


def test_verdicts_are_coloured_and_code_that_shows_nothing_is_folded(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert '<span class="verdict not-supported">' in home
    chapter = (site / "notebooks" / "04_block_spectra.html").read_text(encoding="utf-8")
    assert '<details class="admonition hide above-input">' in chapter
    assert re.search(r'class="[^"]*download', chapter)


def test_lines_break_inside_names_and_not_before_an_error(site):
    figures = (site / "figures.html").read_text(encoding="utf-8")
    assert ">hessian_<wbr>images</span>" in figures
    assert "&lt;wbr&gt;" not in figures
    claims = (site / "notebooks" / "00_claims.html").read_text(encoding="utf-8")
    assert re.search(r"<td [^<]*\d\u00a0±\u00a0\d", claims)
    assert not re.search(r"<td [^<]*\d ± \d", claims)


def test_texts_in_the_repository_say_what_the_results_do(tmp_path):
    run("docs/pages.py", tmp_path / "pages")
    for name in ("artifact", "cite", "figures", "reproducibility"):
        committed = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        made = (tmp_path / "pages" / f"{name}.md").read_text(encoding="utf-8")
        assert committed.replace("](../", "](") == made, "run python docs/pages.py"


def test_links_between_texts_hold_in_the_repository():
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").rglob("*.md")]
    broken = []
    for path in texts:
        for target in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", path.read_text(encoding="utf-8")):
            there = urlsplit(target).scheme or (path.parent / unquote(target)).exists()
            if not there and target != "api/index.md":  # which the site alone has
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert not broken


def test_formulas_are_drawn_by_the_browser_alone(site):
    text = (site / "notebooks" / "11_theory.html").read_text(encoding="utf-8")
    assert "<math" in text
    assert "\\frac" not in text


class TestPagesOfARun:
    @pytest.fixture
    def folders(self, tmp_path):
        """Results and executed notebooks of a run of one chapter."""
        results, notebooks = tmp_path / "results" / "smoke", tmp_path / "notebooks"
        figures = results / "figures" / "04_block_spectra"
        for folder in (figures, results / "manifests", notebooks):
            folder.mkdir(parents=True)
        (notebooks / "04_block_spectra.ipynb").write_text("{}")
        (figures / "density.txt").write_text("Where |λ| <b> & σ is small")
        finding = Finding("C3", [Criterion("ratio <script>", 3.0, 0.1, 2.0)], "stand-ins")
        written = {"figures/04_block_spectra/density.png": "0123"}
        written["claims/C3.json"] = digest(finding.save(results))
        for chapter in {claim.chapter for claim in CLAIMS.values()}:
            wrote = written if chapter == "04_block_spectra" else {}
            about = {"chapter": chapter, "wrote": wrote, "wall_time_s": 90, "peak_memory_MiB": 7}
            manifest = environment() | about
            (results / "manifests" / f"{chapter}.json").write_text(json.dumps(manifest))
        return results, notebooks

    def test_tell_its_preset_its_verdicts_and_what_was_not_measured(self, folders, tmp_path):
        run("docs/pages.py", tmp_path / "pages", *folders)
        texts = {path.stem: path.read_text() for path in (tmp_path / "pages").glob("*.md")}
        home = texts["index"]
        assert "how many of these criteria the smoke preset, with smaller" in home
        assert re.search(r"\| \[C3\].*>not run</span> 0\xa0of\xa00 \| – \| – \|", home)
        assert re.search(r"\| \[C1\].*>not measured</span>", home)
        assert "In short:" not in home  # that is said of the committed results
        assert (
            "| this run | ratio &lt;script&gt; | 3.00 ± 0.10 | ≥ 2 | holds |" in texts["artifact"]
        )
        assert "Where \\|λ\\| &lt;b&gt; &amp; σ is small" in texts["figures"]
        assert (
            "| [04_block_spectra](notebooks/04_block_spectra.ipynb) | 1.5 | 7 |"
            in texts["reproducibility"]
        )

    def test_a_chapter_that_was_not_run_is_named(self, folders, tmp_path):
        (folders[0] / "manifests" / "04_block_spectra.json").unlink()
        command = [sys.executable, "docs/pages.py", tmp_path / "pages", *folders]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == (
            f"{folders[0]} has no run of 04_block_spectra: run make reproduce PRESET=smoke.\n"
        )
