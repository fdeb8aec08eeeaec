"""Only this file sees a target that the library finds and papermill does not.

Also a run of one's own that is written over the preset's.
"""

import json
from pathlib import Path

import pytest

from processes import run

CHAPTER = Path(__file__).parents[2] / "notebooks" / "12_your_model.ipynb"
MODULE = """
import torch
from blockspectra import Problem, cross_entropy

data = [(torch.randn(3, 4), torch.tensor([0, 1, 1]))]

def make_problem():
    first, last = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    return Problem(torch.nn.Sequential(first, torch.nn.Tanh(), last), cross_entropy, data)

def single():
    return Problem(torch.nn.Linear(4, 2), cross_entropy, data)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine_to_measure.py").write_text(MODULE)
    return tmp_path


def papermill(folder, target):
    """Run the chapter from a folder outside the repository."""
    settings = ("-p", "target", target, "-p", "preset", "smoke", "-p", "probes", "2")
    return run(
        *("papermill", CHAPTER, "out.ipynb", "--no-progress-bar", *settings),
        cwd=folder,
        BLOCKSPECTRA_RESULTS=str(folder / "store"),
    )


def test_measures_a_target_of_the_working_folder(folder):
    result = papermill(folder, "mine_to_measure:make_problem")
    assert result.returncode == 0, result.stderr
    (own,) = (folder / "store" / "smoke" / "own").iterdir()  # never what the preset's run leaves
    content = json.loads((own / "diagnosis" / "diagnosis.json").read_text(encoding="utf-8"))
    assert [(row["block"], row["size"]) for row in content["blocks"]] == [("0", 12), ("2", 6)]
    assert (own / "diagnosis" / "diagnosis.html").exists()
    manifest = json.loads((own / "manifests" / "12_your_model.json").read_text())
    assert manifest["parameters"]["target"] == "mine_to_measure:make_problem"


def test_a_model_without_a_second_block_is_told_in_one_line(folder):
    result = papermill(folder, "mine_to_measure:single")
    assert result.returncode
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ParameterError: Heterogeneity compares blocks, and this model has 1")
