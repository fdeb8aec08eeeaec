"""What the benchmarks compare with, and what they leave behind; no time is looked at.

This file alone sees a re-statement of the released script that computes something else than the
script does (its cost would then mean nothing), and a number left out without a word.
"""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockspectra import Problem, cross_entropy, partition
from blockspectra.hessian import dense_hessian
from blockspectra.slq import probe_vector
from companion.benchmarks import NAMES
from companion.models.gpt import GPT, GPTConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture(scope="module")
def released():
    spec = importlib.util.spec_from_file_location("released", BENCHMARKS / "released.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problem():
    """A GPT with tied embeddings and a fused attention matrix, on two batches of unlike size."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, heads=2, width=4, context=4, vocab=7, init_std=0.5))
    tokens = torch.randint(7, (5, 5))
    batches = [(part[:, :-1], part[:, 1:]) for part in tokens.split([2, 3])]
    return Problem(model.double().eval(), cross_entropy, batches)


@sdpa_kernel(SDPBackend.MATH)  # the released script differentiates twice what PyTorch would fuse
def test_a_released_product_is_the_dense_block_times_the_vector(released, problem):
    blocks = partition(problem.model)
    vectors = [torch.randn(block.size, dtype=torch.float64) for block in blocks]
    found = released.products(problem, blocks, vectors)
    for block, vector, product in zip(blocks, vectors, found, strict=True):
        expected = dense_hessian(problem, block) @ vector
        assert torch.allclose(product, expected, rtol=1e-9, atol=1e-12), block.name


@sdpa_kernel(SDPBackend.MATH)
def test_released_quadrature_has_the_moments_of_the_dense_block(released, problem):
    blocks, steps, probes = partition(problem.model, only=("*.q", "*.c_fc", "wte")), 3, 2
    nodes, weights = released.quadrature(problem, blocks, steps, probes, seed=5)
    for i, block in enumerate(blocks):
        hessian = dense_hessian(problem, block)
        hessian /= (scale := torch.linalg.matrix_norm(hessian, 2))
        for k in range(probes):
            start = probe_vector(5, block.name, k, block.size)
            power = start = start / start.norm()
            for order in range(2 * steps):
                moment = (weights[i, k] * (nodes[i, k] / float(scale)) ** order).sum()
                assert moment == pytest.approx(float(start @ power), abs=1e-9)
                power = hessian @ power


def test_the_released_density_is_a_gaussian_at_each_node_between_the_mean_ends(released):
    nodes, weights = np.array([[0.0, 2.0], [0.5, 3.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    grid, density = released.density(nodes, weights)
    assert (grid[0], grid[-1]) == pytest.approx((0.25 - 1, 2.5 + 1))
    assert len(grid) == 50_000
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1)
    for node, weight in ((0.0, 0.125), (2.0, 0.375), (0.5, 0.25), (3.0, 0.25)):
        top = weight / math.sqrt(2 * math.pi * 1e-5)
        assert density[np.abs(grid - node).argmin()] == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_was_not_measured_says_why(path):
    content = json.loads(path.read_text())
    assert {"commit", "dirty", "packages", "device"} <= set(content["environment"])
    tables = [part for part in content.values() if isinstance(part, list)]
    rows = [row for table in tables for row in table if isinstance(row, dict)]
    assert all(row["note"] or None not in row.values() for row in rows if "note" in row)
    assert any(row.get("device", "cpu") == "cpu" for row in rows)


def test_every_benchmark_has_results():
    assert {path.stem for path in FILES} == set(NAMES), "run `make bench`"
