"""Only this file sees a command that asks for the repository, or answers a mistake by a stack."""

import json
import subprocess
import sys

import nbformat
import papermill
import pytest

from blockspectra.diagnosis.command import TEMPLATE, main

MODULE = """
import torch
from blockspectra import Problem, cross_entropy

def make_problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    return Problem(model, cross_entropy, [(torch.randn(3, 4), torch.tensor([0, 1, 1]))])
"""
SMALL = ("--steps", "3", "--probes", "2")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "commanded.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(*arguments):
    """Run a command that must end with a sentence; returns it."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_diagnose_tells_the_cost_first_and_writes_a_page_and_numbers(folder, capsys):
    main(["diagnose", "commanded.py:make_problem", *SMALL, "--by", "neuron"])
    cost, *_, written = capsys.readouterr().out.splitlines()
    assert cost.startswith("5 blocks: ")
    assert "products, about" in cost
    assert written == "Written: diagnosis/diagnosis.html diagnosis/diagnosis.json"
    numbers = json.loads((folder / "diagnosis" / "diagnosis.json").read_text(encoding="utf-8"))
    assert (numbers["model"], numbers["settings"]["steps"]) == ("commanded.py:make_problem", 3)
    assert len(numbers["blocks"]) == 5


def test_mistakes_are_told_in_a_sentence(folder):
    assert "did you mean make_problem?" in refused("diagnose", "commanded.py:make_problm")
    assert "is no amount" in refused("diagnose", "commanded.py:make_problem", "--memory", "lots")
    place = ("--folder", "commanded.py/x")
    assert "commanded.py" in refused("diagnose", "commanded.py:make_problem", *place)
    none = refused("diagnose", "commanded.py:make_problem", "--steps", "0")
    assert "must be at least 1, not 0 and 4" in none
    assert "ends in .ipynb" in refused("notebook", "mine.py")
    (folder / "mine.ipynb").touch()
    assert "mine.ipynb exists" in refused("notebook", "mine.ipynb")


def test_the_notebook_runs_with_parameters_outside_the_repository(folder):
    main(["notebook", "mine.ipynb"])
    given = {"target": "commanded:make_problem", "steps": 3, "probes": 2, "folder": "found"}
    papermill.execute_notebook("mine.ipynb", "out.ipynb", given, progress_bar=False)
    assert (folder / "found" / "diagnosis.html").exists()
    outputs = [o for c in nbformat.read("out.ipynb", 4).cells for o in c.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_the_template_explains_its_parameters_and_knows_only_the_library():
    text = TEMPLATE.read_text(encoding="utf-8")
    assert "companion" not in text
    assert not [c for c in nbformat.reads(text, 4).cells if c.get("outputs")]
    assert all(one["help"] for one in papermill.inspect_notebook(str(TEMPLATE)).values())


def test_it_is_a_module_too():
    command = [sys.executable, "-m", "blockspectra.diagnosis.command", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip()
