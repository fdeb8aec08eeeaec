"""Only this file sees what goes wrong between processes: with real ones, over gloo.

A run that two ranks take or none does, ranks that measure two problems, a rank that waits forever
for one that has failed, a killed run that goes on elsewhere than it was: one process alone has none
of these. Oracle: the same call in one process.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from blockspectra import Problem, Spectra, block_spectra, hessian, lanczos, partition, slq
from blockspectra.blocks import whole
from blockspectra.distributed import Ranks
from blockspectra.spectra import ARRAYS

CALL = {"steps": 8, "probes": 3, "seed": 1}


def problem_of(sizes=(3, 1, 2), *, weights=0, order=1, factor=1):
    """A small MLP in float64, with batches of these sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(weights)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Tanh()
        ).double()
        torch.manual_seed(7)
        batches = torch.randn(sum(sizes), 2, 4, dtype=torch.float64).split(sizes)

    def loss(model, batch):
        return factor * (model(batch[:, 0, :3]) - batch[:, 1]).square().sum(-1).sin().mean()

    return Problem(model, loss, batches[::order])


def measured(problem, blocks=slice(None), **settings):
    return block_spectra(problem, partition(problem.model)[blocks], **CALL | settings)


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


def call(rank, settings, ranks=None):
    return arrays(measured(problem_of(), **settings, ranks=ranks))


SETTINGS = {
    "plain": {},
    "no basis": {"basis": "none"},
    "more ranks than probes": {"probes": 1},
    "a rank without a run": {"probes": 1, "blocks": slice(1)},
    "a tolerance": {"tolerance": 0.05, "probes": 6},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ranks_have_the_spectra_of_one_process_to_the_bit(tmp_path, settings):
    expected = call(0, settings)
    if "tolerance" in settings:
        first, second = (taken[taken > 0] for taken in expected[2])
        assert len(first) != len(second)  # else this would show nothing
    found = in_processes(tmp_path, call, settings, "blocks", size=3)
    assert all(same_bits(one, expected) for one in found)


def full(rank, ranks=None):
    problem = problem_of()
    return arrays(block_spectra(problem, [whole(problem.model)], **CALL, ranks=ranks))


def test_the_probes_of_one_block_are_shared_out(tmp_path):
    assert all(same_bits(one, full(0)) for one in in_processes(tmp_path, full, "blocks"))


def short_of_memory(rank):
    """Rank 0 keeps all graphs, rank 1 has no room for more than one."""
    hessian.GradientGraph.nbytes = lambda graph: 2**30
    slq.available = lambda memory, device: (4 if rank else 100) * 2**30
    spectra = measured(problem_of(), ranks="blocks", memory="named")
    return spectra.meta["products"], arrays(spectra)


def test_ranks_with_less_memory_make_graphs_again_and_have_the_same_bits(tmp_path):
    (how, first), (other, second) = in_processes(tmp_path, short_of_memory)
    assert how == other
    assert how.count("made again") == how.count("kept graphs") == 1
    assert same_bits(first, call(0, {}))
    assert same_bits(second, first)


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
    "number of probes": (lambda: problem_of(), {"probes": 4}),
    "blocks": (lambda: problem_of(), {"blocks": slice(1)}),
    "checkpoint": (lambda: problem_of(), {"checkpoint": "kept"}),
    "loss": (lambda: problem_of(factor=2), {}),
}


def refusals(rank, folder):
    """Each case on rank 1 beside the same call on rank 0; the group must survive all of them."""
    found = {}
    for what, (problem, settings) in DIFFERENT.items():
        problem, settings = (problem(), dict(settings)) if rank else (problem_of(), {})
        if "checkpoint" in settings:
            settings["checkpoint"] = folder / settings["checkpoint"]
        try:
            measured(problem, ranks="blocks", **settings)
        except ValueError as error:
            found[what] = str(error)
    return found, arrays(measured(problem_of(), ranks="blocks"))


def test_ranks_that_differ_are_refused_on_all_of_them_in_one_sentence(tmp_path):
    (first, spectra), (second, others) = in_processes(tmp_path, refusals, tmp_path)
    assert first == second
    assert list(first) == list(DIFFERENT)
    for what, sentence in first.items():
        assert sentence.startswith("Rank 1 differs from rank 0 in ")
        assert what in sentence.partition(":")[0].split(" in ")[1].split(", ")
    assert same_bits(spectra, others)


def nearly_equal(rank):
    """The loss of rank 1 differs in its last digits, as on another processor."""
    return arrays(measured(problem_of(factor=1 + 1e-9 * rank), ranks="blocks"))


def test_ranks_whose_losses_differ_by_rounding_are_not_refused(tmp_path):
    first, second = in_processes(tmp_path, nearly_equal)
    assert same_bits(first, second)


@pytest.mark.parametrize(
    ("split", "sentence"), [("batches", "choose ranks='blocks', by which"), ("blocks", "torchrun")]
)
def test_a_split_that_cannot_be_made_says_what_to_do(split, sentence):
    with pytest.raises(ValueError, match=sentence):
        measured(problem_of(), ranks=split)


# ---- ranks that fail ---------------------------------------------------------------------------


def failing(rank):
    """A product of rank 1 fails; that is caught, as in a notebook that goes on."""
    problem, product, made = problem_of((1,) * 8), hessian.GradientGraph.product, []

    def limited(graph, *arguments):
        made.append(1)
        if rank == 1 and len(made) == 9:
            raise ZeroDivisionError("the data is gone")
        return product(graph, *arguments)

    hessian.GradientGraph.product = limited
    try:
        measured(problem, ranks="blocks")
    except (ZeroDivisionError, ConnectionError) as error:
        return error, arrays(measured(problem, ranks="blocks"))


def test_a_failure_on_one_rank_ends_the_waiting_of_the_others(tmp_path):
    found = in_processes(tmp_path, failing, size=3)
    (failed, spectra), lost = found.pop(1), found
    assert isinstance(failed, ZeroDivisionError)
    for error, others in lost:
        assert isinstance(error, ConnectionError)
        assert "its own message says why" in str(error)
        assert same_bits(others, spectra)  # the script's own group is as it was


def killed(rank, folder, after=None):
    """Number of steps taken and the result, where rank 1 was not killed after some steps."""
    taken, absorb = [], lanczos.Lanczos.absorb

    def counted(run, product):
        absorb(run, product)
        taken.append(run.step)
        if rank == 1 and len(taken) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    lanczos.Lanczos.absorb = counted
    spectra = measured(problem_of(), ranks="blocks", checkpoint=folder)
    return len(taken), arrays(spectra)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    lost, dead = in_processes(tmp_path, killed, tmp_path / "kept", 21)
    assert isinstance(lost, ConnectionError)
    assert dead is None
    resumed = in_processes(tmp_path, killed, tmp_path / "kept")
    assert [steps for steps, _ in resumed] == [0, 8]  # of 24 each
    monkeypatch.delattr(lanczos.Lanczos, "absorb")  # one process finds what ranks have kept
    alone = call(0, {"checkpoint": tmp_path / "kept"})
    monkeypatch.undo()
    assert all(same_bits(found, call(0, {})) for found in (alone, *(kept for _, kept in resumed)))


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
    assert same_bits(arrays(Spectra.load(kept)), call(0, {}))
