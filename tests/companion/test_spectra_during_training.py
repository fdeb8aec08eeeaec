"""Only this file sees a measurement on the way that disturbs the training, or sees the wrong model.

A Hessian taken in training mode, of other samples at each stage, or that leaves the model in
evaluation mode for the steps behind it, would all give plausible spectra. Oracle: the same training
without a measurement, copies of the model kept on the way, and their spectra afterwards.
"""

import copy

import numpy as np
import pytest

from blockspectra import Problem, block_spectra, full_spectrum, partition
from blockspectra.problem import cross_entropy
from companion import datasets
from companion.experiments import optimizer_comparison
from companion.experiments.spectra_during_training import (
    BEST_RATES,
    BlockSpectraDuringTraining,
    SpectraDuringTraining,
    along_training,
    spread_by_stage,
)
from companion.parameters import at_preset
from companion.rate_search import grids_table
from companion.setups import setup
from companion.store import Store, declare, stored
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


#: the same training by blocks, at fewer stages
BLOCKS = BlockSpectraDuringTraining(**vars(JOB) | {"shares": (0.0, 0.5), "steps": 3, "probes": 1})


@pytest.mark.parametrize(("stage", "step"), [("init", 0), ("50 %", 3)])
def test_blocks_of_a_stage_are_those_of_the_model_at_that_step(store, by_hand, stage, step):
    """v̂ by plain backward passes over batches of the training data, the first the Hessian's."""
    result, model = store.get(BLOCKS), by_hand[0][step]
    batches = datasets.batches(setup("resnet", "tiny", samples=80, seed=3).data, 4, 16, 3)
    squares = {name: 0 for name, _ in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        cross_entropy(model, batch).backward()
        for name, parameter in model.named_parameters():
            squares[name] = squares[name] + parameter.grad.double().square().flatten() / 16
    problem, blocks = Problem(model, cross_entropy, batches[:1]), partition(model)
    scales = {b.name: squares[f"{b.name}.weight"].sqrt() + 1e-8 for b in blocks}
    for coordinates, preconditioner in (("none", None), ("adam", scales)):
        spectra = block_spectra(
            problem, blocks, steps=3, probes=1, seed=3, preconditioner=preconditioner
        )
        of_stage = result.select([f"{stage}, {coordinates}, {name}" for name in spectra.names])
        np.testing.assert_allclose(of_stage.alpha, spectra.alpha, rtol=1e-3, atol=1e-5)


def test_spread_has_a_row_for_each_stage_in_both_coordinates(store):
    table = spread_by_stage(store.get(BLOCKS))
    rows = table[["share", "coordinates"]].values.tolist()
    assert rows == [[0.0, "none"], [0.0, "adam"], [0.5, "none"], [0.5, "adam"]]
    assert table["spread"].nunique() == 4


def test_rates_are_the_best_of_the_stored_comparisons():
    declared = declare(optimizer_comparison.jobs, at_preset("06_adam_vs_sgd", "full"))
    for job in along_training("full"):
        (runs,) = stored([one for one in declared if one.model == job.model], "full")
        best = grids_table(runs).set_index("optimizer")["best"]
        assert job.rate == pytest.approx(best[job.optimizer], rel=1e-3)
        assert job.seed in set(runs.loc[runs["part"] == "best", "seed"])
    assert set(BEST_RATES) == {job.model for job in along_training("full")}
