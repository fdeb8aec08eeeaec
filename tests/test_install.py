"""What is installed, and how: sees files that say different things about the same version."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if not line.startswith("#")]
made_by_make = pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / ".made").exists(),
    reason="only the environment that make makes has the versions of constraints.txt",
)


def normal(name):
    """The name of a distribution, as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


VERSIONS = {normal(pin.partition("==")[0]): pin.partition("==")[2] for pin in PINS}


def required():
    """Names in pyproject.toml, those of the extras included."""
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(r for extra in extras for r in extra)]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def test_constraints_are_exact_sorted_and_say_how_they_are_made():
    assert "make constraints" in "".join(LINES[:3])
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in PINS), "exact, no local versions"
    assert sorted(PINS, key=str.upper) == PINS
    assert len(VERSIONS) == len(PINS)


def test_constraints_cover_every_dependency():
    assert required() <= set(VERSIONS)


def test_make_installs_every_extra():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = ",".join(PROJECT["optional-dependencies"])
    assert re.findall(r"'\.\[(.*)\]'", makefile) == [extras, extras], "make, make constraints"


def test_bootstrap_tools_are_not_part_of_the_environment():
    assert not {"uv", "pip", "pre-commit", "virtualenv", "cffconvert"} & set(VERSIONS)


def test_environment_yml_installs_the_same():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert content["name"] == PROJECT["name"]
    assert content["channels"] == ["conda-forge"]
    assert "python=3.11" in content["dependencies"]
    (pip,) = (part["pip"] for part in content["dependencies"] if isinstance(part, dict))
    extras = ",".join(PROJECT["optional-dependencies"])
    assert pip == ["-c constraints.txt", f"torch=={VERSIONS['torch']}", f"-e .[{extras}]"]


def test_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]


@made_by_make
def test_installed_versions_are_those_of_the_constraints():
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in VERSIONS}
    assert installed == VERSIONS


@made_by_make
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a few packages need others")
def test_nothing_else_is_installed():
    names = {normal(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    accelerator = {name for name in names if re.match(r"nvidia-|cuda-|triton", name)}
    own = {"blockspectra", "pip", "setuptools"}
    assert names - accelerator - own <= set(VERSIONS)


@made_by_make
def test_requirements_of_all_packages_are_met():
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_a_python_too_old_is_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    python = folder / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.9\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    result = subprocess.run(
        ["make", "reproduce", f"PYTHON={python}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode
    sentence, make = result.stderr.splitlines()
    assert sentence.startswith("Python 3.11, 3.12 or 3.13 is needed, and ")
    assert sentence.endswith(
        "is Python 3.10.9: name another, as in make reproduce PYTHON=python3.11"
    )
    assert make.startswith("make:")
    assert not (folder / ".venv").exists()
