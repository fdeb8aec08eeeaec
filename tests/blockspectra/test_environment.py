"""Sees a manifest that does not say what numbers were computed with."""

import json
import subprocess

from blockspectra.environment import environment


def test_it_names_commit_packages_device_and_precision():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"commit", "dirty", "python", "device", "peak_memory_MiB"} <= set(found)
    assert found["packages"]["torch"].startswith("2.")
    assert found["float32_matmul_precision"] == "highest"
    assert 10 < found["peak_memory_MiB"] < 1e5


def test_without_git_the_commit_is_none(monkeypatch):
    def fails(*arguments, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fails)
    assert (environment()["commit"], environment()["dirty"]) == (None, None)
