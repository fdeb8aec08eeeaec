"""Only this file sees how many Lanczos runs go side by side, and what becomes of them when memory
runs out: a run lost, taken twice or advanced by another's product, a progress bar that ends short.
"""

import weakref
from collections import Counter
from contextlib import contextmanager
from threading import Event, Lock
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from blockspectra import block_spectra, lockstep, partition
from blockspectra.blocks import Block, Piece
from blockspectra.distributed import Ranks
from blockspectra.hessian import SCRATCH
from blockspectra.lanczos import Lanczos, lanczos
from blockspectra.lockstep import Lockstep
from blockspectra.problem import OutOfMemory
from blockspectra.units import Unit, run_bytes
from blockspectra.workers import Workers
from torch_threads import threads
from two_matrices import MadeAgain, two_matrices

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 40000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError("Unable to allocate 7.11 PiB"),
]


# which runs go side by side


class Matrices:
    """Stands in for `BlockHessians`: a matrix a block, and a room that products have to fit."""

    def __init__(self, sizes, *, kept=False, batches=3, nbytes=0, room=None):
        generator = torch.Generator().manual_seed(0)
        self.kept, self.batches, self.nbytes, self.room = kept, [None] * batches, nbytes, room
        self.ranks, self.workers, self.asked = Ranks(), Workers(), []
        self.blocks = [
            Block(str(i), (Piece(nn.Parameter(torch.ones(n))),)) for i, n in enumerate(sizes)
        ]
        roots = [torch.randn(n, n, generator=generator, dtype=torch.float64) for n in sizes]
        self.matrices = {b: r + r.T for b, r in zip(self.blocks, roots, strict=True)}

    def products(self, wanted):
        taken = [(int(block.name), vector[..., 0].numel()) for block, vector in wanted]
        if self.room is not None and sum(probes for _, probes in taken) > self.room:
            raise OutOfMemory("does not fit")
        self.asked.append(taken)
        return [vector @ self.matrices[block] for block, vector in wanted]

    def drop(self):
        self.kept = False

    def start(self, unit):
        probes = [
            torch.randn(
                unit.block.size, generator=torch.Generator().manual_seed(100 * unit.number + k)
            )
            for k in unit.probes
        ]
        return probes[0] if len(probes) == 1 else torch.stack(probes)


STEPS = 5


def runs_of(matrices, units, budget=10**15, ended=lambda unit, run: False, steps=STEPS):
    """Results by block and probe, and the steps counted."""
    counted = []
    found = {}

    def take(unit, result, known):
        assert known is None
        for row, k in enumerate(unit.probes):
            parts = [x.reshape(len(unit.probes), -1)[row] for x in result[:3]]
            assert (unit.number, k) not in found
            found[unit.number, k] = parts
        return []

    stepper = Lockstep(
        matrices, matrices.start, steps, torch.float64, budget, ended, counted.append, take
    )
    stepper.run(units)
    return found, sum(counted)


def single(matrices, probes):
    return [Unit(i, block, (k,)) for i, block in enumerate(matrices.blocks) for k in range(probes)]


def assert_right(found, matrices, probes, steps=STEPS):
    assert sorted(found) == [(i, k) for i in range(len(matrices.blocks)) for k in range(probes)]
    for (i, k), parts in found.items():
        block = matrices.blocks[i]
        start = matrices.start(Unit(i, block, (k,)))
        alone = lanczos(lambda v, m=matrices.matrices[block]: v @ m, start, steps)
        for part, expected in zip(parts, alone, strict=False):
            torch.testing.assert_close(part, expected.reshape(-1), atol=1e-9, rtol=0)


def test_all_runs_share_each_list_of_products_where_graphs_are_made_again():
    matrices = Matrices([6, 3, 9])
    found, steps = runs_of(matrices, single(matrices, 2))
    assert_right(found, matrices, 2)
    assert len(matrices.asked) == STEPS
    assert matrices.asked[0] == [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)]
    assert matrices.asked[-1] == [(0, 1), (0, 1), (2, 1), (2, 1)]  # three steps fill three numbers
    assert steps == 2 * (5 + 3 + 5)


def test_runs_go_one_after_the_other_where_graphs_are_kept():
    matrices = Matrices([6, 3, 9], kept=True)
    found, steps = runs_of(matrices, single(matrices, 2))
    assert_right(found, matrices, 2)
    assert all(len(asked) == 1 for asked in matrices.asked)
    assert [asked[0][0] for asked in matrices.asked] == [0] * 10 + [1] * 6 + [2] * 10
    assert steps == len(matrices.asked)


@pytest.mark.parametrize("kept", [True, False])
def test_to_begin_a_run_costs_no_more_the_more_of_them_wait(kept, monkeypatch):
    matrices, calls = Matrices([2] * 20, kept=kept), []
    monkeypatch.setattr(lockstep, "run_bytes", lambda *asked: calls.append(1) or run_bytes(*asked))
    runs_of(matrices, single(matrices, 10))
    assert len(calls) <= 3 * 200


def test_as_many_go_side_by_side_as_fit_and_the_others_follow(monkeypatch):
    monkeypatch.setattr(lockstep, "in_use", lambda device, trim=True: 1000)
    matrices = Matrices([50, 50, 50, 20, 20], nbytes=400)
    need = run_bytes(50, STEPS, torch.float64)
    beside = 1000 + (1 + SCRATCH) * 400
    found, _ = runs_of(matrices, single(matrices, 1), budget=int(beside + 2 * need))
    assert_right(found, matrices, 1)
    at_once = [len(asked) for asked in matrices.asked]
    assert at_once == [2] * STEPS + [3] * STEPS  # 50 and 50, then 50, 20 and 20


def test_probes_that_do_not_fit_together_are_taken_apart(monkeypatch):
    monkeypatch.setattr(lockstep, "in_use", lambda device, trim=True: 0)
    matrices = Matrices([40], kept=True)
    units = [Unit(0, matrices.blocks[0], tuple(range(7)))]
    budget = 2 * run_bytes(40, STEPS, torch.float64)
    found, steps = runs_of(matrices, units, budget=budget)
    assert_right(found, matrices, 7)
    assert max(probes for asked in matrices.asked for _, probes in asked) <= 2
    assert steps == 7 * STEPS


def test_a_run_that_does_not_fit_by_itself_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(lockstep, "in_use", lambda device, trim=True: 0)
    matrices = Matrices([40])
    budget = run_bytes(40, STEPS, torch.float64) - 1
    with pytest.raises(OutOfMemory, match=r"5 Lanczos steps with Block\('0', 40 parameters\) take"):
        runs_of(matrices, single(matrices, 1), budget=budget)
    assert not matrices.asked


def test_all_ranks_take_as_many_as_the_one_with_least_room():
    matrices = Matrices([6, 6, 6])
    matrices.ranks = SimpleNamespace(parts=2, least=lambda number: min(number, 2))
    found, _ = runs_of(matrices, single(matrices, 1))
    assert_right(found, matrices, 1)
    assert [len(asked) for asked in matrices.asked] == [2] * STEPS + [1] * STEPS


def test_runs_end_where_they_have_enough_and_no_later():
    matrices = Matrices([9, 9])
    found, steps = runs_of(
        matrices, single(matrices, 1), ended=lambda unit, run: run.step == 2 + unit.number, steps=9
    )
    assert [int(found[i, 0][2]) for i in (0, 1)] == [2, 3]
    assert steps == 5


def test_a_run_that_has_ended_is_let_go_before_the_next_one_is_begun(monkeypatch):
    alive = []

    class Tracked(Lanczos):
        living = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            Tracked.living += 1
            alive.append(Tracked.living)

        def __del__(self):
            Tracked.living -= 1

    monkeypatch.setattr(lockstep, "Lanczos", Tracked)
    matrices = Matrices([6, 7, 8], kept=True)
    runs_of(matrices, single(matrices, 2))
    assert alive == [1] * 6


# memory runs out


@pytest.mark.parametrize("room", [1, 2, 3, 5])
@pytest.mark.parametrize("together", [1, 2])
def test_where_products_fail_half_of_the_runs_wait(room, together):
    matrices = Matrices([6, 3, 9], room=room)
    probes = range(0, 4, together)
    units = [
        Unit(i, block, tuple(range(k, k + together)))
        for i, block in enumerate(matrices.blocks)
        for k in probes
    ]
    found, steps = runs_of(matrices, units)
    assert_right(found, matrices, 4)
    assert max(sum(n for _, n in asked) for asked in matrices.asked) <= room
    assert steps == 4 * (5 + 3 + 5)


def test_kept_graphs_are_given_up_for_the_last_run():
    matrices = Matrices([6, 6], kept=True)
    real, fail = matrices.products, iter([True])

    def products(wanted):
        if next(fail, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(wanted)

    matrices.products = products
    found, steps = runs_of(matrices, single(matrices, 1))
    assert not matrices.kept
    assert_right(found, matrices, 1)
    assert steps == 10


@pytest.mark.parametrize("error", ERRORS[:2])
def test_among_ranks_no_run_waits_behind_the_back_of_the_others(error):
    matrices = Matrices([6, 6])
    matrices.ranks = SimpleNamespace(parts=2, least=lambda number: number)

    def products(wanted):
        raise error

    matrices.products = products
    with pytest.raises(type(error)):
        runs_of(matrices, single(matrices, 1))


# each run by a thread of its own


def test_threads_change_no_bit_and_the_bar_ends_where_it_should(undisturbed):
    for how in HOW:
        assert_same(undisturbed[how], undisturbed["kept"])


def test_no_run_waits_for_another(monkeypatch):
    absorb, result, slow, others, ended = Lanczos.absorb, Lanczos.result, [], Event(), []

    def wait_for_others(run, product):
        slow.append(run)
        if run is slow[0] and run.step == 1:
            assert others.wait(60)
        absorb(run, product)

    def end(run):
        ended.append(run is slow[0])
        if len(ended) == 5:
            others.set()
        return result(run)

    monkeypatch.setattr(Lanczos, "absorb", wait_for_others)
    monkeypatch.setattr(Lanczos, "result", end)
    compute("apart")
    assert ended == [False] * 5 + [True]


def test_no_more_runs_are_alive_than_there_are_threads(monkeypatch):
    alive, most = Counter(), Counter()
    make = Lanczos.__init__

    def begin(run, *args, **kwargs):
        make(run, *args, **kwargs)
        alive["now"] += 1
        most["at once"] = max(most["at once"], alive["now"])
        weakref.finalize(run, alive.update, {"now": -1})

    monkeypatch.setattr(Lanczos, "__init__", begin)
    compute("apart")
    assert alive["now"] == 0
    assert 1 < most["at once"] <= 3


def test_an_error_ends_the_others_too(monkeypatch):
    real, count = Lanczos.absorb, Counter()

    def absorb(run, product):
        count["steps"] += 1
        real(run, torch.full_like(product, torch.nan) if count["steps"] == 5 else product)

    monkeypatch.setattr(Lanczos, "absorb", absorb)
    with pytest.raises(ValueError, match="A Hessian product is not finite"):
        compute("apart")
    assert count["steps"] < ALL


# memory runs out in the real thing


@contextmanager
def failing(place, error, numbers=range(0)):
    """Raise ``error`` at the calls of a function with these numbers."""
    owner, name, *option = PLACES[place]
    count, lock, real = Counter(), Lock(), getattr(owner, name)

    def call(*args, **kwargs):
        if not option or option[0] in kwargs:
            with lock:
                count["calls"] += 1
                fails = count["calls"] in numbers
            if fails:
                raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield count


def compute(how, folder=None, together=1, batches=3):
    """Spectra, and how far the bar went."""
    moved, made = [], two_matrices(batches)
    with pytest.MonkeyPatch.context() as patch, threads(3 if how == "apart" else 1):
        patch.setattr("tqdm.std.tqdm.update", lambda bar, n=1: moved.append(n))
        if how == "made again":
            patch.setattr("blockspectra.slq.BlockHessians", MadeAgain)
        if how == "apart":
            patch.setattr("blockspectra.workers.LARGE", 0)
        spectra = block_spectra(
            made, partition(made.model), steps=4, probes=3, together=together, checkpoint=folder
        )
    return spectra, sum(moved)


def assert_same(found, expected):
    """Equal to the bit, and the bar ended where it should."""
    for key in ("alpha", "beta", "taken", "orthogonality"):
        assert getattr(found[0], key).tobytes() == getattr(expected[0], key).tobytes()
    assert found[1] == expected[1] == ALL


ALL = 2 * 3 * 4  # steps of all runs
PLACES = {
    "a graph": (torch.autograd, "grad", "create_graph"),
    "a product": (torch.autograd, "grad", "retain_graph"),
    "a run": (Lanczos, "__init__"),
    "its basis": (Lanczos, "_keep"),
    "a projection": (Lanczos, "_project_out"),
}
# calls before there is anything that could wait: with kept graphs, these could be given up
NEEDED = {"a graph": 1, "a product": 2}
ALONE = NEEDED | {"a run": 1, "its basis": 1}
HOW = ["kept", "made again", "apart"]  # apart: graphs are kept too, and threads share the runs


@pytest.fixture(scope="module")
def undisturbed():
    return {how: compute(how) for how in HOW}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_once_changes_no_bit(place, how, undisturbed):
    with failing(place, ERRORS[0]) as count:
        compute(how)
    calls = range(1 + (ALONE if how == "made again" else NEEDED).get(place, 0), count["calls"] + 1)
    for number, error in zip(calls[:: max(1, len(calls) // 8)], 4 * ERRORS, strict=False):
        with failing(place, error, [number]):
            assert_same(compute(how), undisturbed[how])


@pytest.mark.parametrize("how", HOW[1:])
@pytest.mark.parametrize(
    ("place", "numbers"),
    [("a graph", [4, 6]), ("a product", [5, 12]), ("its basis", [9, 11]), ("a projection", [5, 8])],
)
def test_runs_that_fail_twice_wait_twice(place, numbers, how, undisturbed):
    if place == "a graph" and how == "apart":
        pytest.skip("it has three")
    with failing(place, ERRORS[1], numbers) as count:
        assert_same(compute(how), undisturbed[how])
    assert count["calls"] > numbers[-1]


def test_probes_taken_together_are_taken_apart_where_memory_runs_out(undisturbed):
    for numbers in ([], [3], [3, 4]):
        with failing("a product", ERRORS[0], numbers):
            found, steps = compute("kept", together=3)
        assert steps == ALL
        for key in ("alpha", "beta"):
            expected = getattr(undisturbed["kept"][0], key)
            assert getattr(found, key) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", HOW[1:])
def test_a_checkpoint_goes_on_after_memory_ran_out(how, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("blockspectra.journal.INTERVAL", 0)
    monkeypatch.setattr("blockspectra.journal.SHARE", 1e9)
    with failing("a product", ERRORS[0], [30]), failing("a projection", KeyboardInterrupt(), [20]):
        with pytest.raises(KeyboardInterrupt):
            compute(how, tmp_path)
    assert_same(compute(how, tmp_path), undisturbed[how])


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["kept", "apart"])
def test_where_nothing_helps_there_is_one_sentence(how, place, batches, error):
    numbers = range(1 + NEEDED.get(place, 0), 10**6)
    if place == "a graph" and batches == 1:
        numbers = range(1, 10**6)  # the only one
    with failing(place, error, numbers), pytest.raises(OutOfMemory) as caught:
        compute(how, batches=batches)
    assert "use smaller batches" in str(caught.value)
    assert "\n" not in str(caught.value)
