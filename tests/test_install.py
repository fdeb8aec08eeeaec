"""What is installed, and how: sees files that say different things about the same version.

Only this file sees a pinned package that some Python refuses, a failed installation without a
reason, and a `make` that writes into a home where nothing can be written.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

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
    assert sorted(VERSIONS) == [*VERSIONS]
    assert len(VERSIONS) == len(PINS)


def test_constraints_cover_every_dependency():
    assert required() <= set(VERSIONS)


def test_make_installs_every_extra():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = ",".join(PROJECT["optional-dependencies"])
    assert re.findall(r"^EXTRAS := (.*)$", makefile, flags=re.MULTILINE) == [extras]


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


def installed():
    """Distributions by name, less what belongs to the accelerator, this project and pip."""
    found = {normal(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    others = re.compile(r"nvidia-|cuda-|triton$|blockspectra$|pip$")
    return {name: distribution for name, distribution in found.items() if not others.match(name)}


@made_by_make
def test_installed_versions_are_those_of_the_constraints():
    versions = {name: d.version.partition("+")[0] for name, d in installed().items()}
    assert versions.items() <= VERSIONS.items()
    assert required() <= set(versions)


@made_by_make
@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_every_python_may_install_the_constraints(python):
    wanted = {name: d.metadata["Requires-Python"] or "" for name, d in installed().items()}
    assert not {
        name: versions for name, versions in wanted.items() if python not in SpecifierSet(versions)
    }


@made_by_make
def test_requirements_of_all_packages_are_met():
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def make(*arguments, **environment):
    """Run make as a user would, outside the make that runs the tests."""
    ours = ("MAKE", "XDG_", "MPL", "IPYTHON", "JUPYTER")
    own = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["make", *arguments], env=own | environment, capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path):
    """What make needs of the repository, in a folder with a space in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def script(path, text):
    """Write a program that stands for Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_python_too_old_is_refused_in_one_sentence(folder):
    python = script(folder / "python3", '[ "$1" = --version ] && echo Python 3.10.9')
    result = make("-C", folder, "reproduce", f"PYTHON={python}")
    assert result.returncode
    sentence, failed = result.stderr.splitlines()
    assert sentence.startswith("Python 3.11, 3.12 or 3.13 is needed, and ")
    assert sentence.endswith(
        "is Python 3.10.9: name another, as in make reproduce PYTHON=python3.11"
    )
    assert failed.startswith("make:")
    assert not (folder / ".venv").exists()


def test_a_failed_installation_shows_the_reason_of_pip(folder):
    script(folder / "pip", 'echo "The user requested (constraint) soupsieve==4.1.2"; exit 1')
    python = script(
        folder / "python3",
        f'[ "$2" != venv ] || {{ mkdir -p .venv/bin && cp "{folder}/pip" .venv/bin/python; }}',
    )
    result = make("-C", folder, "reproduce", f"PYTHON={python}")
    assert result.returncode
    *reasons, sentence, failed = result.stderr.splitlines()
    assert "The user requested (constraint) soupsieve==4.1.2" in reasons
    assert "build/install.log" in sentence
    assert failed.startswith("make:")
    assert not (folder / ".venv/.made").exists()


class TestSurroundings:
    """What the commands of make find in their environment."""

    @staticmethod
    def seen(folder, **environment):
        target = folder / "print.mk"
        target.write_text("print:\n\t@env\n")
        printed = make("-C", folder, "-f", "Makefile", "-f", target, "print", **environment).stdout
        return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)

    def test_figures_are_inline_whatever_the_user_has_set(self, folder):
        assert "MPLBACKEND" not in self.seen(folder, MPLBACKEND="Agg")

    @pytest.mark.parametrize("home", ["", "/nonexistent", "/dev/null"])
    def test_caches_go_under_build_where_there_is_no_home(self, folder, home):
        seen = self.seen(folder, HOME=home, IPYTHONDIR="/elsewhere")
        names = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
        assert all(Path(seen[name]).is_relative_to(folder / "build") for name in names)
        assert seen["IPYTHONDIR"] == "/elsewhere"

    def test_a_home_that_can_be_written_to_is_used(self, folder):
        seen = self.seen(folder, HOME=str(folder))
        assert not [name for name, value in seen.items() if value.startswith(f"{folder}/build")]
