"""Only this file sees a promise of cost that leaves out batches, probes, the basis or the graph."""

import pytest
import torch

from blockspectra import Problem, partition
from blockspectra.blocks import whole
from blockspectra.cost import Cost, estimate
from blockspectra.gradient_graph import GradientGraph
from companion.setups import setup


@pytest.fixture(scope="module")
def problem():
    return setup("gpt", "tiny", samples=6, batches=3).problem


def test_products_are_counted_over_blocks_probes_steps_and_batches(problem):
    blocks = partition(problem.model)
    assert estimate(problem, blocks, 5, 2).products == len(blocks) * 5 * 2 * 3
    neurons = partition(problem.model, "neuron")  # of 8 or 32 entries each: no more steps than that
    steps = sum(min(20, block.size) for block in neurons)
    assert estimate(problem, neurons, 20, 1).products == steps * 3


def test_each_parameter_is_timed_once_however_many_blocks_lie_in_it(problem, monkeypatch):
    timed = []
    product = GradientGraph.product
    monkeypatch.setattr(
        GradientGraph, "product", lambda self, b, v: timed.append(b.name) or product(self, b, v)
    )
    estimate(problem, partition(problem.model, "neuron"), 20, 1)
    parameters = {p for block in partition(problem.model) for p in block.parameters}
    assert len(timed) == 2 * len(parameters)


def test_more_probes_cost_as_many_times_more(problem):
    blocks = partition(problem.model)
    few, many = (estimate(problem, blocks, 10, probes) for probes in (1, 1000))
    assert 100 < many.seconds / few.seconds < 10_000  # one timing each, on a machine that is busy


def test_a_basis_is_estimated_in_the_precision_of_the_model(problem, monkeypatch):
    monkeypatch.setattr("blockspectra.cost.in_use", lambda device: 0)
    block = whole(problem.model)
    assert block.parameters[0].dtype == torch.float32
    auto, named, double = (
        estimate(problem, [block], 100, 1, basis=basis).memory
        for basis in ("auto", "float32", "float64")
    )
    assert auto == named
    assert double - auto == 4 * 100 * block.size


def test_memory_holds_the_basis_and_every_batch(problem):
    block = whole(problem.model)
    kept, small = (
        estimate(problem, [block], 1000, 1, basis=basis).memory for basis in ("float64", "none")
    )
    assert kept - small == pytest.approx(8 * 1000 * block.size, abs=64 * 2**20)  # the process's own
    assert kept > 8 * 1000 * block.size
    assert small > 42 * block.size  # of the checks


def test_graphs_that_do_not_fit_are_made_again_and_paid_for(problem, monkeypatch):
    blocks = partition(problem.model)
    plenty = estimate(problem, blocks, 10, 1, memory="100GiB")
    scarce = estimate(problem, blocks, 10, 1, memory=1)
    assert scarce.products == plenty.products
    assert scarce.memory < plenty.memory


def test_blocks_smaller_than_the_steps_that_lanczos_is_timed_with_have_a_cost_too():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)).eval()
    tiny = Problem(model, lambda model, x: model(x).square().mean(), [torch.ones(3, 2)])
    cost = estimate(tiny, partition(model), steps=30, probes=2)
    assert cost.products == 2 * (4 + 2)


def test_it_reads_as_a_sentence():
    cost = Cost(products=1000, seconds=125.0, gradient=0.25, memory=3 * 2**30)
    assert str(cost) == "1,000 products, about 2 min 5 s (0.50 gradients each), 3.0 GiB of memory"
    assert "about 0.5 s" in str(Cost(10, 0.5, 0.1, 2**20))


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_it_says_where_one_thread_is_faster(problem, monkeypatch, ratio):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    times = {1: ratio, 2: 1.0}
    monkeypatch.setattr("blockspectra.cost._seconds", lambda *_: times[torch.get_num_threads()])
    try:
        cost = estimate(problem, partition(problem.model), 2, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (cost.threads, cost.one_thread) == (2, ratio)
    assert ("torch.set_num_threads(1)" in str(cost)) == (ratio < 1)


def test_no_steps_are_refused(problem):
    with pytest.raises(ValueError, match="steps and probes must be at least 1, not 0 and 3"):
        estimate(problem, partition(problem.model), 0, 3)
