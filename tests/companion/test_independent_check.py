"""Only this file sees the check of stored spectra report agreement where there is none."""

from dataclasses import replace

import pytest

from companion.experiments.independent_check import IndependentCheck, deviations
from companion.experiments.initial_spectra import InitialSpectra
from companion.store import Store

SPECTRA = InitialSpectra("gpt", "tiny", samples=4, batches=2, steps=4, probes=1)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path))
    return Store("smoke")


def test_spectra_agree_with_differences_of_plain_gradients(store):
    found = deviations(store.get(IndependentCheck(SPECTRA)))
    assert len(found) == 3
    assert found.max() < 1e-5  # the spectra are float32


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_wrong_coefficient_shows(store, monkeypatch, name):
    compute = InitialSpectra.compute

    def wrong(self, store):
        spectra = compute(self, store)
        return replace(spectra, **{name: getattr(spectra, name) * 1.01})

    monkeypatch.setattr(InitialSpectra, "compute", wrong)
    assert deviations(store.get(IndependentCheck(SPECTRA))).max() > 1e-3
