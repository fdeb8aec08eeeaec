"""Only this file sees a kind of model that nobody here built: what a new user would come with.

The project's own models are written so that a Hessian can be had. Others return objects, tie and
fuse weights, have fast paths, fused attention, sparse gradients or frozen parts. Oracle: dense
Hessians of small blocks by plain double backward, written here, in float64.
"""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockspectra import Problem, partition
from blockspectra.diagnosis import diagnose
from foreign_models import MODELS, make

SMALL = 260  # parameters of a block whose dense Hessian is affordable here


def in_float64(problem):
    """The same problem with every real number in float64."""

    def convert(x):
        real = isinstance(x, torch.Tensor) and x.is_floating_point()
        return x.double() if real else x

    batches = [
        {key: convert(x) for key, x in batch.items()}
        if isinstance(batch, dict)
        else tuple(map(convert, batch))
        for batch in problem.batches
    ]
    model = copy.deepcopy(problem.model).double()
    for module in model.modules():  # their gradients are not the loss's, or sparse
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx, module.sparse = None, False
    return Problem(model, problem.loss, batches)


def largest_eigenvalue(problem, piece):
    """λ_max of one block from its dense Hessian: gradients of the gradient's entries."""
    parameter, index, total = piece.parameter, piece.index, 0.0
    sizes = [len(next(iter(b.values())) if isinstance(b, dict) else b[0]) for b in problem.batches]
    with sdpa_kernel(SDPBackend.MATH):
        for batch, size in zip(problem.batches, sizes, strict=True):
            loss = problem.loss(problem.model, batch) * size / sum(sizes)
            (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
            rows = [
                torch.autograd.grad(entry, parameter, retain_graph=True)[0][index].flatten()
                for entry in gradient[index].flatten()
            ]
            total = total + torch.stack(rows)
    return float(torch.linalg.eigvalsh(total)[-1])


@pytest.fixture(scope="module", params=MODELS, ids=lambda function: function.__name__)
def found(request):
    problem = make(request.param)
    return problem, diagnose(problem, quiet=True, progress=False), make(request.param).model


def test_largest_eigenvalues_are_those_of_dense_hessians(found):
    problem, diagnosis, _ = found
    exact = in_float64(problem)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Left out because frozen")
        blocks = [block for block in partition(exact.model) if block.size <= SMALL]
    assert len(blocks) >= 2
    for block in blocks[:2] + blocks[-1:]:
        (piece,) = block.pieces
        wanted = largest_eigenvalue(exact, piece)
        assert diagnosis.blocks.loc[block.name, "lambda_max"] == pytest.approx(wanted, rel=2e-3)


def test_nothing_of_the_model_is_changed(found):
    problem, _, fresh = found
    for (name, left), (_, right) in zip(
        problem.model.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name
    for left, right in zip(problem.model.modules(), fresh.modules(), strict=True):
        for setting in ("training", "sparse", "padding_idx"):
            assert getattr(left, setting, None) == getattr(right, setting, None)
    assert all(p.grad is None for p in problem.model.parameters())


def test_the_report_is_complete(found, tmp_path):
    problem, diagnosis, _ = found
    page, numbers = diagnosis.save(tmp_path)
    content = json.loads(numbers.read_text(encoding="utf-8"))
    names = [row["block"] for row in content["blocks"]]
    assert names == diagnosis.spectra.names
    assert all(name in page.read_text(encoding="utf-8") for name in names)
    norms = [row["gradient_norm"] for row in content["blocks"]]
    assert np.isfinite(norms).all()
    assert content["advice"]["word"] in ("SGD will do", "use Adam", "cannot tell")
    frozen = [n for n, p in problem.model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == any("frozen" in note for note in content["notes"])
