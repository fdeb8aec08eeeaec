"""Only this file sees which Lanczos runs go side by side, and which probes a tolerance asks for.

A run lost, taken twice or advanced by another's product, a basis that outlives its run, a basis
that is found too large only after the model was differentiated, a progress bar that ends short.
"""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from tqdm import tqdm

from blockspectra import block_spectra, partition, slq
from blockspectra.blocks import Block, Piece
from blockspectra.hessian import SCRATCH, BlockHessians, OutOfMemory, dense_hessian
from blockspectra.lanczos import Lanczos, lanczos, run_bytes
from blockspectra.slq import ProbeBatch, Settings, probe_vector
from blockspectra.spectra import ARRAYS
from two_matrices import two_matrices

STEPS = 5
SETTINGS = Settings(STEPS, 2, 0, None, torch.float64)


class Matrices:
    """Stands in for `BlockHessians`: a matrix a block."""

    def __init__(self, sizes, *, kept=False):
        generator = torch.Generator().manual_seed(0)
        self.kept, self.asked = kept, []
        self.blocks = [
            Block(str(i), (Piece(nn.Parameter(torch.ones(n))),)) for i, n in enumerate(sizes)
        ]
        roots = [torch.randn(n, n, generator=generator, dtype=torch.float64) for n in sizes]
        self.matrices = {b: r + r.T for b, r in zip(self.blocks, roots, strict=True)}

    def products(self, wanted):
        self.asked.append([(int(block.name), vector[..., 0].numel()) for block, vector in wanted])
        return [vector @ self.matrices[block] for block, vector in wanted]


def finished(matrices, batches, room=10**15, settings=SETTINGS):
    """Results by block and probe, and how far the bar went."""
    found, bar = {}, tqdm(disable=True)
    bar.update = lambda n, moved=[]: moved.append(n) or setattr(bar, "moved", sum(moved))
    queue = slq.deque(batches)
    for at, run in slq._finished_runs(queue, matrices, settings, room, bar):
        assert at not in found
        found[at] = run
    return found, bar.moved


def probe_batches(matrices, probes, at_once=1):
    return [
        ProbeBatch(i, block, tuple(range(k, k + at_once)))
        for i, block in enumerate(matrices.blocks)
        for k in range(0, probes, at_once)
    ]


def assert_right(found, matrices, probes):
    assert sorted(found) == [(i, k) for i in range(len(matrices.blocks)) for k in range(probes)]
    for (i, k), run in found.items():
        block = matrices.blocks[i]
        start = probe_vector(0, block.name, k, block.size)
        alone = lanczos(lambda v, m=matrices.matrices[block]: v @ m, start, STEPS)
        for part, expected in zip(run, alone, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_runs_share_each_list_of_products_where_graphs_are_made_again(at_once):
    matrices = Matrices([6, 3, 9])
    found, moved = finished(matrices, probe_batches(matrices, 2, at_once))
    assert_right(found, matrices, 2)
    assert len(matrices.asked) == STEPS
    assert matrices.asked[0] == [(i, at_once) for i in (0, 1, 2) for _ in range(2 // at_once)]
    assert {i for i, _ in matrices.asked[-1]} == {0, 2}  # three steps fill three numbers
    assert moved == 2 * (5 + 3 + 5)


def test_runs_go_one_after_the_other_where_graphs_are_kept():
    matrices = Matrices([6, 3, 9], kept=True)
    found, moved = finished(matrices, probe_batches(matrices, 2))
    assert_right(found, matrices, 2)
    assert [asked for (asked,) in matrices.asked] == [(0, 1)] * 10 + [(1, 1)] * 6 + [(2, 1)] * 10
    assert moved == len(matrices.asked)


def test_as_many_go_side_by_side_as_fit_and_the_others_follow():
    matrices = Matrices([50, 50, 50, 20, 20])
    room = 2 * run_bytes(50, STEPS, torch.float64)
    found, _ = finished(matrices, probe_batches(matrices, 1), room)
    assert_right(found, matrices, 1)
    at_once = [len(asked) for asked in matrices.asked]
    assert at_once == [2] * STEPS + [3] * STEPS  # 50 and 50, then 50, 20 and 20


def test_a_run_that_is_finished_is_let_go_before_the_next_one_begins(monkeypatch):
    alive = []

    class Tracked(Lanczos):
        living = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            Tracked.living += 1
            alive.append(Tracked.living)

        def __del__(self):
            Tracked.living -= 1

    monkeypatch.setattr(slq, "Lanczos", Tracked)
    matrices = Matrices([6, 7, 8], kept=True)
    finished(matrices, probe_batches(matrices, 2))
    assert alive == [1] * 6


# memory


def refused(monkeypatch, left, **settings):
    """The sentence of a call with this much room beside what is in use."""
    problem = two_matrices(3)
    monkeypatch.setattr(slq, "available", lambda memory, device: left)
    with pytest.raises(OutOfMemory) as caught:
        block_spectra(problem, partition(problem.model), steps=50, **settings)
    return str(caught.value)


def test_a_basis_that_does_not_fit_is_refused_before_the_model_is_called(monkeypatch):
    called = []
    monkeypatch.setattr(slq, "checked", lambda *_: called.append(1))
    need = run_bytes(30, 50, torch.float32)
    sentence = refused(monkeypatch, need - 1)
    assert sentence.startswith("50 Lanczos steps with Block('0', 30 parameters) take ")
    assert sentence.endswith("take fewer steps, basis='none', or raise `memory`.")
    assert not called


def test_checks_that_do_not_fit_are_refused_before_the_model_is_called(monkeypatch):
    monkeypatch.setattr(slq, "checked", lambda *_: pytest.fail("called"))
    sentence = refused(monkeypatch, run_bytes(30, 1, None), basis="none")
    assert sentence.startswith("Checks take ")
    assert sentence.endswith("give fewer blocks at once, or raise `memory`.")


def test_a_graph_that_does_not_fit_beside_the_largest_basis_is_refused(monkeypatch):
    sentence = refused(monkeypatch, run_bytes(30, 50, torch.float32) + 1)
    assert sentence.startswith("The graph of one batch and a product with it take about ")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 7.11 PiB"),
    ],
)
def test_an_allocation_that_fails_all_the_same_is_one_sentence(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(slq, "Lanczos", fail)
    problem = two_matrices(1)
    with pytest.raises(OutOfMemory, match=r"no memory for 9 Lanczos steps with Block.*fewer steps"):
        block_spectra(problem, partition(problem.model), steps=9)


def test_another_failure_is_not_called_a_lack_of_memory(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("expected scalar type Float but found Double")

    monkeypatch.setattr(slq, "Lanczos", fail)
    problem = two_matrices(1)
    with pytest.raises(RuntimeError, match="scalar type"):
        block_spectra(problem, partition(problem.model), steps=9)


@pytest.mark.parametrize("memory", ["kept", "one run", "two runs"])
def test_how_much_memory_there_is_changes_no_bit_and_the_bar_ends_at_its_end(memory, monkeypatch):
    problem, seen, moved = two_matrices(3), [], []
    blocks = partition(problem.model)
    expected = block_spectra(problem, blocks, steps=4, probes=3)
    nbytes = BlockHessians(problem, blocks).nbytes
    need = run_bytes(30, 4, torch.float32)
    graphs = (3 if memory == "kept" else 1) + SCRATCH
    left = nbytes * graphs + (2 if memory == "two runs" else 1) * need
    products = BlockHessians.products

    def counted(hessians, wanted):
        seen.append(len(wanted))
        return products(hessians, wanted)

    monkeypatch.setattr(slq, "available", lambda memory, device: int(left) + 1)
    monkeypatch.setattr(BlockHessians, "products", counted)
    monkeypatch.setattr("tqdm.std.tqdm.update", lambda bar, n=1: moved.append(n))
    found = block_spectra(problem, blocks, steps=4, probes=3)
    for key in ARRAYS:
        assert getattr(found, key).tobytes() == getattr(expected, key).tobytes()
    assert max(seen) == (2 if memory == "two runs" else 1)
    assert ("kept" in found.meta["products"]) == (memory == "kept")
    assert sum(moved) == 2 * 3 * 4


# probes at once: what a GPU does


def test_probes_in_one_product_have_the_results_of_each_alone(monkeypatch):
    problem = two_matrices(2)
    problem.model.double()
    problem.batches = [(x.double(), y) for x, y in problem.batches]
    blocks, real = partition(problem.model), slq._unfinished
    alone = block_spectra(problem, blocks, steps=4, probes=3)
    monkeypatch.setattr(slq, "_unfinished", lambda *given: real(*given[:-1], 2))
    found = block_spectra(problem, blocks, steps=4, probes=3)
    for key in ARRAYS:
        np.testing.assert_allclose(getattr(found, key), getattr(alone, key), atol=1e-10)


# under a tolerance


@pytest.mark.parametrize("tolerance", [0.5, 0.2])
def test_under_a_tolerance_the_error_is_as_small_as_it_says(tolerance):
    problem = two_matrices(3)
    blocks = partition(problem.model.double())
    problem.batches = [(x.double(), y) for x, y in problem.batches]
    spectra = block_spectra(problem, blocks, tolerance=tolerance, steps=10, probes=40)
    assert spectra.meta["deflated"]
    for i, block in enumerate(blocks):
        exact = torch.linalg.eigvalsh(dense_hessian(problem, block)).numpy()
        nodes, weights = (x[spectra.present[i]] for x in (spectra.nodes(i), spectra.weights(i)))
        error = wasserstein_distance(exact, nodes.ravel(), None, weights.ravel())
        assert error < 2 * tolerance * np.sqrt(np.mean(exact**2))
        assert 2 <= spectra.counts[i] < 40


def test_one_probe_is_enough_where_it_finds_all_eigenvalues():
    problem = two_matrices(3)
    problem.model.double()
    problem.batches = [(x.double(), y) for x, y in problem.batches]
    first, last = partition(problem.model)
    spectra = block_spectra(problem, [first, last], tolerance=1e-6, steps=30, probes=5)
    # logits may all be shifted, so the last matrix has eigenvalues 0, and how many is not known
    assert spectra.counts.tolist() == [1, 2]
    exact = torch.linalg.eigvalsh(dense_hessian(problem, first)).numpy()
    np.testing.assert_allclose(spectra.nodes(0)[0], exact, atol=1e-8)
    assert spectra.meta["error"][0] == [0, 0]


def test_a_block_needs_the_same_probes_and_steps_whatever_the_others_need():
    problem = two_matrices(3)
    blocks = partition(problem.model)
    settings = {"tolerance": 0.1, "steps": 15, "probes": 12}
    both = block_spectra(problem, blocks, **settings)
    for i, block in enumerate(blocks):
        alone = block_spectra(problem, [block], **settings)
        n, m = alone.alpha.shape[1:]
        assert np.array_equal(both.taken[i, :n], alone.taken[0])
        assert both.alpha[i, :n, :m].tobytes() == alone.alpha[0].tobytes()
        assert both.meta["error"][i] == alone.meta["error"][0]


@pytest.mark.parametrize("settings", [{"tolerance": 0}, {"probes": 1}, {"basis": "none"}])
def test_a_tolerance_that_cannot_be_kept_is_refused(settings):
    problem = two_matrices(1)
    with pytest.raises(ValueError, match="A tolerance must be above 0, and needs probes=2 or more"):
        block_spectra(problem, partition(problem.model), **{"tolerance": 0.1} | settings)
