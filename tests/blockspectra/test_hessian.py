"""Only this file sees a product with something other than the block's Hessian of the mean loss.

Cross terms of other blocks, a slice off by one, half of a tied weight or a batch weighted wrongly
leave a symmetric matrix of the right size. Oracles: closed forms, `torch.func`, finite
differences, and the Hessian of a larger block.
"""

import weakref
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

from blockspectra import Problem, ProblemError, block_spectra, cross_entropy, partition
from blockspectra.blocks import Block, Piece, whole
from blockspectra.gradient_graph import GradientGraph
from blockspectra.hessian import BlockHessians, block_products, dense_hessian, hessian_product
from companion.models import gpt
from companion.setups import REDUCED, setup
from custom_functions import OnceOnly


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def problem_of(name, samples=4, batches=1):
    return setup(name, "tiny", samples=samples, batches=batches, dtype=torch.float64).problem


def close(left, right, tolerance=1e-10):
    """Equal to within a share of the largest entry."""
    right = right.detach()
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance * float(right.abs().max()))


def mean_loss(problem, overrides):
    """The mean loss with some parameters replaced, by name, weighted independently."""

    def model(inputs):
        return functional_call(problem.model, overrides, (inputs,))

    losses = [problem.loss(model, batch) * len(batch[0]) for batch in problem.batches]
    return sum(losses) / sum(len(batch[0]) for batch in problem.batches)


def positions(block):
    """Where the entries of a block of one parameter lie in that parameter, flattened."""
    (piece,) = block.pieces
    numbers = torch.arange(piece.parameter.numel()).view(piece.parameter.shape)
    return numbers[piece.index].reshape(-1)


def functional(problem, block):
    """The mean loss as a function of the block's entries, through `functional_call`."""
    parameter, where = block.parameters[0], positions(block)
    name = next(n for n, p in problem.model.named_parameters() if p is parameter)
    at = parameter.detach().reshape(-1)

    def loss(entries):
        changed = at.scatter(0, where, entries).view(parameter.shape)
        return mean_loss(problem, {name: changed})

    return loss, at[where]


def differences(loss, at, step=1e-5):
    """Central finite differences of the gradient, column by column."""
    shifts = step * torch.eye(len(at), dtype=at.dtype)
    gradients = vmap(grad(loss), chunk_size=64)
    return (gradients(at + shifts) - gradients(at - shifts)) / (2 * step)


def dense_whole_parameter(problem, block):
    return dense_hessian(problem, Block("all of it", (Piece(block.parameters[0]),)))


# closed forms


def test_linear_regression_has_the_hessian_two_over_n_times_the_gram_matrix():
    x, y = gaussian(7, 3), gaussian(7, 1, seed=1)
    model = nn.Linear(3, 1, bias=False).double()
    problem = Problem(model, lambda m, batch: F.mse_loss(m(batch[0]), batch[1]), [(x, y)])
    close(dense_hessian(problem, whole(model)), 2 / 7 * x.T @ x, 1e-14)


def test_softmax_regression_has_the_kronecker_hessian():
    x, y = gaussian(7, 3), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    model = nn.Linear(3, 4, bias=False).double()
    p = model(x).softmax(-1).detach()  # (n, class)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = sum(torch.kron(c, torch.outer(a, a)) for c, a in zip(curvature, x, strict=True)) / 7
    close(dense_hessian(Problem(model, cross_entropy, [(x, y)]), whole(model)), exact, 1e-14)


def test_a_quadratic_has_its_own_matrix_and_its_blocks_have_the_diagonal_ones():
    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(gaussian(2, 2)), nn.Parameter(gaussian(3, 2, seed=1))

        def forward(self, h):
            w = torch.cat([self.a.reshape(-1), self.b.reshape(-1)])
            return w @ h @ w / 2

    h = gaussian(10, 10) + gaussian(10, 10).T
    problem = Problem(Quadratic(), lambda model, batch: model(batch), [h])
    a, b = partition(problem.model)
    close(dense_hessian(problem, whole(problem.model)), h, 1e-14)
    close(dense_hessian(problem, a), h[:4, :4], 1e-14)
    close(dense_hessian(problem, b), h[4:, 4:], 1e-14)


# independent derivatives of the real models, and of the hard kinds of layer


@pytest.mark.parametrize("name", REDUCED)
def test_every_block_agrees_with_torch_func_and_with_finite_differences(name):
    problem = problem_of(name)
    for block in partition(problem.model):
        loss, at = functional(problem, block)
        with problem.curvature_mode():  # fused attention has no forward-mode derivative
            exact = hessian(loss)(at)
            close(differences(loss, at), exact, 1e-5)
        vector = gaussian(block.size)
        close(block_products(problem, [block], [vector])[0], exact @ vector)
        if block.size <= 100 or name == "gpt":  # one column at a time is slow
            close(dense_hessian(problem, block), exact)


def test_attention_of_pytorch_itself_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).double().eval()
    problem = Problem(model, lambda m, batch: m(batch[0]).pow(3).mean(), [(gaussian(2, 3, 4),)])
    for block in partition(model, vectors=True):
        with problem.curvature_mode():
            expected = differences(*functional(problem, block))
        if block.name == "self_attn.in_proj_bias":  # the bias of the keys changes nothing
            assert expected[4:8].abs().max() < 1e-9
        close(dense_hessian(problem, block), expected, 1e-5)


def test_batch_statistics_are_differentiated_through():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)).double()
    data = (gaussian(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    problem = Problem(model, cross_entropy, [data], batch_statistics=True)
    first = partition(model)[0]
    loss, at = functional(problem, first)
    close(dense_hessian(problem, first), hessian(loss)(at))


# parts of a weight


def tiny_gpt2_of_huggingface():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=4, n_positions=4, vocab_size=7)
    model = GPT2LMHeadModel(config).double().eval()
    tokens = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]]), torch.tensor([[1, 2, 3, 4], [5, 6, 0, 1]])
    return Problem(model, lambda m, batch: cross_entropy(lambda x: m(x).logits, batch), [tokens])


def multihead_attention():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    x = gaussian(2, 3, 4)
    return Problem(model, lambda m, batch: m(batch, batch, batch)[0].pow(2).mean(), [x])


@pytest.mark.parametrize(
    ("problem", "by", "only", "count"),
    [
        (lambda: problem_of("gpt"), "tensor", "h.0.attn.c_attn.*", 3),
        (lambda: problem_of("gpt"), "head", "h.0.attn.c_attn.[qk]*", 4),
        (lambda: problem_of("gpt"), "neuron", "wpe*", 8),
        (lambda: problem_of("bert"), "head", "layer.1.attn.key*", 2),
        (lambda: problem_of("vgg"), "neuron", "features.0*", 8),
        (lambda: problem_of("resnet"), "neuron", "fc*", 10),
        (tiny_gpt2_of_huggingface, "tensor", "*attn.c_attn.*", 3),
        (tiny_gpt2_of_huggingface, "head", "*attn.c_attn.[qk]*", 4),
        (tiny_gpt2_of_huggingface, "neuron", "*mlp.c_fc*", 16),
        (multihead_attention, "head", "in_proj_weight*", 5),
    ],
)
def test_the_hessian_of_a_part_is_the_submatrix_of_the_whole_tensors(problem, by, only, count):
    problem = problem()
    blocks = partition(problem.model, by=by, only=only)
    assert len(blocks) == count
    full = dense_whole_parameter(problem, blocks[0])
    for block in blocks:
        where = positions(block)
        close(dense_hessian(problem, block), full[where][:, where])


def test_huggingface_keeps_q_k_and_v_in_columns():
    problem = tiny_gpt2_of_huggingface()
    for block in partition(problem.model, only="*c_attn.*"):
        with problem.curvature_mode():
            expected = differences(*functional(problem, block))
        close(dense_hessian(problem, block), expected, 1e-5)
    q, _, v = (dense_hessian(problem, b) for b in partition(problem.model, only="*c_attn.*"))
    assert v.norm() > 3 * q.norm()  # at initialisation; a cut by rows would mix them


def test_a_layer_has_the_submatrix_of_the_full_hessian_cross_terms_included():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = (gaussian(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    problem = Problem(model, cross_entropy, [data])
    full = dense_hessian(problem, whole(model))
    first, second = partition(model, by="layer", vectors=True)
    close(dense_hessian(problem, first), full[:16, :16])
    close(dense_hessian(problem, second), full[16:, 16:])


# tied, ignored and linear parameters


def minimal_gpt():
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(layers=1, heads=2, width=4, context=4, vocab=7, init_std=0.3))
    tokens = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]]), torch.tensor([[1, 2, 3, 4], [5, 6, 0, 1]])
    return Problem(model.double().eval(), cross_entropy, [tokens])


def test_the_hessian_of_a_tied_weight_sums_the_four_of_its_untied_halves():
    tied = minimal_gpt()
    (block,) = partition(tied.model, only="wte")
    untied = deepcopy(tied)
    untied.model.lm_head.weight = nn.Parameter(untied.model.wte.weight.detach().clone())
    halves = (Piece(untied.model.wte.weight), Piece(untied.model.lm_head.weight))
    four = dense_hessian(untied, Block("halves", halves)).view(2, 28, 2, 28)
    close(dense_hessian(tied, block), four.sum((0, 2)))
    assert four[0, :, 1].norm() > 0.1 * four.norm()  # the cross terms are no small matter


class Odd(nn.Module):
    """A parameter that is used, one that is ignored and one in which the output is linear."""

    def __init__(self):
        super().__init__()
        self.used = nn.Parameter(gaussian(2, 2))
        self.ignored, self.linear = nn.Parameter(gaussian(2, 3)), nn.Parameter(gaussian(3, 2))

    def forward(self, x):
        return self.used.pow(3).sum() * x.mean() + (self.linear @ x).sum()


@pytest.mark.parametrize("name", ["ignored", "linear"])
def test_a_parameter_that_the_loss_ignores_or_is_linear_in_has_a_zero_hessian(name):
    problem = Problem(Odd(), lambda model, x: model(x), [gaussian(2, 2)])
    for others in ([name], ["used", name]):
        blocks = partition(problem.model, only=others)
        products = block_products(problem, blocks, [torch.ones(b.size) for b in blocks])
        assert torch.equal(products[-1], torch.zeros(6, dtype=torch.float64))
    spectra = block_spectra(problem, partition(problem.model), steps=5, probes=2)
    i = spectra.index(name)
    assert spectra.taken[i].tolist() == [1, 1]
    assert not spectra.nodes(name).any()
    assert (spectra.weights(name)[:, 0] == 1).all()
    assert spectra.taken[spectra.index("used")].tolist() == [4, 4]


def test_a_loss_of_which_no_wanted_block_is_a_part_has_a_zero_hessian():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "ignored": nn.Linear(3, 2)}).double()
    problem = Problem(model, lambda m, x: F.gelu(m["used"].weight).mean(), [gaussian(4, 3)])
    (block,) = partition(model, only="ignored*")
    assert not block_products(problem, [block], [gaussian(6)])[0].any()


# several blocks, several batches, other types


def test_one_full_product_of_all_vectors_is_not_the_block_products():
    problem = minimal_gpt()
    blocks = partition(problem.model, vectors=True)
    order = whole(problem.model).parameters
    blocks.sort(key=lambda b: [p is b.parameters[0] for p in order].index(True))
    vectors = [gaussian(b.size, seed=i) for i, b in enumerate(blocks)]
    sizes = [b.size for b in blocks]
    full = dense_hessian(problem, whole(problem.model))
    product = hessian_product(problem, torch.cat(vectors))
    close(product, full @ torch.cat(vectors), 1e-13)
    apart = block_products(problem, blocks, vectors)
    start, ratios = 0, []
    for block, mixed in zip(apart, product.split(sizes), strict=True):
        inside = slice(start, start + len(block))
        close(block, full[inside, inside] @ torch.cat(vectors)[inside], 1e-13)
        start += len(block)
        ratios.append(float((mixed - block).norm() / block.norm()))
    assert max(ratios) > 10  # the trap: cross terms, many times the block's own product


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (2, 2, 2), (4, 2), (1, 5), (1, 2, 3)])
@pytest.mark.parametrize("name", ["vgg", "gpt"])
def test_batches_of_any_sizes_give_the_hessian_of_the_mean_over_all_samples(name, sizes):
    problem = problem_of(name, samples=6)
    (batch,) = problem.batches
    parts = list(zip(*(x.split(sizes) for x in batch), strict=True))
    split = Problem(problem.model, problem.loss, parts)
    block = partition(problem.model)[1]
    vector = gaussian(block.size)
    (expected,), (found,) = (block_products(p, [block], [vector]) for p in (problem, split))
    close(found, expected, 1e-12)


def test_float32_products_are_those_of_float64_to_single_precision():
    problem = problem_of("gpt")
    single = setup("gpt", "tiny", samples=4).problem
    for exact, rounded in zip(partition(problem.model), partition(single.model), strict=True):
        with torch.no_grad():
            for left, right in zip(exact.parameters, rounded.parameters, strict=True):
                assert torch.equal(left.float(), right)
        vector = gaussian(exact.size)
        (expected,) = block_products(problem, [exact], [vector])
        (found,) = block_products(single, [rounded], [vector])
        assert found.dtype == torch.float32
        close(found.double(), expected, 1e-4)


def test_a_vector_of_the_wrong_shape_is_named():
    problem = problem_of("vgg")
    block = partition(problem.model)[0]
    for vector in (torch.ones(215), torch.ones(216, 1)):
        with pytest.raises(ValueError, match=r"'features.0' needs a vector of shape \(216,\), not"):
            block_products(problem, [block], [vector])


def test_a_block_too_large_for_a_dense_hessian_is_refused():
    problem = problem_of("vgg")
    with pytest.raises(ValueError, match="216 parameters, above the limit of 200"):
        dense_hessian(problem, partition(problem.model)[0], limit=200)


@pytest.mark.parametrize("kept", [True, False])
def test_graphs_of_the_checks_are_not_held_on_to_and_the_first_is_used(kept, monkeypatch):
    problem, graphs, alive = problem_of("mixer", batches=2), [], []
    make, fit = GradientGraph.__init__, BlockHessians.__init__

    def counted(graph, *arguments):
        graphs.append(weakref.ref(graph))
        alive.append(sum(one() is not None for one in graphs))
        make(graph, *arguments)

    def tight(hessians, *arguments, first_graph, **settings):
        budget = (4 if kept else 3) * first_graph.nbytes()  # products take two beside the graphs
        fit(hessians, *arguments, first_graph=first_graph, **settings | {"budget": budget})

    monkeypatch.setattr(GradientGraph, "__init__", counted)
    monkeypatch.setattr(BlockHessians, "__init__", tight)
    block_spectra(problem, partition(problem.model), steps=3, probes=2)
    assert len(graphs) == 3 + (1 if kept else 2 * 3)  # the checks make the first one twice
    assert max(alive) == (2 if kept else 1)


def test_a_function_that_is_no_way_to_the_block_is_no_obstacle():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), gaussian(6, 3)

    def problem(between):
        return Problem(model, lambda m, x: m[1](between(m[0](x))).exp().mean(), [data])

    last = partition(model)[-1]
    found, expected = (dense_hessian(problem(f), last) for f in (OnceOnly.apply, torch.square))
    close(found, expected, 1e-13)
    with pytest.raises(ProblemError, match="once_differentiable"):
        dense_hessian(problem(OnceOnly.apply), whole(model))


def test_products_stay_right_while_others_are_made_of_the_same_parameters():
    """Checks put float64 copies in place of parameters, which cuts a living graph off: zeros."""
    problem = setup("gpt", "tiny", samples=4).problem
    blocks = partition(problem.model)
    vector = torch.randn(blocks[0].size)
    with problem.curvature_mode():
        first = BlockHessians(problem, blocks)
        alone = first.product(blocks[0], vector)
        loss = problem.value(problem.batches[0])  # a graph of the user's own
        second = BlockHessians(problem, blocks)
        torch.testing.assert_close(first.product(blocks[0], vector), alone)
        torch.testing.assert_close(second.product(blocks[0], vector), alone)
    loss.backward()
    assert all(p.grad is not None for p in blocks[0].parameters)
