"""Only this file sees threads that use more of PyTorch's than one each, change the number of those
of the program, or let an error go.
"""

import time
from threading import Event, Thread

import numpy as np
import pytest
import torch

from blockspectra import Problem, block_spectra, partition
from blockspectra.hessian import SCRATCH, BlockHessians
from blockspectra.workers import LARGE, Workers
from companion.setups import setup
from torch_threads import threads

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    with threads(4):
        yield


def threads_in_use(_=None):
    """What an operation goes by; it has to run, for the number may be changed by the first one."""
    torch.ones(10**6).exp()
    return torch.get_num_threads()


def test_each_worker_uses_one_thread_and_the_program_as_many_as_before(four_threads):
    workers, found = Workers(3, single=True), []
    for _ in range(3):  # a worker that was begun earlier is not changed by what comes later
        later = Thread(target=lambda: found.append(threads_in_use()))
        later.start()
        later.join()
        assert workers.map(threads_in_use, range(12)) == [1] * 12
        assert threads_in_use() == 4
    assert found == [4] * 3


def test_they_work_at_the_same_time_and_results_keep_their_order(four_threads):
    others = [Event(), Event()]

    def meet(i, event):
        event.set()
        time.sleep(0.01 * (1 - i))
        return i if others[1 - i].wait(60) else None

    assert Workers(2, single=True).map(meet, range(2), others) == [0, 1]


def test_without_threads_of_its_own_all_is_done_in_turn_by_the_caller(four_threads):
    assert Workers().map(lambda a, b: (a + b, threads_in_use()), [1, 2], [3, 4]) == [(4, 4), (6, 4)]


def test_an_error_is_raised_when_nothing_is_under_way_any_more(four_threads):
    ended = []

    def work(i):
        if i == 0:
            raise ZeroDivisionError
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(ZeroDivisionError):
        Workers(2, single=True).map(work, range(4))
    assert sorted(ended) == [1, 2, 3]


def test_what_is_given_unevenly_is_refused(four_threads):
    for workers in (Workers(), Workers(2, single=True)):
        with pytest.raises(ValueError, match="shorter"):
            workers.map(max, [1, 2], [3])


@pytest.mark.parametrize(
    ("product", "graphs", "room", "left", "count", "single"),
    [
        (LARGE, 0, 4 * LARGE, None, 4, True),
        (LARGE - 1, 0, 4 * LARGE, None, 1, False),  # small: threads would wait for Python
        (LARGE, 0, 4 * LARGE - 1, None, 1, False),
        (LARGE, 1, 4 * LARGE, None, 1, False),
        (LARGE, 0, 4 * LARGE, 3 * LARGE, 3, True),  # fewer, but to the same bits
        (LARGE, 0, 4 * LARGE, LARGE - 1, 1, True),
        (LARGE, 0, 4 * LARGE, 9 * LARGE, 4, True),
    ],
)
def test_there_are_as_many_as_there_is_room_for(
    product, graphs, room, left, count, single, four_threads
):
    workers = Workers.fitting(CPU, product, graphs, room, left)
    assert (workers.count, workers.single) == (count, single)


def test_neither_one_thread_nor_a_gpu_is_shared(four_threads):
    cuda = torch.device("cuda")
    assert not Workers.fitting(cuda, LARGE, 0, 10 * LARGE, None).single
    torch.set_num_threads(1)
    assert not Workers.fitting(CPU, LARGE, 0, 10 * LARGE, None).single


def problem(batches):
    """A graph of some MiB, whose products are sums that threads would share."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    data = [torch.randn(4000, 64, generator=generator) for _ in range(batches)]
    return Problem(model.eval(), lambda model, x: model(x).square().mean(), data)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("batches", [1, 3])
def test_products_side_by_side_have_the_bits_of_one_thread(
    batches, kept, four_threads, monkeypatch
):
    monkeypatch.setattr("blockspectra.workers.LARGE", 0)
    made = problem(batches)
    blocks = partition(made.model, vectors=True)
    generator = torch.Generator().manual_seed(1)
    wanted = [(b, torch.randn(b.size, generator=generator)) for b in 3 * blocks]
    hessians = BlockHessians(made, blocks, room=2**40)
    torch.set_num_threads(1)
    alone = BlockHessians(made, blocks, room=2**40)
    torch.set_num_threads(4)
    alone.graphs = hessians.graphs  # what all threads made together
    assert (hessians.workers.count, alone.workers.single) == (4, False)
    if not kept:
        hessians.drop()
    found = hessians.products(wanted)
    torch.set_num_threads(1)
    for (block, vector), product in zip(wanted, found, strict=True):
        assert torch.equal(product, alone.kept_product(block, vector)) or not kept
        torch.testing.assert_close(product, alone.kept_product(block, vector))


def test_a_budget_leaves_room_for_fewer(four_threads, monkeypatch):
    monkeypatch.setattr("blockspectra.workers.LARGE", 0)
    made = problem(1)
    blocks = partition(made.model)
    size = BlockHessians(made, blocks).nbytes
    for workers in (1, 2, 3):
        budget = int(size * (1 + SCRATCH * (workers + 0.5)))
        hessians = BlockHessians(made, blocks, budget=budget, room=2**40)
        assert (hessians.workers.count, hessians.workers.single) == (workers, True)
    assert not BlockHessians(made, blocks).workers.single  # not asked for


@pytest.mark.parametrize("name", ["gpt", "bert", "vit", "resnet", "mixer"])
def test_threads_that_share_a_graph_do_not_disturb_one_another(name, four_threads, monkeypatch):
    made = setup(name, "tiny").problem
    blocks = partition(made.model)
    settings = {"steps": 4, "probes": 3, "progress": False}
    torch.set_num_threads(1)
    alone = block_spectra(made, blocks, **settings)
    torch.set_num_threads(4)
    monkeypatch.setattr("blockspectra.workers.LARGE", 0)
    found = block_spectra(made, blocks, **settings)
    assert found.meta["products"].endswith("side by side by one thread each")
    for key in ("alpha", "beta"):
        values, wanted = getattr(found, key), getattr(alone, key)
        largest = np.abs(wanted).max((1, 2), keepdims=True)
        assert (np.abs(values - wanted) <= 2e-4 * largest).all()  # four threads made the graph


def test_one_run_alone_has_all_threads(four_threads, monkeypatch):
    monkeypatch.setattr("blockspectra.workers.LARGE", 0)
    made = problem(1)
    for probes, ending in ((1, ")"), (2, "one thread each")):
        spectra = block_spectra(made, partition(made.model)[:1], steps=2, probes=probes)
        assert spectra.meta["products"].endswith(ending)
