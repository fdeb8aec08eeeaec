"""Only this file sees a call that was killed and made again end otherwise than an undisturbed one.

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

import numpy as np
import pytest
import torch

from blockspectra import block_spectra, cross_entropy, partition, slq
from blockspectra import files as arrays
from blockspectra.blocks import Block, Piece
from blockspectra.hessian import SCRATCH, BlockHessians
from blockspectra.lanczos import run_bytes
from blockspectra.spectra import ARRAYS
from two_matrices import two_matrices

STEPS, PROBES = 6, 3
CASES = {
    "graphs kept": {},
    "graphs made again": {},
    "no basis": {"basis": "none"},
    "tolerance": {"tolerance": 1e-9},
}


def compute(case, folder=None, problem=None, **changed):
    """Coefficients of all runs."""
    problem = problem or two_matrices(3)
    settings = {"steps": STEPS, "probes": PROBES} | CASES[case] | changed
    blocks = partition(problem.model)
    with pytest.MonkeyPatch.context() as patch:
        if case == "graphs made again":  # and room for two runs side by side
            room = BlockHessians(problem, blocks).nbytes * (1 + SCRATCH)
            room += 2 * run_bytes(30, STEPS, torch.float32)
            patch.setattr(slq, "available", lambda memory, device: int(room))
        spectra = block_spectra(problem, blocks, checkpoint=folder, **settings)
    assert ("made again" in spectra.meta["products"]) == (case == "graphs made again")
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

    arrays.np.savez, Path.replace = savez, replace


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
        ("half written", "graphs kept"),
        ("half written", "graphs made again"),
        ("not named", "tolerance"),
        ("named", "graphs made again"),
    ],
)
def test_runs_killed_within_a_write_end_in_the_same_bits(place, case, undisturbed, start, tmp_path):
    folder, output = tmp_path / "folder", tmp_path / "output.npz"
    for number in range(1, 100):  # each gets further than the one before
        process = start(case, folder, output, trap=(place, number))
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert number > 2
    assert same(load(output), undisturbed[case])


# interrupted


@contextmanager
def counted(stop=None):
    """Count products; interrupt before those after ``stop``."""
    count, real = Counter(), BlockHessians.products

    def products(hessians, wanted):
        if stop is not None and count["products"] >= stop:
            raise KeyboardInterrupt
        count["products"] += len(wanted)
        return real(hessians, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockHessians, "products", products)
        yield count


def interrupt(case, folder, after):
    with counted(after), pytest.raises(KeyboardInterrupt):
        compute(case, folder)


ALL = 2 * PROBES * STEPS  # products of a whole call


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("after", [0, 15, 27])
def test_no_product_of_a_finished_run_is_taken_twice(case, after, undisturbed, tmp_path):
    interrupt(case, tmp_path, after)
    kept = len(list(tmp_path.glob("block*")))
    assert kept == after // STEPS
    with counted() as count:
        assert same(compute(case, tmp_path), undisturbed[case])
    assert count["products"] == ALL - kept * STEPS
    with counted() as count:
        assert same(compute(case, tmp_path), undisturbed[case])
    assert count["products"] == 0


def test_more_probes_are_added_to_those_that_are_there_and_fewer_are_taken_of_them(tmp_path):
    compute("graphs kept", tmp_path)
    for probes, products in ((PROBES + 1, ALL // PROBES), (PROBES - 1, 0)):
        with counted() as count:
            found = compute("graphs kept", tmp_path, probes=probes)
        assert count["products"] == products
        assert same(found, compute("graphs kept", probes=probes))


# damaged


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 16  # of the first array's numbers
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(("name", "again"), [("block00000-probe1", STEPS), ("about", 0)])
def test_a_damaged_file_is_named_and_computed_again(
    damage, name, again, undisturbed, tmp_path, capfd
):
    compute("graphs kept", tmp_path)
    damage(path := tmp_path / f"{name}.npz")
    with counted() as count:
        assert same(compute("graphs kept", tmp_path), undisturbed["graphs kept"])
    assert count["products"] == again
    assert str(path) in capfd.readouterr().err or damage is Path.unlink
    assert len(left(tmp_path)) == 1 + 2 * PROBES
    compute("graphs kept", tmp_path)
    assert not capfd.readouterr().err


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


def other_loss_of_the_same_value(problem):
    values = {id(batch): problem.value(batch).item() for batch in problem.batches}

    def loss(model, batch):
        return 2 * cross_entropy(model, batch) - values.get(id(batch), 0)

    problem.loss, problem.batch_statistics = loss, True


def other_shares(problem):
    problem.weights, problem.batch_statistics = problem.weights[::-1], True


def other_loss_later(problem):
    first, problem.batch_statistics = problem.batches[0], True
    problem.loss = lambda model, batch: (1 + (batch is not first)) * cross_entropy(model, batch)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights"),
        (other_shares, "shares"),
        (other_loss_later, "loss"),
        (other_data, "batches"),
        (other_targets, "batches"),
        (other_loss, "loss"),
        (other_loss_of_the_same_value, "loss"),
        ({"seed": 1}, "probes"),
        ({"steps": STEPS + 1}, "settings"),
        ({"basis": "float64"}, "settings"),
        ({"tolerance": 0.1}, "settings"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_sentence(change, named, tmp_path):
    compute("graphs kept", tmp_path)
    problem, settings = two_matrices(3), change if isinstance(change, dict) else {}
    if not settings:
        change(problem)
    with pytest.raises(ValueError, match=rf"holds runs of .*\({named}.* differ\)") as caught:
        compute("graphs kept", tmp_path, problem, **settings)
    assert str(caught.value).endswith("name another folder, or delete this one.")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_rows_under_the_same_name_is_refused(tmp_path):
    problem = two_matrices(1)
    weight = next(problem.model.parameters())
    first, second = (Block("a", (Piece(weight, (slice(i, i + 2),)),)) for i in (0, 2))
    block_spectra(problem, [first], steps=2, probes=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"\(blocks differ\)"):
        block_spectra(problem, [second], steps=2, probes=1, checkpoint=tmp_path)


def test_runs_of_something_else_are_not_taken_where_nothing_says_what_they_are_of(tmp_path, capfd):
    compute("graphs kept", tmp_path)
    (tmp_path / "about.npz").unlink()
    other = two_matrices(3, seed=1)
    found = compute("graphs kept", tmp_path, other)
    assert same(found, compute("graphs kept", None, two_matrices(3, seed=1)))
    assert capfd.readouterr().err.count("is of another problem or other settings") == 2 * PROBES
