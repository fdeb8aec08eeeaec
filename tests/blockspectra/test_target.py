"""Only this file sees a target that fails with a stack instead of a sentence.

Also one that is found in the wrong folder.
"""

import sys

import pytest

from blockspectra.diagnosis.target import TargetError, load_problem
from blockspectra.problem import Problem

GOOD = """
import torch
from beside import width
from blockspectra import Problem, cross_entropy

data = [(torch.randn(3, width), torch.tensor([0, 1, 1]))]

def make_problem():
    first, last = torch.nn.Linear(width, 3), torch.nn.Linear(3, 2)
    return Problem(torch.nn.Sequential(first, torch.nn.Tanh(), last), cross_entropy, data)

def single():
    return Problem(torch.nn.Linear(width, 2), cross_entropy, data)

def no_problem():
    return 7

def fails():
    return 1 / 0

def no_data():
    return Problem(torch.nn.Linear(2, 2), cross_entropy, [])

def leaves():
    raise SystemExit("bye")

constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with modules of the user's; what they import is forgotten afterwards."""
    known = set(sys.modules)
    (tmp_path / "beside.py").write_text("width = 4\n")
    (tmp_path / "mine_to_measure.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("import torch\nimport not_there_at_all\n")
    (tmp_path / "wrong.py").write_text("def make_problem(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - known:
        if name in ("beside", "mine_to_measure", "broken", "wrong"):
            del sys.modules[name]


def test_a_module_of_the_working_folder_is_found():
    assert isinstance(load_problem("mine_to_measure:make_problem"), Problem)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_in_another_folder_is_found_with_what_lies_beside_it(folder, monkeypatch, absolute):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    path = folder / "mine_to_measure.py" if absolute else "../mine_to_measure.py"
    assert isinstance(load_problem(f"{path}:make_problem"), Problem)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("mine_to_measure", "target must be module:function or file.py:function, .* not 'mine_to_"),
        ("mine_to_measure:", "target must be module:function"),
        ("mine_to_measure:a b", "target must be module:function"),
        ("no_such_module:make_problem", "There is no module no_such_module in the working folder"),
        ("mine_to_measure.sub:f", "There is no module mine_to_measure.sub in the working folder"),
        ("no_such_file.py:make_problem", "There is no file no_such_file.py"),
        ("broken:make_problem", "broken cannot be imported: ModuleNotFoundError: No module named "),
        ("broken.py:make_problem", "broken.py cannot be imported: ModuleNotFoundError: "),
        ("wrong:make_problem", "wrong cannot be imported: SyntaxError: "),
        ("mine_to_measure:make_problm", "has no function make_problm: did you mean make_problem?"),
        ("mine_to_measure:zzz", r"has no function zzz\.$"),
        ("mine_to_measure:constant", "has no function constant"),
        ("mine_to_measure:no_problem", "must return a blockspectra.Problem, not int"),
        ("mine_to_measure:fails", "failed: ZeroDivisionError: division by zero; call it by itself"),
        ("mine_to_measure:no_data", "^The data set is empty: give at least one batch"),
        ("mine_to_measure:leaves", "failed: SystemExit: bye"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(target, sentence):
    with pytest.raises(TargetError, match=sentence) as caught:
        load_problem(target)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_named_like_an_installed_module_is_still_the_file(folder):
    (folder / "json.py").write_text("from mine_to_measure import make_problem, single\n")
    assert isinstance(load_problem("json.py:single"), Problem)
