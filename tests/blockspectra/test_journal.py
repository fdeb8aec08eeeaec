"""Only this file sees a run that was killed end otherwise than an undisturbed one.

Processes are killed by SIGKILL, at random moments and in the middle of each step of a write; files
are cut and bits flipped; checkpoints are handed to other problems.
"""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest
import torch

from blockspectra import block_spectra, cross_entropy, partition
from blockspectra import files as arrays
from blockspectra import journal as journals
from blockspectra.hessian import BlockHessians
from blockspectra.journal import STATES, Journal
from blockspectra.lanczos import Lanczos
from blockspectra.spectra import ARRAYS
from torch_threads import threads
from two_matrices import MadeAgain, two_matrices

STEPS, PROBES = 6, 2
CASES = {
    "float64 basis": {"basis": "float64"},
    "bfloat16 basis": {"basis": "bfloat16"},
    "no basis": {"basis": "none"},
    "graphs made again": {"basis": "float32"},
    "probes together": {"together": 2},
    "side by side": {"basis": "float32"},
    "kept off what is known": {"tolerance": 1e-9},
}


def compute(case, folder=None, problem=None, **changed):
    """Coefficients of all runs, kept in a folder after every step."""
    problem = problem or two_matrices(3 if case == "graphs made again" else 2)
    settings = {"steps": STEPS, "probes": PROBES} | CASES[case] | changed
    number = 2 if case == "side by side" else torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, threads(number):
        patch.setattr(journals, "INTERVAL", 0)
        patch.setattr(journals, "SHARE", 1e9)  # of the time, for savings: no bound
        if case == "graphs made again":
            patch.setattr("blockspectra.slq.BlockHessians", MadeAgain)
        if case == "side by side":
            patch.setattr("blockspectra.workers.LARGE", 0)
        spectra = block_spectra(problem, partition(problem.model), checkpoint=folder, **settings)
    return [getattr(spectra, key) for key in ARRAYS]


def same(left, right):
    """Equal to the bit, nan included."""
    pairs = zip(left, right, strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.fixture(scope="module")
def undisturbed():
    return {case: compute(case) for case in CASES}


# killed


def child(case, folder, output, begun, trap=None):
    """What the processes to be killed do."""
    torch.set_num_threads(1)
    save = np.savez  # not what a trap may replace
    if trap:
        set_trap(*trap)
    begun.send(True)
    save(output, *compute(case, folder))


def set_trap(place, number):
    """Have this process killed when it comes to a place of its write with this number."""
    passed = Counter()

    def come_to(here):
        passed[here] += 1
        if (here, passed[here]) == (place, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def savez(file, *content, save=np.savez, **named):
        save(file, *content, **named)
        if place == "half written" and passed[place] + 1 == number:
            file.truncate(file.tell() // 2)
        come_to("half written")

    def replace(path, target, rename=Path.replace):
        come_to("not named")
        rename(path, target)
        come_to("named")

    def unlink(path, remove=Path.unlink, **options):
        come_to("not removed")
        remove(path, **options)

    arrays.np.savez, Path.replace, Path.unlink = savez, replace, unlink


@pytest.fixture(scope="module")
def start():
    """Start a child from a server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    # SymPy: PyTorch imports it at the first gradient
    context.set_forkserver_preload(["pytest", "blockspectra.slq", "sympy"])

    def begin(*args, trap=None):
        begun, tell = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(*args, tell, trap))
        process.start()
        begun.recv()
        return process

    return begin


def load(path):
    with np.load(path) as content:
        return list(content.values())


def left(folder):
    """Names of all files but of those whose writing was cut short."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


@pytest.mark.parametrize("case", CASES)
def test_runs_killed_at_random_moments_end_in_the_same_bits(case, undisturbed, start, tmp_path):
    whole = start(case, tmp_path / "whole", tmp_path / "whole.npz")
    began = time.perf_counter()
    whole.join()
    usual, moments, kills = time.perf_counter() - began, random.Random(case), 0
    for attempt in range(100):
        folder, output = tmp_path / "killed", tmp_path / f"{attempt}.npz"
        process = start(case, folder, output)
        process.join(moments.uniform(0, 0.7 * usual) if kills < 4 else None)
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert same(load(output), undisturbed[case])
            assert left(folder) == left(tmp_path / "whole")
            if kills == 4:
                return
            shutil.rmtree(folder)  # it was ready too early: once more
        else:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
    raise AssertionError("never killed before the end")


@pytest.mark.parametrize(
    ("place", "case"),
    [
        ("half written", "float64 basis"),
        ("half written", "graphs made again"),
        ("half written", "side by side"),
        ("not named", "bfloat16 basis"),
        ("named", "graphs made again"),
        ("not removed", "graphs made again"),
    ],
)
def test_runs_killed_within_a_write_end_in_the_same_bits(place, case, undisturbed, start, tmp_path):
    folder, output = tmp_path / "folder", tmp_path / "output.npz"
    for number in range(1, 100, 2):  # each gets further than the one before
        process = start(case, folder, output, trap=(place, number))
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert number > 8
    assert same(load(output), undisturbed[case])


# interrupted


@contextmanager
def counted(case, stop=None):
    """Count products; interrupt before the one after ``stop``."""
    name = "kept_product" if case == "side by side" else "products"
    count, lock, real = Counter(), Lock(), getattr(BlockHessians, name)

    def products(hessians, *wanted):
        pairs = [wanted] if case == "side by side" else wanted[0]
        with lock:
            if stop is not None and count["products"] >= stop:
                raise KeyboardInterrupt
            count["products"] += sum(vector[..., 0].numel() for _, vector in pairs)
        return real(hessians, *wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockHessians, name, products)
        yield count


def interrupt(case, folder, after):
    with counted(case, after), pytest.raises(KeyboardInterrupt):
        compute(case, folder)


ALL = 2 * PROBES * STEPS  # products of a whole run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("after", [0, 8, 16])
def test_no_product_is_taken_twice(case, after, undisturbed, tmp_path):
    interrupt(case, tmp_path, after)
    with counted(case) as count:
        assert same(compute(case, tmp_path), undisturbed[case])
    assert count["products"] == ALL - after
    with counted(case) as count:
        assert same(compute(case, tmp_path), undisturbed[case])
    assert count["products"] == 0


def test_a_run_that_ends_while_another_fails_is_kept(tmp_path, monkeypatch):
    last, failed, steps, real = Event(), Event(), Counter(), BlockHessians.kept_product

    def product(hessians, block, vector):
        if block.name == second:
            assert last.wait(60)
            failed.set()
            raise KeyboardInterrupt
        steps["first"] += 1
        if steps["first"] == STEPS:
            last.set()
            assert failed.wait(60)
            time.sleep(0.1)  # until the other's error is heard of
        return real(hessians, block, vector)

    second = partition(two_matrices(2).model)[1].name
    monkeypatch.setattr(BlockHessians, "kept_product", product)
    with pytest.raises(KeyboardInterrupt):
        compute("side by side", tmp_path, probes=1)
    assert (tmp_path / "block00000-probe0.npz").exists()


def test_more_probes_are_added_to_those_that_are_there(tmp_path):
    compute("float64 basis", tmp_path)
    with counted("float64 basis") as count:
        found = compute("float64 basis", tmp_path, probes=PROBES + 1)
    assert count["products"] == ALL // PROBES
    assert same(found, compute("float64 basis", probes=PROBES + 1))


def test_each_vector_of_a_basis_is_written_once_and_two_states_are_left(tmp_path):
    interrupt("graphs made again", tmp_path, 4 * 4)  # four steps of four runs
    for run in ("block00000-probe0", "block00001-probe1"):
        assert len(list(tmp_path.glob(f"{run}.*.state.npz"))) == STATES
        parts = [load(path)[1] for path in sorted(tmp_path.glob(f"{run}.*.basis.npz"))]
        assert [part.shape[-2] for part in parts] == [1, 1, 1, 1]
    compute("graphs made again", tmp_path)
    assert len(left(tmp_path)) == 1 + 2 * PROBES  # one of each run, and what they are of


@pytest.mark.parametrize(("cost", "times"), [(0.0, [60, 120, 180]), (7.0, [60, 140])])
def test_savings_take_a_tenth_of_the_time_at_most(cost, times, tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(journals.time, "monotonic", lambda: clock[0])
    run, journal = Lanczos(torch.ones(3), 3), Journal(tmp_path, {})
    journal.resume("run", run)

    def save_arrays(path, header, arrays):
        if "alpha" in arrays:
            saved.append(clock[0])
            clock[0] += cost
        return path

    monkeypatch.setattr(journals, "save_arrays", save_arrays)
    due = None
    while clock[0] < 200:
        due = journal.keep({"run": run}, due)
        clock[0] += 1
    assert saved == pytest.approx(times, abs=3)


# damaged


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 16  # of the first array's numbers
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    ("pattern", "again"),
    [
        ("block00000-probe1.npz", STEPS),  # it had ended
        ("block00001-probe0.000004.state.npz", 1),  # its last but one is there
        ("block00001-probe0.000004.basis.npz", 1),
        ("block00001-probe0.000003.basis.npz", 4),  # neither of its states has its basis
        ("block00001-probe0.00000[34].state.npz", 4),
        ("about.npz", 0),
    ],
)
def test_a_damaged_file_is_named_and_computed_again(
    damage, pattern, again, undisturbed, tmp_path, capfd
):
    case, done = "float64 basis", 2 * STEPS + 4
    interrupt(case, tmp_path, done)
    paths = list(tmp_path.glob(pattern))
    assert paths
    for path in paths:
        damage(path)
    with counted(case) as count:
        assert same(compute(case, tmp_path), undisturbed[case])
    assert count["products"] == ALL - done + again
    said = capfd.readouterr().err
    assert all(str(path) in said for path in paths) or damage is Path.unlink
    assert len(left(tmp_path)) == 1 + 2 * PROBES
    compute(case, tmp_path)
    assert not capfd.readouterr().err


def test_after_a_damage_what_was_kept_later_does_not_come_back(tmp_path, undisturbed):
    case = "float64 basis"
    interrupt(case, tmp_path, 5)
    truncate(tmp_path / "block00000-probe0.000002.basis.npz")
    interrupt(case, tmp_path, 1)  # it began anew
    assert len(list(tmp_path.glob("block00000-probe0.*.basis.npz"))) == 1
    assert same(compute(case, tmp_path), undisturbed[case])


# of something else


def other_weights(problem):
    with torch.no_grad():
        next(problem.model.parameters())[0, 0] += 1e-6


def other_data(problem):
    problem.batches[1][0][0, 0] += 1e-6


def other_targets(problem):
    problem.batches[1][1][0] = (problem.batches[1][1][0] + 1) % 4


def other_loss(problem):
    problem.loss = lambda model, batch: 2 * cross_entropy(model, batch)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights"),
        (other_data, "batches"),
        (other_targets, "batches"),
        (other_loss, "loss"),
        ({"seed": 1}, "probes"),
        ({"steps": STEPS + 1}, "settings"),
        ({"basis": "float32"}, "settings"),
        ({"together": 2}, "settings"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_sentence(change, named, tmp_path):
    compute("float64 basis", tmp_path)
    problem, settings = two_matrices(2), change if isinstance(change, dict) else {}
    if not settings:
        change(problem)
    with pytest.raises(ValueError, match=rf"holds runs of .*\({named}.* differ\)") as caught:
        compute("float64 basis", tmp_path, problem, **settings)
    assert str(caught.value).endswith("name another folder, or delete this one.")
    assert "\n" not in str(caught.value)


def test_runs_of_something_else_are_not_taken_where_nothing_says_what_they_are_of(tmp_path, capfd):
    compute("float64 basis", tmp_path)
    (tmp_path / "about.npz").unlink()
    other = two_matrices(2, seed=1)
    found = compute("float64 basis", tmp_path, other)
    assert same(found, compute("float64 basis", None, two_matrices(2, seed=1)))
    assert capfd.readouterr().err.count("is of another problem or other settings") == 2 * PROBES


def test_a_process_that_does_not_write_leaves_the_folder_alone(tmp_path):
    about, run = {"seed": 0}, Lanczos(torch.ones(3), 3)
    run.absorb(torch.arange(3.0))
    writer, reader = Journal(tmp_path, about), Journal(tmp_path, about, writes=False)
    reader.resume("run", run)
    reader.keep({"run": run}, due=0)
    reader.finish("run", run.result())
    assert left(tmp_path) == ["about.npz"]
    writer.finish("run", run.result())
    assert same(reader.finished("run")[0], run.result())
