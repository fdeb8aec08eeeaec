"""The notebooks as committed, as run by papermill, as compared by nbval, and the report of a run.

Sees what running a notebook cannot: outputs left out (nbval then compares nothing), parameters
nobody explains, presets that name what is not there, traces of the machine it was run on.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output
from papermill import inspect_notebook

from blockspectra.files import digest
from companion.claims import Criterion, Finding
from companion.report import claims_text, keep
from companion.store import PRESETS
from processes import run

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
BLOCK_SPECTRA = ROOT / "notebooks" / "04_block_spectra.ipynb"


def cells(path, tag=None, kind="code"):
    notebook = nbformat.read(path, as_version=4)
    found = [cell for cell in notebook.cells if cell.cell_type == kind]
    return [cell for cell in found if tag is None or tag in cell.metadata.get("tags", [])]


def defaults(path):
    """Names and values of the parameters cell."""
    (cell,) = cells(path, "parameters")
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


def test_there_are_notebooks_and_each_is_a_chapter_of_the_workflow_with_its_presets():
    assert PATHS
    names = {path.stem for path in PATHS}
    workflow = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert set(re.findall(r'"(\d\d_\w+)"', workflow)) == names
    for preset in PRESETS:
        folder = ROOT / "notebooks" / "presets" / preset
        assert {path.stem for path in folder.iterdir()} == names


class TestCommitted:
    @every_notebook
    def test_begins_with_its_title(self, path):
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# ")

    @every_notebook
    def test_was_run_from_top_to_bottom(self, path):
        counts = [cell.execution_count for cell in cells(path)]
        assert None not in counts
        assert counts[0] == 1
        assert counts == sorted(set(counts))

    @every_notebook
    def test_has_outputs_without_errors_or_warnings(self, path):
        outputs = [output for cell in cells(path) for output in cell.outputs]
        assert outputs
        assert not [output for output in outputs if output.output_type == "error"]
        assert not [output.text for output in outputs if output.get("name") == "stderr"]

    @every_notebook
    def test_has_outputs_that_are_compared(self, path):
        checked = cells(path, "nbval-check-output")
        assert checked
        assert all(cell.outputs for cell in checked)

    @every_notebook
    def test_has_short_cells(self, path):
        tables = cells(path, "parameters")  # one line a parameter, however many there are
        code = {cell.source for cell in cells(path)} - {cell.source for cell in tables}
        assert not [source for source in code if len(source.splitlines()) > 15]

    @every_notebook
    def test_explains_its_parameters(self, path):
        (cell,) = cells(path, "parameters")
        body = ast.parse(cell.source).body
        assert all(isinstance(line, ast.AnnAssign) for line in body), "annotated, nothing else"
        shown = inspect_notebook(str(path))
        assert list(shown) == [line.target.id for line in body], "papermill must see every name"
        assert all(parameter["help"] for parameter in shown.values())
        assert not cells(path, "injected-parameters")

    @every_notebook
    def test_has_no_trace_of_the_machine(self, path):
        notebook = nbformat.read(path, as_version=4)
        assert notebook.metadata.kernelspec.name == "python3"
        assert "papermill" not in notebook.metadata
        for cell in notebook.cells:
            assert "papermill" not in cell.metadata
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("image/png", None)
        trace = r"(?<![\w.])/(home|root|work|tmp|Users|private|mnt|opt|usr)/\S*"
        assert not re.search(trace, nbformat.writes(notebook))

    @every_notebook
    def test_is_stripped_of_what_changes_with_every_run(self, path):
        (hook,) = re.findall(r"bin/nbstripout (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
        keys = re.search(r'"(.*)"', hook)[1]
        options = [*hook.split(' "')[0].split(), keys]
        stripped = run("nbstripout", *options, "--textconv", path, cwd=ROOT)
        assert stripped.stdout == path.read_text(encoding="utf-8")


class TestPresets:
    @every_notebook
    def test_laptop_is_what_the_notebook_says(self, path):
        preset = ROOT / "notebooks" / "presets" / "laptop" / f"{path.stem}.yaml"
        assert yaml.safe_load(preset.read_text(encoding="utf-8")) == defaults(path)

    @pytest.fixture
    def workflow(self, tmp_path):
        """A copy of the workflow without the library: enough for a dry run."""
        shutil.copy(ROOT / "Snakefile", tmp_path)
        shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
        (tmp_path / "lib" / "companion").mkdir(parents=True)
        (tmp_path / "lib" / "companion" / "report.py").touch()
        return tmp_path

    def dry_run(self, workflow, *settings):
        arguments = ("--dry-run", "--cores", "1", "--quiet", "all")
        return run("snakemake", *arguments, "--config", *settings, cwd=workflow)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_every_preset_is_accepted(self, workflow, preset):
        result = self.dry_run(workflow, f"preset={preset}")
        assert result.returncode == 0, result.stderr

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            ("stepz: 20", "unknown parameter stepz; 04_block_spectra takes preset, "),
            ("steps: twenty", "parameter steps must be of type int, not 'twenty'."),
        ],
    )
    def test_a_wrong_parameter_is_refused_before_anything_runs(self, workflow, line, sentence):
        path = workflow / "notebooks" / "presets" / "smoke" / "04_block_spectra.yaml"
        path.write_text(f"preset: smoke\n{line}\n", encoding="utf-8")
        result = self.dry_run(workflow, "preset=smoke")
        assert result.returncode == 3
        assert len(result.stderr.splitlines()) == 1
        assert f"presets/smoke/04_block_spectra.yaml: {sentence}" in result.stderr

    @pytest.mark.parametrize(
        ("setting", "sentence"),
        [
            ("preset=large", "Unknown preset 'large': choose one of smoke, laptop, full.\n"),
            ("prest=smoke", "Unknown setting prest: choose from preset, split.\n"),
        ],
    )
    def test_a_wrong_setting_is_refused(self, workflow, setting, sentence):
        result = self.dry_run(workflow, setting)
        assert (result.returncode, result.stderr) == (3, sentence)


class TestPapermill:
    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("stepz", "20", "Unknown parameter stepz: this chapter takes preset, "),
            ("steps", "twenty", "Parameter steps must be of type int, not 'twenty'."),
        ],
    )
    def test_a_wrong_parameter_stops_before_anything_is_computed(
        self, tmp_path, name, value, sentence
    ):
        store = tmp_path / "store"
        store.mkdir()
        result = run(
            *("papermill", BLOCK_SPECTRA, "out.ipynb", "-p", name, value, "--no-progress-bar"),
            cwd=tmp_path,
            BLOCKSPECTRA_RESULTS=str(store),
        )
        assert result.returncode
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith(f"ParameterError: {sentence}")
        assert not list(store.rglob("*"))


@pytest.mark.parametrize(("tag", "passes"), [("nbval-check-output", False), ("other", True)])
def test_nbval_compares_cells_tagged_so_and_no_others(tmp_path, tag, passes):
    cell = new_code_cell("print(1 + 1)", metadata={"tags": [tag]}, execution_count=1)
    cell.outputs = [new_output("stream", name="stdout", text="3\n")]
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "sum.ipynb")
    options = ("-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env")
    result = run("pytest", *options, "sum.ipynb", cwd=tmp_path)
    assert (result.returncode == 0) == passes, result.stdout


class TestReport:
    @pytest.fixture
    def results(self, tmp_path):
        """The store of a run of one chapter."""
        results = tmp_path / "results" / "smoke"
        figures = results / "figures" / "04_block_spectra"
        for folder in (figures, results / "manifests"):
            folder.mkdir(parents=True)
        wrote = [f"figures/04_block_spectra/densi ty.{kind}" for kind in ("pdf", "png", "csv")]
        for name in (*wrote, "spectra-1.npz", "spectra-1.json", "stale-0.npz"):
            (results / name).touch()
        criteria = [Criterion("ratio <script>", 3.0, 0.1, 2.0)]
        claim = Finding("C3", criteria, "stand-in data").save(results)
        wrote = dict.fromkeys(wrote, "0123") | {f"claims/{claim.name}": digest(claim)}
        manifest = {"results": {"spectra-1.npz": "0"}, "wrote": wrote}
        (results / "manifests" / "04_block_spectra.json").write_text(json.dumps(manifest))
        return results

    def test_claims_fit_a_terminal(self, results):
        text = claims_text(results)
        assert "reproduced: not run; held: 0 of 0; robust: –; rerun: –" in text
        assert "reproduced: not measured; held: –; robust: –; rerun: –" in text
        assert "measured: ratio <script>: 3.00 ± 0.10 (≥ 2: holds)" in text
        assert max(map(len, text.splitlines())) < 110

    def test_keep_takes_what_manifests_name_and_removes_what_is_stale(self, results, tmp_path):
        target = tmp_path / "data" / "smoke"
        target.mkdir(parents=True)
        (target / "older.npz").touch()
        keep(results, target)
        kept = {path.name for path in target.rglob("*.*")}
        figures = {"densi ty.png", "densi ty.csv"}
        measured = {"spectra-1.npz", "spectra-1.json"}
        assert kept == {"04_block_spectra.json", "C3.json", *measured, *figures}

    def test_keep_refuses_an_incomplete_run_and_leaves_what_is_there(self, results, tmp_path):
        (results / "spectra-1.npz").unlink()
        (tmp_path / "kept").mkdir()
        with pytest.raises(FileNotFoundError, match=r"spectra-1.npz is not in .* first"):
            keep(results, tmp_path / "kept")
        assert (tmp_path / "kept").exists()
