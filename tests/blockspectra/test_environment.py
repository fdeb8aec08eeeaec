"""Sees a manifest that does not say what numbers were computed with."""

import json
import subprocess

import torch

from blockspectra.environment import environment


def test_it_names_commit_packages_device_and_precision():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"commit", "dirty", "python", "device", "peak_memory_MiB"} <= set(found)
    assert found["packages"]["torch"].startswith("2.")
    assert found["float32_matmul_precision"] == "highest"
    assert 10 < found["peak_memory_MiB"] < 1e5


def test_the_device_is_that_of_the_computation_not_what_else_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert environment()["device"] == environment("cuda:0")["device"] == "NVIDIA H200"
    assert environment("cpu")["device"].startswith("CPU")


def test_without_git_the_commit_is_none(monkeypatch):
    def fails(*arguments, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fails)
    assert (environment()["commit"], environment()["dirty"]) == (None, None)
