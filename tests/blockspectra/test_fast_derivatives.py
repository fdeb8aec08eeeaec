"""Only this file sees a cheap second derivative that is not that of the function itself.

Oracles: PyTorch's own double backward, and `gradgradcheck`'s finite differences.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockspectra import Problem
from blockspectra.fast_derivatives.mode import FastDerivatives
from blockspectra.gradient_graph import GradientGraph, graph


def gaussian(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def twice(function, inputs, cheap):
    """Value, gradient, and the derivatives of that in the inputs and in the incoming gradient."""
    if cheap:
        with FastDerivatives():
            y = function(*inputs)
    else:
        y = function(*inputs)
    g = gaussian(*y.shape, seed=1)
    gradient = torch.autograd.grad(y, inputs, g, create_graph=True)
    vectors = [gaussian(*x.shape, seed=2 + i).detach() for i, x in enumerate(inputs)]
    second = torch.autograd.grad(gradient, [*inputs, g], vectors, allow_unused=True)
    return [y, *gradient, *second]


MASK = torch.tensor([[True, False, True], [False, False, False]])  # the second sees nothing
BIAS = torch.tensor([[0.5, -1.0, 2.0], [0.0, float("-inf"), 0.0]], dtype=torch.float64)
CLASSES = torch.tensor([2, 0, -100, 1])
CASES = {
    "gelu": (F.gelu, [(3, 5)]),
    "fused attention": (
        F.scaled_dot_product_attention,
        [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 2)],
    ),
    "fused attention to the past": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7),
        [(3, 4, 5), (3, 4, 5), (3, 4, 2)],
    ),
    "fused attention to all alike": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.0),
        [(3, 4, 5), (3, 6, 5), (3, 6, 2)],
    ),
    "fused attention under a mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK),
        [(2, 1, 2, 5), (2, 1, 3, 5), (2, 1, 3, 4)],
    ),
    "fused attention with a bias": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BIAS),
        [(2, 1, 2, 5), (2, 1, 3, 5), (2, 1, 3, 4)],
    ),
    "called by keyword": (lambda x: F.gelu(input=x), [(3, 5)]),
    "one after the other": (lambda x: F.gelu(F.gelu(x)) * x, [(3, 5)]),
    "cross-entropy": (lambda x: F.cross_entropy(x, CLASSES), [(4, 3)]),
    "cross-entropy, scaled": (lambda x, s: F.cross_entropy(x, CLASSES) * s.sum(), [(4, 3), (2,)]),
    "cross-entropy that ignores a class": (
        lambda x: F.cross_entropy(x, CLASSES.clamp_min(0), ignore_index=0, reduction="mean"),
        [(4, 3)],
    ),
    "cross-entropy of itself": (
        lambda x: F.cross_entropy(F.cross_entropy(x, CLASSES) * x, CLASSES),
        [(4, 3)],
    ),
}
ONCE = [name for name in CASES if "attention" in name]


@pytest.mark.parametrize("name", CASES)
def test_values_and_both_derivatives_are_those_of_pytorch(name):
    function, shapes = CASES[name]
    inputs = [gaussian(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
    expected, found = (twice(function, inputs, cheap) for cheap in (False, True))
    for left, right in zip(expected, found, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(right, left, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_second_derivative_agrees_with_finite_differences(name):
    function, shapes = CASES[name]

    def cheap(*inputs):
        with FastDerivatives():
            return function(*inputs)

    inputs = [gaussian(*shape, seed=20 + i) for i, shape in enumerate(shapes)]
    assert torch.autograd.gradgradcheck(cheap, inputs)


@pytest.mark.parametrize("name", ONCE)
def test_a_second_gradient_of_the_same_values_is_refused_not_wrong(name):
    function, shapes = CASES[name]
    inputs = [gaussian(*shape, seed=40 + i) for i, shape in enumerate(shapes)]
    with FastDerivatives():
        loss = function(*inputs).pow(3).sum()
    torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once"):
        torch.autograd.grad(loss, inputs, create_graph=True)


@pytest.mark.parametrize("name", CASES)
def test_a_third_derivative_is_refused_not_wrong(name):
    function, shapes = CASES[name]
    inputs = [gaussian(*shape, seed=50 + i) for i, shape in enumerate(shapes)]
    with FastDerivatives():
        loss = function(*inputs).pow(3).sum()
    gradient = torch.autograd.grad(loss, inputs, create_graph=True)
    vectors = [g.detach() for g in gradient]

    def third():
        second = torch.autograd.grad(gradient, inputs, vectors, create_graph=True)
        return torch.autograd.grad(second, inputs, vectors)

    with pytest.raises(RuntimeError, match=r"can be taken once|once more, not twice"):
        third()


class Cut(Function):
    """Lets no gradient through, not even zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_does_not_arrive_is_zero(name):
    function, shapes = CASES[name]
    inputs = [gaussian(*shape, seed=60 + i) for i, shape in enumerate(shapes)]
    results = []
    for context in (FastDerivatives(), torch.enable_grad()):
        with context:
            loss = Cut.apply(function(*inputs)).sum() + sum(x.pow(3).sum() for x in inputs)
        gradient = torch.autograd.grad(loss, inputs, create_graph=True)
        results.append(torch.autograd.grad(gradient, inputs, [g.detach() for g in gradient]))
    torch.testing.assert_close(*results)


def test_all_that_is_kept_for_products_is_counted_as_memory():
    model = nn.Linear(4, 4).double()

    def loss(model, x):
        return F.scaled_dot_product_attention(*[model(x)] * 3).pow(3).sum()

    problem = Problem(model, loss, [gaussian(2, 50, 4).detach()])
    kept = GradientGraph(problem, problem.batches[0], list(model.parameters()))
    saved = [n for n in graph(kept.gradient.values()) if hasattr(n, "_saved_once")]
    shapes = [t.shape for n in saved for t in n._saved_once]
    assert shapes == [(2, 50, 4), (2, 50, 50), (2, 50, 50)]
    before = kept.nbytes()
    for node in saved:
        del node._saved_once
    assert before - kept.nbytes() == 8 * 2 * (50 * 4 + 2 * 50 * 50)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.gelu(x.bfloat16()),
        lambda x: F.gelu(x.detach()),
        lambda x: F.scaled_dot_product_attention(x[None, None], *2 * (x[None],)),
        lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.mT),
        lambda x: F.cross_entropy(x, torch.zeros(3, dtype=int), label_smoothing=0.1),
        lambda x: F.cross_entropy(x, torch.zeros(3, dtype=int), reduction="sum"),
        lambda x: F.cross_entropy(x, x.detach().softmax(1)),
    ],
)
def test_other_calls_are_left_as_they_are(function):
    x = gaussian(3, 5)
    with FastDerivatives():
        found = function(x)
    assert torch.equal(found, function(x))
    assert not hasattr(found.grad_fn, "saved_tensors")  # as our own functions have


@pytest.mark.parametrize("name", CASES)
def test_several_vectors_at_once_by_vmap(name):
    function, shapes = CASES[name]
    inputs = [gaussian(*shape, seed=70 + i) for i, shape in enumerate(shapes)]
    with FastDerivatives():
        loss = function(*inputs).pow(3).sum()
    gradient = torch.autograd.grad(loss, inputs, create_graph=True)
    vectors = [gaussian(4, *shape, seed=80 + i).detach() for i, shape in enumerate(shapes)]
    kept = {"retain_graph": True}
    together = torch.autograd.grad(gradient, inputs, vectors, is_grads_batched=True, **kept)
    for i in range(4):
        one = torch.autograd.grad(gradient, inputs, [v[i] for v in vectors], **kept)
        torch.testing.assert_close([rows[i] for rows in together], list(one))


@pytest.mark.parametrize("alone", [[0], [1], [2], [0, 1], [1, 2]])
def test_some_parts_of_attention_alone_asked_for(alone):
    qkv = [gaussian(2, 3, 4, seed=i) for i in range(3)]
    wanted = [qkv[i] for i in alone]
    results = []
    for context in (FastDerivatives(), sdpa_kernel(SDPBackend.MATH)):
        with context:
            loss = F.scaled_dot_product_attention(*qkv, is_causal=True).pow(3).sum()
        gradient = torch.autograd.grad(loss, wanted, create_graph=True)
        results.append(torch.autograd.grad(gradient, wanted, [g.detach() for g in gradient]))
    torch.testing.assert_close(*results)
