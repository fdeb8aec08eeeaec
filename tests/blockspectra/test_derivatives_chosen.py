"""Only this file sees a Hessian taken by derivatives that are wrong for the loss at hand.

Functions with cheap second derivatives replace PyTorch's under a user's model; hooks and custom
backwards act in products once more than they should. Oracle: central differences of plain gradients
in float64, written here.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from blockspectra import Problem, ProblemError, block_spectra, partition
from blockspectra.blocks import whole
from blockspectra.fast_derivatives import mode
from blockspectra.fast_derivatives.rows import Gelu
from blockspectra.gradient_graph import CHEAP, PLAIN
from blockspectra.hessian import BlockHessians, dense_hessian
from custom_functions import Kept

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def stack(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation or nn.GELU(), nn.Linear(4, 3)).double()


def classes(**settings):
    return Problem(
        stack(), lambda m, batch: F.cross_entropy(m(batch[0]), batch[1], **settings), [(X, CLASSES)]
    )


def with_bytes():
    batch = (X, CLASSES.to(torch.uint8))
    return Problem(stack(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])


def derivative_inside(activation):
    """As in physics-informed networks: the loss contains du/dx."""

    def loss(model, x):
        x = x.clone().requires_grad_()
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (du.sum(1, keepdim=True) + u).square().mean()

    return Problem(stack(activation), loss, [X])


def penalty(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    return y.square().mean() + (dx.square().sum(1) + 1e-3).sqrt().sub(1).square().mean()


def checkpointed(model, x):
    return checkpoint(model, x, use_reentrant=False).pow(3).mean()


def forward_mode(model, x):
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    return tangent.square().mean()


def dual_numbers(model, x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return forward_ad.unpack_dual(model(dual)).tangent.square().mean()


def attention(**settings):
    def loss(model, x):
        q = model(x).view(2, 1, 3, 3)
        return F.scaled_dot_product_attention(q, q, q, **settings).pow(3).mean()

    return Problem(stack(), loss, [X])


def normed(norm, **settings):
    model = nn.Sequential(norm(nn.Linear(3, 4), **settings), nn.Tanh(), nn.Linear(4, 3))
    return Problem(model.double(), lambda m, x: m(x).square().mean(), [X])


CASES = {
    "weight_norm": (lambda: normed(weight_norm), CHEAP),
    "weight_norm of columns": (lambda: normed(weight_norm, dim=1), CHEAP),
    "weight_norm of all": (lambda: normed(weight_norm, dim=None), None),
    "weight_norm by hooks": (lambda: normed(nn.utils.weight_norm), CHEAP),
    "plain": (lambda: classes(), CHEAP),
    "class weights": (lambda: classes(weight=WEIGHTS), None),
    "label smoothing": (lambda: classes(label_smoothing=0.1), None),
    "no size average": (lambda: classes(size_average=True), None),
    "labels in bytes": (with_bytes, None),
    "du/dx of tanh": (lambda: derivative_inside(nn.Tanh()), PLAIN),
    "du/dx of GELU": (lambda: derivative_inside(nn.GELU()), f"{PLAIN}: the cheap ones raised"),
    "a gradient penalty": (lambda: Problem(stack(), penalty, [X]), f"{PLAIN}: the cheap ones"),
    "checkpoints": (lambda: Problem(stack(), checkpointed, [X]), f"{PLAIN}: the cheap ones raised"),
    "forward mode": (lambda: Problem(stack(), forward_mode, [X]), PLAIN),
    "dual numbers": (
        lambda: Problem(stack(), dual_numbers, [X]),
        f"{PLAIN}: the cheap ones raised",
    ),
    "attention": (lambda: attention(), CHEAP),
    "attention of scale 0": (lambda: attention(scale=0), None),
    "attention of scale 0.0": (lambda: attention(scale=0.0), None),
    "attention that sees nothing": (
        lambda: attention(attn_mask=torch.tensor([[True, False, True], [False] * 3, [True] * 3])),
        CHEAP,
    ),
}


def differences(problem, step=1e-5):
    """Hessian by central differences of plain gradients, all parameters in a row."""
    parameters, (batch,) = list(problem.model.parameters()), problem.batches

    def gradient():
        with sdpa_kernel(SDPBackend.MATH):
            loss = problem.loss(problem.model, batch)
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    rows = []
    for p in parameters:
        flat = p.data.view(-1)
        for i in range(p.numel()):
            sides = []
            for sign in (1, -1):
                flat[i] += sign * step
                sides.append(gradient())
                flat[i] -= sign * step
            rows.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:size_average", "ignore:.*weight_norm")
@pytest.mark.parametrize(("make", "derivatives"), CASES.values(), ids=CASES)
def test_the_hessian_is_that_of_the_loss_whatever_is_in_it(make, derivatives):
    problem = make()
    expected = differences(problem)
    found = dense_hessian(problem, whole(problem.model))
    largest = float(expected.abs().max())
    assert largest > 0 or "scale" in str(make)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * largest + 1e-12)
    with problem.curvature_mode():
        chosen = BlockHessians(problem, [whole(problem.model)]).derivatives
    assert chosen.startswith(derivatives or ("cheap", "plain"))


def test_the_largest_eigenvalue_of_a_residual_of_physics_is_right_and_its_spectra_say_how():
    problem = derivative_inside(nn.GELU())
    spectra = block_spectra(problem, [whole(problem.model)], steps=31, probes=1)
    expected = torch.linalg.eigvalsh(differences(problem))[-1]
    assert spectra.nodes("all parameters").max() == pytest.approx(float(expected), rel=1e-6)
    assert "plain derivatives: the cheap ones raised RuntimeError" in spectra.meta["products"]
    other = classes()
    spectra = block_spectra(other, partition(other.model), steps=2, probes=1)
    assert spectra.meta["products"].endswith(CHEAP)


class Off(Gelu):
    """GELU whose second derivative is off by a tenth."""

    @staticmethod
    def backward(ctx, g):
        found = Gelu.backward(ctx, g)
        return found if torch.is_grad_enabled() else found * 1.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cheap_derivatives_that_are_off_in_a_narrow_block_are_not_taken(monkeypatch, dtype):
    torch.manual_seed(0)

    class Narrow(nn.Module):
        """A stiff part, and beside it a narrow one that alone uses GELU."""

        def __init__(self):
            super().__init__()
            self.stiff, self.narrow = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return 1e3 * self.stiff(x).square().mean() + F.gelu(self.narrow(x)).square().mean()

    problem = Problem(Narrow().to(dtype), lambda m, x: m(x), [X.to(dtype)])
    exact = dense_hessian(problem, partition(problem.model, only="narrow")[0])

    monkeypatch.setitem(mode.OURS, F.gelu, Off.apply)
    blocks = partition(problem.model)
    with problem.curvature_mode():
        hessians = BlockHessians(problem, blocks)
        assert hessians.derivatives.startswith(f"{PLAIN}: the cheap ones differ in 'narrow.")
        rows = [hessians.product(blocks[1], row) for row in torch.eye(6, dtype=dtype)]
    torch.testing.assert_close(torch.stack(rows), exact)


# what no derivative puts right


def hooked(where, factor=0.1):
    model = stack(nn.Tanh())
    if where == "activation":

        def loss(m, x):
            hidden = m[0](x)
            hidden.register_hook(lambda g: factor * g)
            return m[2](m[1](hidden)).square().mean()

        return Problem(model, loss, [X])
    if where == "module":
        model[0].register_full_backward_hook(lambda module, given, out: (factor * given[0],))
        model = nn.Sequential(nn.Linear(3, 3).double(), *model)
    else:
        dict(model.named_parameters())[where].register_hook(lambda g: factor * g)
    return Problem(model, lambda m, x: m(x).square().mean(), [X])


class Straight(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def third_derivative_of_layer_norm(model, x):
    x = x.clone().requires_grad_()
    y = F.layer_norm(model(x), (3,))
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    return dx.square().mean()


WRONG = {
    "PyTorch's third derivative of layer norm": lambda: Problem(
        stack(), third_derivative_of_layer_norm, [X]
    ),
    "a hook on a weight": lambda: hooked("0.weight"),
    "a hook on a bias": lambda: hooked("2.bias"),
    "a hook of one per cent": lambda: hooked("0.weight", 0.99),
    "a hook on an activation": lambda: hooked("activation"),
    "a hook of a module": lambda: hooked("module"),
    "a straight-through estimator": lambda: Problem(
        stack(), lambda m, x: (m(x) + Straight.apply(5 * m(x))).square().mean(), [X]
    ),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_no_derivative_puts_right_is_refused(make):
    torch.manual_seed(0)
    problem = make()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    with pytest.raises(ProblemError, match=r"^The (gradient|second derivative) is .*: look for"):
        dense_hessian(problem, whole(problem.model))
    assert all(torch.equal(before[k], v) for k, v in problem.model.state_dict().items())


def test_a_parameter_whose_second_derivative_is_wrong_is_named():
    model = nn.ModuleDict({"right": nn.Linear(3, 2), "wrong": nn.Linear(3, 2)}).double()
    problem = Problem(
        model,
        lambda m, x: 1e4 * m["right"](x).pow(4).mean() + Kept.apply(m["wrong"](x)).mean(),
        [X],
    )
    with pytest.raises(ProblemError, match=r"wrong in 'wrong\..*' \(of the Linear\)"):
        dense_hessian(problem, whole(model))
    right = partition(model, only="right")[0]
    assert dense_hessian(problem, right).norm() > 0  # what is not on the way does not matter


def test_a_hook_is_refused_where_differences_can_be_taken_in_float32_alone():
    problem = hooked("0.weight")
    single = Problem(problem.model.float(), lambda m, x: m(x.float()).square().mean(), [X.float()])
    with pytest.raises(ProblemError, match="look for hooks"):
        dense_hessian(single, whole(single.model))


@pytest.mark.parametrize("stopped", ["half of an output", "a target"])
def test_a_gradient_that_is_stopped_on_the_way_is_refused(stopped):
    def loss(model, x):
        own, other = model(x), (model(x.flip(1)) if stopped == "a target" else -model(x)).detach()
        return (own - other).square().mean()

    with pytest.raises(ProblemError, match=r"gradient is not the loss's, .* detach\(\)"):
        dense_hessian(problem := Problem(stack(), loss, [X]), whole(problem.model))


# what is right and must not be refused


def test_blocks_in_two_precisions_are_no_obstacle():
    torch.manual_seed(0)
    model = nn.ModuleDict({"coarse": nn.Linear(3, 4), "fine": nn.Linear(4, 3).double()})

    def loss(model, x):
        inner = model["coarse"](x.to(model["coarse"].weight.dtype)).tanh()
        return model["fine"](inner.double()).square().mean()

    def outer(model, x):
        return loss(model, x.float())

    for one in (loss, outer):  # the second cannot be moved to float64
        problem = Problem(model, one, [X])
        found = [dense_hessian(problem, block) for block in partition(model, vectors=True)]
        reference = Problem(copy.deepcopy(model).double(), loss, [X])
        exact = [dense_hessian(reference, b) for b in partition(reference.model, vectors=True)]
        for here, there in zip(found, exact, strict=True):
            torch.testing.assert_close(here.double(), there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hook_that_only_looks_is_no_obstacle(dtype):
    problem, seen = hooked("0.weight", 1.0), []
    problem.model[0].weight.register_hook(lambda g: seen.append(g.shape))
    problem.model[0].register_full_backward_hook(lambda module, given, out: seen.append(out))
    problem.model.to(dtype)
    problem.batches[0] = X.to(dtype)
    assert dense_hessian(problem, whole(problem.model)).norm() > 0
    assert seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relus_at_exactly_zero_are_no_obstacle(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].weight, -1.0)  # the first layer is dead: the second is at its bias
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    problem = Problem(model.to(dtype), lambda m, x: m(x).square().mean(), [X.abs().to(dtype)])
    found = dense_hessian(problem, whole(model))
    assert found[-1, -1] == pytest.approx(2)  # of the last bias
    assert (found != 0).sum() == 1
    model[4].bias.register_hook(lambda g: 0.1 * g)  # and hide none
    with pytest.raises(ProblemError, match="look for hooks"):
        dense_hessian(problem, whole(model))


def test_numbers_that_a_model_keeps_in_float32_are_no_obstacle():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = stack()

        def forward(self, x):
            return self.inner(x).float().softmax(-1).to(x.dtype)

    problem = Problem(Mixed(), lambda m, x: m(x).square().mean(), [X])
    assert dense_hessian(problem, whole(problem.model)).norm() > 0
    single = Problem(Mixed().float(), lambda m, x: m(x).square().mean(), [X.float()])
    assert dense_hessian(single, whole(single.model)).norm() > 0
