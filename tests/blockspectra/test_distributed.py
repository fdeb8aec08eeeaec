"""Only this file sees what goes wrong between processes: with real ones, over gloo.

A batch that two ranks count or none does, a sum of products that do not belong together, a rank
that waits forever for one that has failed, a killed run that goes on elsewhere than it was: one
process alone has none of these. Oracle: the same call in one process.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from blockspectra import (
    Problem,
    ProblemError,
    Spectra,
    block_spectra,
    full_spectrum,
    hessian,
    lanczos,
    partition,
    slq,
)
from blockspectra.checks import checked
from blockspectra.distributed import Ranks
from blockspectra.spectra import ARRAYS

CALL = {"steps": 8, "probes": 3, "seed": 1}
GIB = 2**30


def problem_of(sizes=(3, 1, 2), *, weights=0, order=1):
    """A small MLP in float64, with batches of these sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(weights)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Tanh()
        ).double()
        torch.manual_seed(7)
        batches = torch.randn(sum(sizes), 2, 4, dtype=torch.float64).split(sizes)
    return Problem(model, _loss, batches[::order])


def _loss(model, batch):
    return (model(batch[:, 0, :3]) - batch[:, 1]).square().sum(-1).sin().mean()


def measured(problem, **settings):
    return block_spectra(problem, partition(problem.model), **CALL | settings)


def arrays(spectra):
    return [getattr(spectra, key) for key in ARRAYS]


def same_bits(found, expected):
    return all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))


# ---- processes: each runs work(rank, …); a failure is its result --------------------------------

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["blockspectra", "torch.fx.experimental.symbolic_shapes"])


def _process(work, rank, size, meeting, pipe, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        pipe.send(work(rank, *arguments))
    except Exception as error:
        pipe.send(error)
    dist.destroy_process_group()


def in_processes(folder, work, *arguments, size=2):
    """What each rank returned or raised; None where it was killed. Not one may wait forever."""
    meeting, running = folder / uuid.uuid4().hex, []
    for rank in range(size):
        ours, theirs = SERVER.Pipe()
        process = SERVER.Process(
            target=_process, args=(work, rank, size, meeting, theirs, arguments), daemon=True
        )
        process.start()
        theirs.close()  # so that its end is seen
        running.append((process, ours))
    results = []
    for process, pipe in running:
        try:
            assert pipe.poll(60), "a rank waits forever"
            results.append(pipe.recv())
        except EOFError:
            results.append(None)
        process.join(10)
    return results


# ---- the same numbers --------------------------------------------------------------------------


def call(rank, sizes, settings):
    return arrays(measured(problem_of(sizes), **settings))


@pytest.mark.parametrize("size", [2, 3])
def test_by_batches_of_unequal_sizes_it_is_the_mean_over_all_samples(tmp_path, size):
    found = in_processes(tmp_path, call, (3, 1, 2), {"ranks": "batches"}, size=size)
    assert all(same_bits(one, found[0]) for one in found)
    problem = problem_of()
    pooled = Problem(problem.model, _loss, [torch.cat(problem.batches)])
    for one in (problem, pooled):
        for a, b in zip(found[0], arrays(measured(one)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [{}, {"basis": "none"}, {"probes": 1}],
    ids=["plain", "no basis", "more ranks than probes"],
)
def test_by_blocks_it_is_the_single_process_to_the_bit(tmp_path, settings):
    found = in_processes(tmp_path, call, (3, 1), {"ranks": "blocks", **settings}, size=3)
    expected = call(0, (3, 1), settings)
    assert all(same_bits(one, expected) for one in found)


def both_ways(rank, settings):
    return [call(rank, (3, 1, 2), {"ranks": split, **settings}) for split in ("batches", "blocks")]


def test_ranks_take_the_probes_and_steps_that_one_process_takes_under_a_tolerance(tmp_path):
    settings = {"tolerance": 0.05, "steps": 8, "probes": 6}
    expected = call(0, (3, 1, 2), settings)
    first, second = (taken[taken > 0] for taken in expected[2])
    assert len(first) != len(second)  # else this would show nothing
    found = in_processes(tmp_path, both_ways, settings)
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))
    for a, b in zip(found[0][0], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
    assert same_bits(found[0][1], expected)


def short_of_memory(rank):
    """Rank 0 has room for all, rank 1 for one graph of two, and for two runs of six."""
    hessian.GradientGraph.nbytes = lambda graph: GIB
    slq.run_bytes = lambda *_: GIB // 5
    least = (1 + hessian.SCRATCH + 2 / 5) * GIB
    slq.available = lambda memory, device: int(least) + 1 if rank else 100 * GIB
    spectra = measured(problem_of((2, 1, 3, 2)), ranks="batches", memory="named")
    return spectra.meta["products"], arrays(spectra)


def test_ranks_with_less_memory_than_others_take_the_same_steps(tmp_path):
    found = in_processes(tmp_path, short_of_memory)
    assert all("made again" in how for how, _ in found)
    assert same_bits(found[0][1], found[1][1])
    for a, b in zip(found[0][1], call(0, (2, 1, 3, 2), {}), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def whole_model(rank, split):
    return arrays(full_spectrum(problem_of(), **CALL, ranks=split))


def test_ranks_without_a_run_wait_for_the_others(tmp_path):
    found = in_processes(tmp_path, whole_model, "blocks", size=4)
    assert all(same_bits(one, whole_model(0, None)) for one in found)


def counted(rank):
    with Ranks("blocks", torch.device("cpu")) as ranks:
        return ranks.neighbours


def test_ranks_know_how_many_share_their_memory(tmp_path):
    assert in_processes(tmp_path, counted) == [2, 2]


# ---- ranks that differ -------------------------------------------------------------------------

DIFFERENT = {
    "probes": (lambda: problem_of(), {"seed": 2}),
    "weights": (lambda: problem_of(weights=1), {}),
    "batches": (lambda: problem_of((2, 1, 3), order=-1), {}),
    "settings": (lambda: problem_of(), {"steps": 7}),
    "ranks": (lambda: problem_of(), {"ranks": "blocks"}),
    "blocks": (lambda: problem_of(), {"blocks": slice(1)}),
    "checkpoint": (lambda: problem_of(), {"checkpoint": "b"}),
}


def refusals(rank, folder):
    """Each case on rank 1 beside the same call on rank 0; the group must survive all of them."""
    found = {}
    measured(problem_of(), ranks="batches", checkpoint=folder / "b")
    for what, (problem, settings) in DIFFERENT.items():
        problem, settings = (problem(), dict(settings)) if rank else (problem_of(), {})
        blocks = partition(problem.model)[settings.pop("blocks", slice(None))]
        if what == "checkpoint":
            settings["checkpoint"] = folder / settings.get("checkpoint", "a")
        try:
            block_spectra(problem, blocks, **{**CALL, "ranks": "batches", **settings})
        except ValueError as error:
            found[what] = str(error)
    return found, arrays(measured(problem_of(), ranks="batches"))


def test_ranks_that_differ_are_refused_on_all_of_them_in_one_sentence(tmp_path):
    (first, spectra), (second, others) = in_processes(tmp_path, refusals, tmp_path)
    assert first == second
    assert list(first) == list(DIFFERENT)
    for what, sentence in first.items():
        assert sentence.startswith("Rank 1 differs from rank 0 in ")
        assert what in sentence.partition(":")[0].split(" in ")[1].split(", ")
    assert same_bits(spectra, others)


def checking(rank, batches, wrong):
    """What this rank evaluates while it checks, and what it raises."""
    seen, model = [], problem_of().model

    def loss(model, batch):
        seen.append(len(batch))
        factor = 1 + (len(batch) == wrong)  # the mean of one batch is twice what it should be
        return factor * _loss(model, batch)

    problem = Problem(model, loss, batches)
    try:
        with problem.curvature_mode(), Ranks("batches", torch.device("cpu")) as team:
            checked(problem, list(model.parameters()), ranks=team)
    except (ProblemError, ConnectionError) as error:
        return seen, type(error), str(error)
    return seen, None, ""


def test_each_rank_checks_its_own_batches(tmp_path):
    batches = list(problem_of((3, 4, 5, 10)).batches)
    for rank, (seen, error, _) in enumerate(in_processes(tmp_path, checking, batches, 0)):
        own = batches[rank::2]
        assert error is None
        alone = [size for size in seen if size in (3, 4, 5, 10)]
        assert set(alone) == set(map(len, own))


def test_means_are_compared_across_ranks(tmp_path):
    batches = list(problem_of((3, 4)).batches)
    first, second = in_processes(tmp_path, checking, batches, 4)
    assert first[1] is ProblemError
    assert "The losses of batches 1 and 2 are" in first[2]
    assert second[1] is None  # it has no batch after its own


def test_a_rank_without_a_batch_is_refused_on_all_of_them(tmp_path):
    for error in in_processes(tmp_path, call, (3, 1), {"ranks": "batches"}, size=3):
        assert isinstance(error, ValueError)
        assert "3 ranks needs as many batches, not 2" in str(error)


def other_products(rank):
    """Rank 1 has fewer products, of other sizes, or of other vectors."""
    found = []
    for change in (None, "number", "size", "vector"):
        change = change if rank else None
        vectors = [torch.ones(4 + (change == "size")).double() for _ in range(2)]
        vectors[0] += change == "vector"
        vectors = vectors[: 1 if change == "number" else 2]
        with Ranks("batches", torch.device("cpu")) as ranks:
            try:
                found.append(float(ranks.sum([v.clone() for v in vectors], vectors)[0][0]))
            except ValueError as error:
                found.append(str(error))
    return found


def test_products_that_do_not_belong_together_are_never_summed(tmp_path):
    first, second = in_processes(tmp_path, other_products)
    assert first == second
    assert first[0] == 2.0
    assert len(first) == 4
    assert all("not at the same products" in sentence for sentence in first[1:])


@pytest.mark.parametrize(
    ("split", "sentence"), [("layers", "choose one of batches, blocks"), ("blocks", "torchrun")]
)
def test_a_split_that_cannot_be_made_says_what_to_do(split, sentence):
    with pytest.raises(ValueError, match=sentence):
        measured(problem_of(), ranks=split)


# ---- ranks that fail ---------------------------------------------------------------------------


def failing(rank, split):
    """A product of rank 1 fails; that is caught, as in a notebook that goes on."""
    problem, product, made = problem_of((1,) * 8), hessian.GradientGraph.product, []

    def limited(graph, *arguments):
        made.append(1)
        if rank == 1 and len(made) == 9:
            raise ZeroDivisionError("the data is gone")
        return product(graph, *arguments)

    hessian.GradientGraph.product = limited
    try:
        measured(problem, ranks=split)
    except (ZeroDivisionError, ConnectionError) as error:
        return error, arrays(measured(problem, ranks=split))


@pytest.mark.parametrize(("split", "size"), [("batches", 4), ("blocks", 2)])
def test_a_failure_on_one_rank_ends_the_waiting_of_the_others(tmp_path, split, size):
    found = in_processes(tmp_path, failing, split, size=size)
    (failed, spectra), lost = found.pop(1), found
    assert isinstance(failed, ZeroDivisionError)
    for error, others in lost:
        assert isinstance(error, ConnectionError)
        assert "its own message says why" in str(error)
        assert same_bits(others, spectra)  # the script's own group is as it was


def killed(rank, split, folder, after=None):
    """Number of steps taken and the result, where rank 1 was not killed after some steps."""
    taken, absorb = [], lanczos.Lanczos.absorb

    def counted(run, product):
        absorb(run, product)
        taken.append(run.step)
        if rank == 1 and len(taken) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    lanczos.Lanczos.absorb = counted
    spectra = measured(problem_of((1,) * 4), ranks=split, checkpoint=folder)
    return len(taken), arrays(spectra)


@pytest.mark.parametrize(("split", "left"), [("batches", [32, 32]), ("blocks", [0, 8])])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, split, left, monkeypatch):
    (_, expected), _ = in_processes(tmp_path, killed, split, tmp_path / "whole")
    lost, dead = in_processes(tmp_path, killed, split, tmp_path / "kept", 21)
    assert isinstance(lost, ConnectionError)
    assert dead is None
    resumed = in_processes(tmp_path, killed, split, tmp_path / "kept")
    assert all(same_bits(found, expected) for _, found in resumed)
    assert [steps for steps, _ in resumed] == left  # of 48, or of 24 each by blocks
    if split == "blocks":  # one process finds what ranks have kept
        monkeypatch.delattr(lanczos.Lanczos, "absorb")
        assert same_bits(call(0, (1,) * 4, {"checkpoint": tmp_path / "kept"}), expected)


SCRIPT = """
import sys
import torch.distributed as dist
from test_distributed import measured, problem_of

dist.init_process_group("gloo")
spectra = measured(problem_of(), ranks="blocks", progress=False)
if dist.get_rank() == 0:
    spectra.save(sys.argv[1])
    measured(problem_of(), ranks="blocks")  # waits for the other rank
else:
    sys.exit("no more data")
"""


def test_under_torchrun_a_rank_that_ends_ends_the_others(tmp_path):
    script, kept = tmp_path / "measure.py", tmp_path / "spectra.npz"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*command, str(script), str(kept)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode != 0
    assert "no more data" in run.stderr
    assert same_bits(arrays(Spectra.load(kept)), call(0, (3, 1, 2), {}))
