"""Only this file sees a committed figure that the committed results no longer give.

So it is with a figure function changed after the last run, a result left out, or a chapter that
measures something on the way to a figure instead of taking it from the store.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion.figures import COLUMN, PAGE
from companion.redraw import Committed, NotCommittedError, figure_names, redraw_all
from companion.store import Store

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results" / "laptop"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KINDS = ("pdf", "png", "csv", "txt")
CELL, FAR, SHARE, MEAN = 4, 0.1, 0.005, 0.005  # pixels; of the range from black to white


def alike(one, other):
    """Whether two images are of one size and, over cells of 4 × 4 pixels, of one look.

    At most 0.5 % of the cells may differ by more than a tenth of the range, and all by at most
    0.5 % on average: that lets a glyph move by a pixel, as it does with another FreeType.
    """
    cells = []
    for path in (one, other):
        with Image.open(path) as image:
            cells.append(np.asarray(image.convert("RGB").reduce(CELL), dtype=float) / 255)
    if cells[0].shape != cells[1].shape:
        return False
    off = np.abs(cells[0] - cells[1])
    return bool((off.max(-1) > FAR).mean() <= SHARE and off.mean() <= MEAN)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """All figures, drawn from the committed results into a folder."""
    folder = tmp_path_factory.mktemp("figures")
    redraw_all(NOTEBOOKS, RESULTS, folder)
    return folder


def test_every_committed_figure_is_drawn_as_pdf_png_and_csv_with_its_caption(drawn):
    names = {f"{path.stem}/{n}" for path in NOTEBOOKS for n in figure_names(RESULTS, path.stem)}
    assert names
    found = {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.*")}
    assert found == {f"{name}.{kind}" for name in names for kind in KINDS}


def test_figures_look_as_committed(drawn):
    paths = sorted(path.relative_to(drawn) for path in drawn.rglob("*.png"))
    different = [str(p) for p in paths if not alike(drawn / p, RESULTS / "figures" / p)]
    assert not different


def test_captions_are_those_committed(drawn):
    for path in sorted(drawn.rglob("*.txt")):
        committed = RESULTS / "figures" / path.relative_to(drawn)
        assert path.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_figures_are_a_column_wide_or_a_plain_share_of_a_page(drawn):
    widths = [COLUMN, *(PAGE * share for share in (2 / 3, 4 / 5, 5 / 6, 1))]
    for path in drawn.rglob("*.png"):
        with Image.open(path) as image:
            inches = image.width / 200
        assert min(abs(inches - width) for width in widths) < 0.01, path.stem


def test_another_figure_is_not_taken_for_the_same(tmp_path):
    image = np.full((400, 600, 3), 255, dtype=np.uint8)
    image[200:203, 50:550] = 0
    Image.fromarray(image).save(tmp_path / "one.png")
    Image.fromarray(np.roll(image, 1, axis=0)).save(tmp_path / "moved by a pixel.png")
    Image.fromarray(np.roll(image, 40, axis=0)).save(tmp_path / "another.png")
    assert alike(tmp_path / "one.png", tmp_path / "moved by a pixel.png")
    assert not alike(tmp_path / "one.png", tmp_path / "another.png")


class TestCommitted:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """A store with two results of one name and one of another, as a run leaves it."""
        monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))
        store = Store("laptop")
        for name, seed in (("spectrum", 0), ("spectrum", 1), ("counts", 0)):
            store.get(name, {"seed": seed}, lambda: pd.DataFrame({"x": [1.0]}))
        (store.path / "manifests").mkdir()
        run = json.dumps({"results": store.used, "wrote": {}})
        (store.path / "manifests" / "chapter.json").write_text(run)
        return store.path

    def refuse(self):
        raise AssertionError("it must not be computed")

    @pytest.mark.parametrize(("name", "seed"), [("spectrum", 1), ("counts", 5)])
    def test_reads_by_key_and_the_only_one_of_a_name_by_its_name(self, folder, name, seed):
        table = Committed(folder, "chapter").get(name, {"seed": seed}, self.refuse)
        assert table["x"].tolist() == [1.0]

    @pytest.mark.parametrize("name", ["spectrum", "spectr", "other"])
    def test_refuses_to_compute_in_one_sentence(self, folder, name):
        with pytest.raises(NotCommittedError, match=f"no result {name} of chapter"):
            Committed(folder, "chapter").get(name, {"seed": 5}, self.refuse)

    def test_a_chapter_that_was_not_run_is_named(self, folder):
        with pytest.raises(NotCommittedError, match="no run of 99_unknown"):
            Committed(folder, "99_unknown")
