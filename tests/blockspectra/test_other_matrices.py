"""Only this file sees a wrong Gauss–Newton matrix or a wrong preconditioned one.

Both are symmetric and of the right size whatever a factor, a transpose or a forgotten batch does
to them. Oracles: the Jacobian by `torch.func`, dense matrices multiplied out, closed forms.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

from blockspectra import Problem, ProblemError, block_spectra, partition
from blockspectra.hessian import BlockHessians, dense_hessian


def forward(model, batch):
    return model(batch[0])


def mean_cross_entropy(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


def small_problem(activation=nn.Tanh, sizes=(3, 5)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in sizes]
    return Problem(model, (forward, mean_cross_entropy), batches)


def dense(problem, block, **settings):
    with problem.curvature_mode():
        made = BlockHessians(problem, [block], **settings)
        unit = torch.eye(block.size, dtype=torch.float64)
        return torch.stack([made.product(block, row) for row in unit], dim=1)


def gauss_newton_by_jacobian(problem, block):
    (parameter,) = block.parameters
    name = next(n for n, p in problem.model.named_parameters() if p is parameter)
    at, total = parameter.detach(), 0
    for (x, y), weight in zip(problem.batches, problem.weights, strict=True):

        def outputs(w, x=x):
            return functional_call(problem.model, {name: w}, (x,)).reshape(-1)

        def loss(z, y=y):
            return F.cross_entropy(z.view(len(y), -1), y)

        jacobian = jacrev(outputs)(at).reshape(-1, block.size)
        total = total + weight * jacobian.T @ hessian(loss)(outputs(at)) @ jacobian
    return total.detach()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU])
def test_gauss_newton_of_a_network_over_batches_of_two_sizes(activation):
    problem = small_problem(activation)
    for block in partition(problem.model):
        wanted = gauss_newton_by_jacobian(problem, block)
        torch.testing.assert_close(dense(problem, block, matrix="ggn"), wanted, rtol=0, atol=1e-12)


def test_it_is_the_hessian_where_the_outputs_are_linear_in_the_block():
    problem = small_problem()
    last = partition(problem.model)[-1]
    ggn = dense(problem, last, matrix="ggn")
    torch.testing.assert_close(ggn, dense_hessian(problem, last), rtol=0, atol=1e-12)


def test_it_is_another_matrix_where_they_are_not():
    problem = small_problem()
    first = partition(problem.model)[0]
    assert (dense(problem, first, matrix="ggn") - dense_hessian(problem, first)).abs().max() > 1e-3


def test_several_vectors_at_once_are_one_after_the_other():
    problem = small_problem()
    first = partition(problem.model)[0]
    vectors = torch.randn(3, first.size, dtype=torch.float64)
    with problem.curvature_mode():
        made = BlockHessians(problem, [first], matrix="ggn")
        together, apart = made.product(first, vectors), [made.product(first, v) for v in vectors]
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=1e-13)


def test_a_loss_in_one_part_is_refused():
    problem = small_problem()
    whole = Problem(problem.model, problem.loss, problem.batches)
    with pytest.raises(ProblemError, match="needs the loss in two parts"):
        block_spectra(whole, partition(whole.model), matrix="ggn", steps=2, probes=1)


def test_a_linear_loss_has_no_gauss_newton_part():
    problem = small_problem()
    linear = Problem(problem.model, (forward, lambda z, _: z.mean()), problem.batches[:1])
    first = partition(problem.model)[0]
    assert not dense(linear, first, matrix="ggn").any()
    assert dense_hessian(linear, first).abs().max() > 1e-3


@pytest.mark.parametrize("shape", ["coordinate", "block"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_preconditioned_products_are_those_of_the_dense_matrix(shape, matrix):
    problem = small_problem()
    for block in partition(problem.model):
        diagonal = torch.rand(block.size if shape == "coordinate" else (), dtype=torch.float64) + 1
        scale = (diagonal**-0.5).expand(block.size)
        plain = dense(problem, block, matrix=matrix)
        made = dense(problem, block, matrix=matrix, preconditioner={block.name: diagonal})
        torch.testing.assert_close(made, scale[:, None] * plain * scale, rtol=0, atol=1e-12)


def test_spectra_of_a_preconditioned_block_have_the_eigenvalues_of_the_dense_matrix():
    problem = small_problem()
    blocks = partition(problem.model)
    diagonals = {b.name: torch.rand(b.size, dtype=torch.float64) + 0.1 for b in blocks}
    spectra = block_spectra(problem, blocks, steps=30, probes=1, preconditioner=diagonals)
    for block, largest in zip(blocks, spectra.largest, strict=True):
        scale = diagonals[block.name] ** -0.5
        exact = torch.linalg.eigvalsh(scale[:, None] * dense_hessian(problem, block) * scale)
        np.testing.assert_allclose(largest, exact.max(), rtol=1e-10)


def test_one_number_a_block_divides_its_spectrum():
    problem = small_problem()
    blocks = partition(problem.model)
    fours = {block.name: torch.tensor(4.0) for block in blocks}
    plain = block_spectra(problem, blocks, steps=5, probes=2)
    made = block_spectra(problem, blocks, steps=5, probes=2, preconditioner=fours)
    np.testing.assert_allclose(made.alpha, plain.alpha / 4, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("diagonal", "message"),
    [
        (None, "lacks block"),
        (torch.ones(3), "must have shape"),
        (torch.tensor(0.0), "positive and finite"),
        (torch.tensor(float("nan")), "positive and finite"),
    ],
)
def test_what_does_not_fit_is_refused(diagonal, message):
    problem = small_problem()
    blocks = partition(problem.model)[:1]
    given = {} if diagonal is None else {blocks[0].name: diagonal}
    with pytest.raises(ValueError, match=message):
        block_spectra(problem, blocks, steps=2, probes=1, preconditioner=given)


def test_a_checkpoint_of_another_matrix_is_not_gone_on_from(tmp_path):
    problem = small_problem()
    blocks = partition(problem.model)
    settings = {"steps": 3, "probes": 1, "checkpoint": tmp_path}
    block_spectra(problem, blocks, **settings)
    twos = {block.name: torch.tensor(2.0) for block in blocks}
    for other in ({"matrix": "ggn"}, {"preconditioner": twos}):
        with pytest.raises(ValueError, match="of another problem"):
            block_spectra(problem, blocks, **settings, **other)
