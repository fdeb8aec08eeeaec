"""What a release says of itself, and its wheel: sees files that disagree, or that a wheel lacks.

The JSON schema of CITATION.cff is not to be had from a package that goes with this environment, so
its rules are restated here from version 1.2.0 of the specification, for the keys that are used.
"""

import ast
import datetime
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import blockspectra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
ZENODO = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

TEXT = {"cff-version", "message", "title", "abstract", "version", "license"}
ALLOWED = TEXT | {"type", "authors", "date-released", "keywords", "references"}
PERSON = {"given-names", "family-names", "name-particle", "affiliation", "orcid"}
ENTITY = {"name", "website", "orcid"}
REFERENCE = {"type", "title", "authors", "collection-title", "conference", "year", "identifiers"}
IDENTIFIER = {"doi", "url", "swh", "other"}


def check_authors(authors):
    assert authors
    for author in authors:
        assert set(author) <= ENTITY if "name" in author else set(author) <= PERSON
        assert all(isinstance(value, str) and value for value in author.values())


class TestCitation:
    def test_has_the_required_keys_and_no_unknown_ones(self):
        assert {"cff-version", "message", "title", "authors"} <= set(CFF) <= ALLOWED
        assert CFF["cff-version"] == "1.2.0"
        assert CFF["type"] in {"software", "dataset"}
        assert all(isinstance(CFF[key], str) and CFF[key] for key in TEXT)
        check_authors(CFF["authors"])

    def test_has_a_date_an_spdx_licence_and_keywords_that_differ(self):
        assert isinstance(CFF["date-released"], datetime.date)
        assert CFF["license"] == PROJECT["license"] == "MIT"
        assert len(set(CFF["keywords"])) == len(CFF["keywords"]) > 0
        assert all(isinstance(word, str) for word in CFF["keywords"])

    def test_references_name_type_title_and_authors(self):
        for reference in CFF["references"]:
            assert {"type", "title", "authors"} <= set(reference) <= REFERENCE
            assert reference["type"] == "conference-paper"
            check_authors(reference["authors"])
            assert isinstance(reference["year"], int)
            assert set(reference["conference"]) <= ENTITY | {"date-start", "date-end", "location"}
            for identifier in reference["identifiers"]:
                assert {"type", "value"} <= set(identifier) <= {"type", "value", "description"}
                assert identifier["type"] in IDENTIFIER

    def test_names_the_paper(self):
        (paper,) = CFF["references"]
        assert paper["identifiers"][0]["value"] == "arXiv:2402.16788"


def test_zenodo_says_what_the_citation_says():
    same = {"title": "title", "version": "version", "license": "license", "keywords": "keywords"}
    assert {name: ZENODO[name] for name in same} == {n: CFF[key] for n, key in same.items()}
    assert ZENODO["description"] == CFF["abstract"].strip()
    assert ZENODO["publication_date"] == str(CFF["date-released"])
    assert [creator["name"] for creator in ZENODO["creators"]] == [
        a["name"] for a in CFF["authors"]
    ]
    paper = CFF["references"][0]["identifiers"][0]["value"]
    assert [r["identifier"] for r in ZENODO["related_identifiers"]] == [paper]
    assert (ZENODO["upload_type"], ZENODO["access_right"]) == ("software", "open")


def test_one_version_everywhere():
    released = re.search(r"^## \[(\d[^\]]*)\] - (\S+)$", CHANGES, flags=re.MULTILINE)
    assert blockspectra.__version__ == PROJECT["version"] == CFF["version"] == released[1]
    assert str(CFF["date-released"]) == released[2]
    assert CHANGES.index("## [Unreleased]") < released.start()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the library, built from the working tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


class TestWheel:
    def test_holds_the_library_and_nothing_else(self, wheel):
        sources = {
            path.relative_to(ROOT / "lib").as_posix()
            for path in (ROOT / "lib" / "blockspectra").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        with zipfile.ZipFile(wheel) as content:
            names = {name for name in content.namelist() if ".dist-info/" not in name}
        assert names == sources

    def test_asks_for_every_package_that_it_imports(self):
        imported = set()
        for path in (ROOT / "lib" / "blockspectra").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.partition(".")[0])
        packages = importlib.metadata.packages_distributions()
        wanted = {
            distribution.lower()
            for name in imported - sys.stdlib_module_names - {"blockspectra"}
            for distribution in packages[name]
        }
        assert wanted <= {re.match(r"[\w.-]+", one)[0] for one in PROJECT["dependencies"]}

    def test_works_without_the_repository(self, wheel, tmp_path):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(tmp_path / "site")
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); import torch, blockspectra\n"
            "from blockspectra import Problem, block_spectra, cross_entropy, js0, partition\n"
            "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))\n"
            "data = [(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))]\n"
            "problem = Problem(model, cross_entropy, data)\n"
            "spectra = block_spectra(problem, partition(model), steps=3, probes=2)\n"
            "assert js0(spectra).mean >= 0\n"
            "print(blockspectra.__file__)\n"
        )
        command = [sys.executable, "-I", "-c", program, str(tmp_path / "site")]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.strip()).is_relative_to(tmp_path)
