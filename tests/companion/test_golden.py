"""Sees a stored number drift while its result keeps its name.

Results are named by what their jobs declare, not by the code that computes them, so a change of
code that changes a number must raise the job's ``VERSION``. Here every job is computed at a tiny
size, and what its chapter reads (λ_max, traces, JS⁰, losses, gaps, step counts) is held against
``golden.json`` to stated tolerances, never to bits: those differ between machines.

Where a test fails: find the fault; or, if the change is meant, raise the ``VERSION`` that it names
and renew the file with ``python tests/companion/test_golden.py``.
"""

import json
import tempfile
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from blockspectra import js0
from blockspectra.distance import heterogeneity, log_spread, noise_floor, zero_share
from blockspectra.spectra import Spectra
from companion import datasets, setups
from companion.experiments.block_diagonality import BlockShares, HessianImage
from companion.experiments.estimator_accuracy import (
    EstimateErrors,
    ExactEigenvalues,
    HeterogeneityBias,
)
from companion.experiments.independent_check import IndependentCheck, IndependentEstimates
from companion.experiments.initial_spectra import InitialSpectra
from companion.experiments.interventions import BlockScales, Interventions
from companion.experiments.man_made_mlp import ManMadeComparison, ManMadeRuns, ManMadeSpectra
from companion.experiments.optimizer_comparison import OptimizerComparison, TrainingRun
from companion.experiments.preconditioned_spectra import SCALINGS, PreconditionedSpectra
from companion.experiments.predictors import GradientStatistics
from companion.experiments.pretraining import (
    FineTuning,
    FineTuningRun,
    PretrainedSpectra,
    Pretraining,
)
from companion.experiments.quadratic_runs import Case, Family, QuadraticCounts, QuadraticCurves
from companion.experiments.spectra_during_training import (
    BlockSpectraDuringTraining,
    SpectraDuringTraining,
    spread_by_stage,
)
from companion.pretrained.nano_gpt import NanoGPT
from companion.rate_search import gap
from companion.store import Job, Store

FILE = Path(__file__).with_name("golden.json")
# relative; curvature in float32 agrees to 1e-4 between machines, what was trained for a few steps
# to 1e-3, and a count of steps to the next one or two
TOLERANCE = {"spectra": 1e-3, "training": 1e-2, "counts": 2e-2, "exact": 1e-9}


def of_spectra(spectra: Spectra) -> dict[str, float]:
    """What chapters read of block spectra."""
    measures = heterogeneity(spectra)["value"]
    found = {
        "largest λ_max": spectra.largest.max(),
        "smallest λ_max": spectra.largest.min(),
        "sum of traces": np.nansum(spectra.traces()) / spectra.probes,
        "last beta": np.nanmean(np.abs(spectra.beta[:, 0, 0])),
        "JS⁰": js0(spectra).mean,
        "noise floor": noise_floor(spectra),
        "share of zeros": zero_share(spectra).mean(),
        "lost orthogonality is small": float(spectra.orthogonality.max() < 1e-5),
    }
    return found | {f"{name}": measures[name] for name in ("w1, signed-log", "spread of λ_max")}


def of_scales(spectra: Spectra) -> dict[str, float]:
    """What chapter 20 reads."""
    found = {of: log_spread(spectra, of).mean for of in ("rms", "largest", "trace")}
    return found | {"v̂": float(np.median(spectra.meta["mean_squares"]))}


TINY = {"samples": 4, "steps": 40, "probes": 2}
NANO = NanoGPT("tiny", steps=12, batch=4, times=1)
MLP = {"side": 7, "width": 8}
RUN = {"size": "tiny", "samples": 40, "batch": 8, "steps": 20}
TRAINING = {"hidden": 3, "side": 4, "inputs": 6, "samples": 40, "steps": 100, "batch": 16}
EXACT = ExactEigenvalues(width=8, samples=8)


def score(table) -> dict[str, float]:
    return {"score": table["score"].iloc[0], "first loss": table["loss"].iloc[0]}


def best_scores(table) -> dict[str, float]:
    best = table[table["part"] == "best"]
    return {f"score of {name}": part["score"].mean() for name, part in best.groupby("optimizer")}


def medians(*columns):
    return lambda table: {column: float(table[column].median()) for column in columns}


def gap_and_scores(table) -> dict[str, float]:
    return {"gap": gap(table).mean, **best_scores(table)}


#: job → (kind of tolerance, what is read of its result)
JOBS: dict[Job, tuple] = {
    **{InitialSpectra(m, "tiny", **TINY): ("spectra", of_spectra) for m in setups.REDUCED},
    **{
        PreconditionedSpectra("gpt", name, "tiny", 4, 3, steps=6): ("spectra", of_scales)
        for name in SCALINGS
    },
    IndependentCheck(InitialSpectra("gpt", "tiny", **TINY)): (
        "spectra",
        medians("alpha_by_differences", "beta_by_differences"),
    ),
    IndependentEstimates(InitialSpectra("gpt", "tiny", **TINY)): (
        "spectra",
        medians("largest_anew", "trace_anew"),
    ),
    SpectraDuringTraining(
        *("resnet", "momentum", 0.02, "tiny"),
        training=10,
        batch=8,
        samples=80,
        shares=(0.0, 1.0),
        hessian=4,
        steps=8,
    ): (
        "training",
        lambda s: {"last loss": s.meta["training_loss"][-1], "largest": s.largest[-1]},
    ),
    BlockSpectraDuringTraining(
        *("gpt", "adamw", 0.003, "tiny"),
        training=10,
        batch=8,
        samples=80,
        shares=(0.0, 1.0),
        hessian=4,
        steps=4,
    ): (
        "training",
        lambda s: {
            f"{row.stage}, {row.coordinates}": row.spread for row in spread_by_stage(s).itertuples()
        },
    ),
    GradientStatistics("gpt", "tiny", batch=8, gradients=4): (
        "spectra",
        medians("mean_square", "square_of_mean", "imbalance"),
    ),
    TrainingRun("vgg", "momentum", 0.1, 0, **RUN): ("training", score),
    TrainingRun("gpt", "adamw", 0.01, 0, **RUN): ("training", score),
    OptimizerComparison("vgg", seeds=1, rates=3, **RUN): ("training", gap_and_scores),
    BlockScales("gpt", "tiny", 8, gradients=2): ("spectra", medians("square", "largest", "rms")),
    Interventions("gpt", seeds=1, arms=("momentum", "gradient", "adamw"), **RUN): (
        "training",
        gap_and_scores,
    ),
    ManMadeSpectra(3.0, steps=12, samples=32, probes=2, **MLP): ("spectra", of_spectra),
    ManMadeRuns(3.0, "adam", (0.01, 0.03), (0, 1), batch=16, steps=20, **MLP): (
        "training",
        lambda t: {"loss": t["loss"].mean()},
    ),
    ManMadeComparison(3.0, batch=16, steps=12, rates=3, searched=1, seeds=2, **MLP): (
        "training",
        lambda t: {"loss": t.loc[t["part"] == "best", "loss"].mean()},
    ),
    BlockShares("gaussian", 5, **TRAINING): ("training", medians("share", "permuted", "value")),
    HessianImage("images", 4, **TRAINING): (
        "training",
        lambda t: {"mean": float(t.iloc[:, 3:].replace(-np.inf, np.nan).mean(axis=None))},
    ),
    EXACT: ("exact", lambda t: t.groupby("block")["eigenvalue"].max().to_dict()),
    EstimateErrors(EXACT, (4, 16), (1, 2)): ("spectra", medians("w1", "js", "top")),
    HeterogeneityBias(width=6, samples=8, steps=(10, 20)): (
        "spectra",
        medians("exact", "estimate"),
    ),
    Pretraining(NANO): ("training", lambda t: {"last loss": t["loss"].iloc[-1]}),
    PretrainedSpectra(NANO, True, samples=4, steps=8, probes=2): ("training", of_spectra),
    FineTuningRun(NANO, True, "adamw", 0.01, 0, samples=40, batch=8, steps=12): (
        "training",
        score,
    ),
    FineTuning(NANO, samples=40, batch=8, steps=8, seeds=1, rates=3): ("training", best_scores),
    QuadraticCounts(Case(3, 2), 4): ("counts", medians("gd", "adam", "condition", "bound")),
    QuadraticCounts(Family(1e3, 30.0, 2), 3): ("counts", medians("gd", "adam", "kappa")),
    QuadraticCounts(
        Case(1, 2, InitialSpectra("gpt", "tiny", **TINY), ("{first}", "h.0.mlp.c_fc"), count=5), 2
    ): ("counts", medians("gd", "adam", "block_kappa")),
    QuadraticCurves(Case(4, 3), 2, steps=100, far=500): ("counts", medians("median")),
}


def of_data() -> dict[str, float]:
    """A number of each data set that moves with its pixels, tokens, order and split."""
    made = {
        "photographs": datasets.photographs(crops=2, size=8),
        "MNIST": datasets.mnist(size=7),
        "digits": datasets.digits("test"),
        "Fashion-MNIST": datasets.fashion("test", images=4),
        "Shakespeare": datasets.shakespeare(windows=4),
        "dialogue": datasets.dialogue(windows=4, vocabulary=100),
        "encyclopedia": datasets.encyclopedia(windows=4),
        "encyclopedia, 4,000 tokens": datasets.encyclopedia(windows=4, vocabulary=4000),
    }
    weights = torch.linspace(1, 2, 64, dtype=torch.float64)
    return {
        name: float(one.inputs[:3].flatten()[:64].double() @ weights) for name, one in made.items()
    }


def measured(store: Store) -> dict[str, dict[str, float]]:
    """Compute every job, and read what is held."""
    found = {"data": of_data()}
    for job, (_, read) in JOBS.items():
        found[label(job)] = {key: float(value) for key, value in read(store.get(job)).items()}
    return found


def label(job: Job) -> str:
    return f"{type(job).__name__}: {job.name}"


class RecordingStore(Store):
    """A store that notes which jobs each job has read on its way."""

    def __init__(self, preset: str):
        super().__init__(preset)
        self.read: dict[Job, set[Job]] = {}
        self._open: list[Job] = []

    def get(self, job: Job):
        if self._open:
            self.read.setdefault(self._open[-1], set()).add(job)
        self._open.append(job)
        try:
            return super().get(job)
        finally:
            self._open.pop()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKSPECTRA_RESULTS", str(tmp_path_factory.mktemp("store")))
        return RecordingStore("smoke")


@pytest.fixture(scope="module")
def numbers(store):
    return measured(store)


GOLDEN = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


@pytest.mark.parametrize("job", JOBS, ids=label)
def test_a_job_gives_the_numbers_that_its_version_stands_for(numbers, job):
    kind, _ = JOBS[job]
    expected, found = GOLDEN[label(job)], numbers[label(job)]
    assert set(found) == set(expected)
    moved = {
        key: f"{value:.6g} became {found[key]:.6g}"
        for key, value in expected.items()
        if found[key] != pytest.approx(value, rel=TOLERANCE[kind], abs=1e-12, nan_ok=True)
    }
    assert not moved, (
        f"{moved}: find the fault, or raise {type(job).__name__}.VERSION and renew {FILE.name}"
    )


def test_the_data_are_what_they_were(numbers):
    assert numbers["data"] == pytest.approx(GOLDEN["data"], rel=1e-6)


def test_every_class_of_jobs_is_held():
    """A class that is not here could change its numbers unseen."""
    from companion import experiments, pretrained

    def below(job):
        return {job} | {c for sub in job.__subclasses__() for c in below(sub)}

    packages = (experiments.__name__, pretrained.__name__)
    known = {c for c in below(Job) if c.__module__.startswith(packages)}
    assert known <= {type(job) for job in JOBS} | {c for job in JOBS for c in job.MADE_OF}


def test_a_result_is_renamed_with_the_version_of_every_job_that_it_is_made_of(store, numbers):
    """Or a raised VERSION would leave results that were made of the old numbers."""

    def fields_of(one):
        inner = [value for value in vars(one).values() if is_dataclass(value)]
        return {type(one)}.union(*map(fields_of, inner))

    for job, read in store.read.items():
        named = {*type(job).MADE_OF, *fields_of(job)}
        assert {type(one) for one in read} <= named, job
        assert {below for one in read for below in type(one).MADE_OF} <= named, job
    assert {OptimizerComparison, ManMadeComparison, FineTuning, Interventions} <= {
        type(job) for job in store.read
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKSPECTRA_RESULTS", folder)
        text = json.dumps(measured(Store("smoke")), indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
