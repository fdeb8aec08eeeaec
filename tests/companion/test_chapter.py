"""Only this file sees a notebook that runs with parameters other than those it reports.

papermill itself warns of an unknown name and checks no type: `steep=20` would leave `steps` at its
default. Also: a figure, a verdict or a manifest that is not written where the report looks for it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import yaml

mpl.use("Agg")
import matplotlib.pyplot as plt

from companion.chapter import Chapter, ParameterError, check_parameters, check_values
from companion.claims import Criterion, Finding
from companion.parameters import at_preset
from companion.store import PRESETS, Job

LAPTOP = Path(__file__).parents[2] / "notebooks" / "presets" / "laptop"
ANNOTATIONS = {
    "preset": str,
    "steps": int,
    "sigma": float,
    "quick": bool,
    "models": str,
    "rates": list[float],
}
DEFAULTS = {
    "preset": "smoke",
    "steps": 10,
    "sigma": 0.5,
    "quick": False,
    "models": "vgg, gpt",
    "rates": [0.1, 1.0],
}


@dataclass(frozen=True)
class Table(Job):
    """A result that takes no time."""

    NAME = "table"

    def compute(self, store):
        return pd.DataFrame({"x": [1]})


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))


def namespace(injected="", **values):
    """The globals of a notebook whose parameters cell papermill followed by one of its own."""
    return {
        "__annotations__": ANNOTATIONS,
        "In": ["", "steps: int = 10", f"# Parameters\n{injected}"],
        **DEFAULTS,
        **values,
    }


@pytest.fixture(autouse=True)
def _preset_is_what_the_namespace_holds(monkeypatch):
    monkeypatch.setattr(Chapter, "_is_preset", lambda self: True)


def chapter(name="05_block_heterogeneity"):
    return Chapter(name, namespace())


def test_a_run_with_parameters_of_ones_own_never_changes_a_verdict(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))
    defaults = yaml.safe_load(Path(LAPTOP, "04_block_spectra.yaml").read_text())
    kinds = {name: type(value) for name, value in defaults.items()}
    folders = []
    for values in (defaults, defaults | {"model": "gpt"}, defaults | {"model": "vgg"}):
        run = Chapter("04_block_spectra", {"__annotations__": kinds, **values})
        run.conclude("C3", [Criterion("it", 1, 0, 0)], "")
        assert (run.folder / "claims" / "C3.json").exists()
        folders.append(run.folder)
    assert folders[0] == tmp_path / "laptop"
    assert [folder.parent for folder in folders[1:]] == [tmp_path / "laptop" / "own"] * 2
    assert folders[1] != folders[2]  # or two runs at once would mix their files


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 20},
        {"sigma": 1},  # YAML writes 1.0 as it likes
        {"rates": [1, 2.5]},
        {"rates": []},
    ],
)
def test_right_parameters_are_returned_as_they_are(values):
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    assert check_parameters(namespace(source, **values)) == DEFAULTS | values


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", "twenty", "int"),
        ("steps", "20", "int"),
        ("steps", True, "int"),
        ("steps", 20.0, "int"),
        ("steps", None, "int"),
        ("sigma", "0.5", "float"),
        ("sigma", True, "float"),
        ("quick", 1, "bool"),
        ("quick", "yes", "bool"),
        ("models", ["vgg"], "str"),
        ("rates", ["0.1"], r"list\[float\]"),
        ("rates", 0.1, r"list\[float\]"),
    ],
)
def test_a_parameter_of_another_type_is_refused_by_name(name, value, wanted):
    with pytest.raises(ParameterError, match=f"{name} must be of type {wanted}, not ") as caught:
        check_parameters(namespace(f"{name} = {value!r}", **{name: value}))
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("injected", ["steep = 20", "steps = 20\nsteep = [\n  1,\n]\n"])
def test_an_unknown_name_is_refused_with_those_that_are_known(injected):
    sentence = "Unknown parameter steep: this chapter takes preset, steps, sigma"
    with pytest.raises(ParameterError, match=sentence):
        check_parameters(namespace(injected, steep=20))


def test_the_paths_that_papermill_injects_are_no_parameters():
    injected = "steps = 20\nPAPERMILL_INPUT_PATH = 'a'\nPAPERMILL_OUTPUT_PATH = 'b'\n"
    assert check_parameters(namespace(injected, steps=20)) == DEFAULTS | {"steps": 20}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "^Parameter steps must be above 0, not 0"),
        ("probes", -1, "^Parameter probes must be above 0, not -1"),
        ("sweep_samples", [2, 0], r"^Parameter sweep_samples must be above 0, not \[2, 0\]"),
        ("steps", float("nan"), "^Parameter steps must be above 0, not nan"),
        ("memory", "much", "^memory='much' is no amount: write it like '4GiB'"),
    ],
)
def test_values_without_sense_are_refused_before_any_work(name, value, sentence):
    parameters = at_preset("05_block_heterogeneity", "laptop") | {name: value}
    with pytest.raises(ParameterError, match=sentence):
        check_values("05_block_heterogeneity", parameters)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_is_refused(preset):
    for path in LAPTOP.glob("*.yaml"):
        check_values(path.stem, at_preset(path.stem, preset))


def test_zero_is_a_number_where_it_is_the_usual_one():
    check_values(
        "02_estimator_accuracy", at_preset("02_estimator_accuracy", "laptop") | {"seed": 0}
    )
    with pytest.raises(ParameterError, match="seed must be at least 0, not -1"):
        check_values("02_estimator_accuracy", {"seed": -1})


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(blocked))
    with pytest.raises(ParameterError, match=r"cannot be written to .*: set BLOCKSPECTRA_RESULTS"):
        chapter()


def test_figures_are_shown_whatever_the_backend_is(tmp_path):
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    source = """
    preset: str = "smoke"
    from companion.chapter import Chapter
    import matplotlib.pyplot as plt, pandas as pd
    chapter = Chapter("any", globals())
    chapter.figure("one", plt.subplots()[0], pd.DataFrame(), "A caption.")
    """
    cells = [new_code_cell("\n".join(line.strip() for line in source.splitlines()))]
    notebook, settings = new_notebook(cells=cells), {"MPLBACKEND": "Agg"}
    client = NotebookClient(notebook, timeout=120)
    client.execute(env={**os.environ, **settings, "BLOCKSPECTRA_RESULTS": str(tmp_path)})
    assert any("image/png" in one.get("data", {}) for one in notebook.cells[0].outputs)


def test_names_that_the_notebook_itself_assigns_are_none_of_papermills():
    content = namespace()
    content["In"].append("helper = 3  # Parameters\n")
    assert check_parameters(content | {"helper": 3}) == DEFAULTS


def test_a_notebook_without_papermill_is_checked_too():
    content = namespace(steps="twenty")
    del content["In"]
    with pytest.raises(ParameterError, match="steps must be of type int"):
        check_parameters(content)


@pytest.mark.parametrize("annotations", [{}, {"steps": int}])
def test_a_parameters_cell_must_annotate_a_preset(annotations):
    with pytest.raises(ParameterError, match="must annotate every parameter, and a preset"):
        check_parameters({**namespace(), "__annotations__": annotations})


def test_an_unknown_preset_is_a_parameter_error_of_one_line():
    with pytest.raises(ParameterError, match="Unknown preset 'huge'") as caught:
        Chapter("05_block_heterogeneity", namespace(preset="huge"))
    shown = caught.value._render_traceback_()
    assert shown == [f"ParameterError: {caught.value}"]


def test_choose_splits_at_commas_and_blanks():
    assert chapter().choose("vgg, gpt  bert", ["bert", "gpt", "vgg"]) == ["vgg", "gpt", "bert"]


@pytest.mark.parametrize("text", ["vgg, gtp", "", " , "])
def test_choose_refuses_what_is_not_known_and_nothing_at_all(text):
    known = "choose from bert, gpt, vgg"
    with pytest.raises(ParameterError, match=known):
        chapter().choose(text, ["bert", "gpt", "vgg"])


def test_a_figure_is_kept_as_pdf_and_png_with_its_data_and_caption(tmp_path):
    run, data = chapter(), pd.DataFrame({"x": [1, 2], "y": [0.1, 0.2]})
    figure, ax = plt.subplots()
    ax.plot(data["x"], data["y"])
    run.figure("js_over_pairs", figure, data, "What it shows.")
    folder = tmp_path / "smoke" / "figures" / "05_block_heterogeneity"
    assert {p.name for p in folder.iterdir()} == {
        f"js_over_pairs.{suffix}" for suffix in ("pdf", "png", "csv", "txt")
    }
    assert (folder / "js_over_pairs.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "js_over_pairs.png").read_bytes().startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "js_over_pairs.csv"), data)
    assert not plt.fignum_exists(figure.number)


def test_a_pdf_has_the_same_bytes_every_time(tmp_path):
    contents = set()
    for _ in range(2):
        figure, ax = plt.subplots()
        ax.plot([1, 2])
        chapter().figure("line", figure, pd.DataFrame(), "A line.")
        path = tmp_path / "smoke" / "figures" / "05_block_heterogeneity" / "line.pdf"
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_conclude_keeps_a_claim_and_prints_its_verdict(tmp_path, capsys):
    criterion = Criterion("distance", 0.5, 0.01, 0.1)
    chapter().conclude("C4", [criterion], "small models")
    said = (
        "C4: reproduced at preset full: not run (0 of 0); robust: –; "
        "rerun agrees / contradicts / open: –\n"
    )
    assert capsys.readouterr().out == said
    found = Finding.load(tmp_path / "smoke" / "claims" / "C4.json")
    assert found == Finding("C4", [criterion], "small models")


def test_conclude_refuses_a_claim_of_another_chapter(tmp_path):
    with pytest.raises(ValueError, match="C1 is measured by 01_block_diagonal_hessian, not by 05"):
        chapter().conclude("C1", [Criterion("it", 1, 0, 0)], "")
    assert not (tmp_path / "smoke" / "claims").exists()


def test_finish_writes_a_manifest_with_parameters_and_the_hashes_of_everything(tmp_path):
    run = chapter()
    run.data["photographs"] = "0123"
    table = run.store.get(Table())
    run.figure("table", plt.figure(), table, "Nothing.")
    run.conclude("C4", [Criterion("it", 1, 0, 0)], "")
    message = run.finish()
    assert message == "05_block_heterogeneity: 1 result, 1 figure, manifest written"
    folder = tmp_path / "smoke"
    path = folder / "manifests" / "05_block_heterogeneity.json"
    manifest = json.loads(path.read_text())
    assert manifest["parameters"] == DEFAULTS
    assert manifest["data"] == {"photographs": "0123"}
    assert {"commit", "packages", "device", "wall_time_s"} <= set(manifest)
    written = manifest["results"] | manifest["wrote"]
    assert len(written) == 1 + 4 + 1
    for name, digest in written.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
