"""Only this file sees a measurement on the way that disturbs the training, or sees the wrong model.

A Hessian taken in training mode, of other samples at each stage, or that leaves the model in
evaluation mode for the steps behind it, would all give plausible spectra. Oracle: the same training
without a measurement, copies of the model kept on the way, and their spectra afterwards.
"""

import copy

import numpy as np
import pytest

from blockspectra import Problem, full_spectrum
from blockspectra.problem import cross_entropy
from companion import datasets
from companion.experiments.spectra_during_training import SpectraDuringTraining
from companion.setups import setup
from companion.store import Store
from companion.training import OPTIMIZERS, train

# a ResNet has BatchNorm: training and evaluation mode differ
JOB = SpectraDuringTraining(
    *("resnet", "momentum", 0.02, "tiny"),
    training=6,
    batch=8,
    samples=80,
    shares=(0.0, 0.5, 1.0),
    hessian=4,
    steps=5,
    probes=2,
    seed=3,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path_factory.mktemp("store")))
        yield Store("smoke")


@pytest.fixture(scope="module")
def result(store):
    return store.get(JOB)


@pytest.fixture(scope="module")
def by_hand():
    """Copies of the model on its way through a training that nothing interrupts, and its losses."""
    made, kept = setup("resnet", "tiny", samples=80, seed=3), {}
    losses = train(
        made.problem.model,
        cross_entropy,
        datasets.stream(made.data, 8, 3),
        OPTIMIZERS["momentum"],
        0.02,
        steps=6,
        observe=lambda step: kept.update({step: copy.deepcopy(made.problem.model).eval()}),
    )
    return kept, losses, datasets.batches(made.data, 4, 1, 3)


@pytest.mark.parametrize(("stage", "step"), [("init", 0), ("50 %", 3), ("100 %", 6)])
def test_each_stage_is_the_spectrum_of_the_model_at_that_step(result, by_hand, stage, step):
    kept, _, samples = by_hand
    problem = Problem(kept[step], cross_entropy, samples)
    expected = full_spectrum(problem, steps=5, probes=2, seed=3)
    i = result.names.index(stage)
    np.testing.assert_array_equal(result.alpha[i], expected.alpha[0])
    np.testing.assert_array_equal(result.beta[i], expected.beta[0])
    assert result.sizes[i] == expected.sizes[0]
    assert result.meta["loss"][i] == problem.value(samples[0]).item()


def test_stages_differ(result):
    assert result.names == ["init", "50 %", "100 %"]
    assert len(np.unique(result.alpha[:, 0, 0])) == 3


def test_training_is_not_disturbed(result, by_hand):
    assert result.meta["training_loss"] == by_hand[1].tolist()


def test_is_found_again(result, store, monkeypatch):
    monkeypatch.setattr("companion.experiments.spectra_during_training.train", None)
    np.testing.assert_array_equal(store.get(JOB).alpha, result.alpha)


def test_training_that_diverges_is_refused(store):
    wild = SpectraDuringTraining(
        "vgg", "momentum", 1e6, "tiny", training=5, batch=8, samples=80, shares=(1.0,), steps=2
    )
    with pytest.raises(ValueError, match=r"VGG diverges .* at rate 1e\+06: lower the rate\.$"):
        store.get(wild)


@pytest.mark.parametrize("shares", [(), (0.0, 0.01), (0.5, 1.2), (-0.1,)])
def test_stages_that_are_none_or_the_same_are_refused(shares):
    job = SpectraDuringTraining("vgg", "momentum", 0.1, training=10, shares=shares)
    with pytest.raises(ValueError, match="shares of the training from 0 to 1"):
        job.stages()
