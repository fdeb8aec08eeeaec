"""Only this file sees a loss that has no Hessian, or not the one meant, let through in silence.

Dropout, BatchNorm in training mode, fused attention or padding give numbers too, just not those of
the function in the title. Also: a process whose settings are not what they were before.
"""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockspectra import Problem, ProblemError, block_spectra, cross_entropy, partition
from blockspectra.blocks import whole
from blockspectra.hessian import block_products, dense_hessian
from companion.setups import setup
from custom_functions import OnceOnly

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.tensor([[0, 1, 2, 0], [3, 0, 4, 1]]), torch.tensor([[1, 2, 0, 3], [0, 4, 1, 2]])


def square(model, batch):
    """The mean square of the outputs."""
    return model(batch).square().mean()


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def stack(*modules):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *modules, nn.Linear(4, 2)).double()


class Attention(nn.Module):
    """Attention by `scaled_dot_product_attention`, with a backend of its own choice or without."""

    def __init__(self, backend=None):
        super().__init__()
        torch.manual_seed(0)
        self.backend, self.qkv = backend, nn.Linear(3, 12)
        self.double().eval()

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 3, 3, 1, 4).permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        if self.backend is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v)


class Multihead(nn.MultiheadAttention):
    """Attention within a function of PyTorch, by a fused kernel."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(x, x, x, need_weights=False)[0]


class Language(nn.Module):
    """An embedding tied to the output, padded by the module, by the function or not at all."""

    def __init__(self, module_padding=None, function_padding=None):
        super().__init__()
        torch.manual_seed(0)
        self.word = nn.Embedding(5, 3, padding_idx=module_padding)
        nn.init.normal_(self.word.weight)
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight, self.padding = self.word.weight, function_padding
        self.double().eval()

    def forward(self, x):
        if self.padding is None:
            return self.out(torch.tanh(self.inner(self.word(x))))
        word = F.embedding(x, self.word.weight, padding_idx=self.padding)
        return self.out(torch.tanh(self.inner(word)))


class NoGradientOfAnything(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0].roll(1, -1) * gradient.roll(1, 0)


def apply(function):
    return Problem(stack(), lambda model, x: square(lambda y: function.apply(model(y)), x), [X])


def attention(backend=None):
    return Problem(Attention(backend), square, [X.view(2, 3, 3)])


def language(**padding):
    return Problem(Language(**padding), cross_entropy, [TOKENS])


def scaled(factor):
    return Problem(linear(), lambda model, x: factor * square(model, x), [X])


def drifting(by):
    calls = count(1)
    return Problem(linear(), lambda model, x: (1 + by * next(calls)) * square(model, x), [X])


REFUSED = {
    "a data set without batches": (
        lambda: Problem(linear(), square, []),
        "The data set is empty: give at least one batch",
    ),
    "an empty batch": (
        lambda: Problem(linear(), square, [X, X[:0]]),
        "batch is empty .* leave it out",
    ),
    "a batch without tensors": (
        lambda: Problem(linear(), square, [{"text": "words"}]),
        "holds no tensor: give tensors",
    ),
    "a batch of a single number": (
        lambda: Problem(linear(), square, [(torch.tensor(1.0),)]),
        "holds no tensor: give tensors",
    ),
    "dropout left on": (
        lambda: Problem(stack(nn.Dropout(0.1)), square, [X]),
        r"Dropout is on in '1': call model\.eval\(\)",
    ),
    "dropout of channels left on": (
        lambda: Problem(stack(nn.Dropout1d(0.1)), square, [X]),
        "Dropout is on in '1'",
    ),
    "functional dropout": (
        lambda: Problem(linear(), lambda model, x: square(model, F.dropout(x, 0.5)), [X]),
        "The loss changed from .* functional dropout",
    ),
    "a factor that grows with every call": (
        lambda: drifting(1e-4),
        "The loss changed from .* between two evaluations",
    ),
    "BatchNorm in training mode": (
        lambda: Problem(stack(nn.BatchNorm1d(4)), square, [X]),
        r"BatchNorm '1' is in training mode.*batch_statistics=True",
    ),
    "fused attention forced by the model": (
        lambda: Problem(Multihead(3, 1).double().eval(), square, [X.view(2, 3, 3)]),
        r"fused .* attention.*sdpa_kernel.*eager",
    ),
    "a loss that is nan": (lambda: scaled(float("nan")), "The loss is nan, not finite: check"),
    "a loss that is infinite": (lambda: scaled(float("inf")), "The loss is inf, not finite"),
    "a loss for each sample": (
        lambda: Problem(linear(), lambda model, x: model(x).sum(-1), [X]),
        r"must be a scalar tensor, not \(6,\): take its mean",
    ),
    "a loss that is a float": (
        lambda: Problem(linear(), lambda model, x: square(model, x).item(), [X]),
        "must be a scalar tensor, not float",
    ),
    "a loss of the data alone": (
        lambda: Problem(linear(), lambda model, x: x.square().mean(), [X]),
        "does not depend on any trainable parameter",
    ),
    "a loss that is detached": (
        lambda: Problem(linear(), lambda model, x: square(model, x).detach(), [X]),
        "does not depend on any trainable parameter",
    ),
    "a function that is differentiable only once": (
        lambda: apply(OnceOnly),
        "cannot be differentiated twice: .* once_differentiable",
    ),
    "a function whose backward is no gradient": (
        lambda: apply(NoGradientOfAnything),
        "gradient is not the loss's, .* custom backward",
    ),
    "padding by the function": (
        lambda: language(function_padding=0),
        "padding_idx=0, .* leave padding_idx out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_hessian_is_refused_in_one_sentence(case):
    build, sentence = REFUSED[case]
    with pytest.raises(ProblemError, match=sentence) as caught:
        dense_hessian(problem := build(), whole(problem.model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        lambda problem, block, vector: block_products(problem, [block], [vector]),
        lambda problem, block, vector: block_spectra(problem, [block], steps=2, probes=1),
    ],
)
def test_every_entry_checks_first(entry):
    problem = Problem(stack(nn.Dropout(0.1)), square, [X])
    block = whole(problem.model)
    with pytest.raises(ProblemError, match="Dropout is on"):
        entry(problem, block, torch.ones(block.size))


def test_a_second_derivative_that_is_nan_is_refused():
    problem = Problem(linear(), lambda model, x: model(x).square().sum(-1).sqrt().mean(), [0 * X])
    nn.init.zeros_(problem.model.bias)
    with pytest.raises(ValueError, match=r"Hessian of .* is not finite"):
        block_spectra(problem, partition(problem.model), steps=2, probes=1)


def test_dropout_of_probability_zero_or_in_evaluation_mode_is_accepted():
    for model in (stack(nn.Dropout(0.0)), stack(nn.Dropout(0.5)).eval()):
        assert dense_hessian(Problem(model, square, [X]), partition(model)[0]).shape == (12, 12)


def test_attention_has_the_same_hessian_whatever_kernel_the_model_asks_for():
    first, *others = (
        dense_hessian(p, whole(p.model))
        for p in map(attention, (None, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION))
    )
    assert all(torch.equal(first, other) for other in others)
    assert first.norm() > 0


def test_the_padding_of_a_module_is_lifted_and_put_back():
    padded, plain = language(module_padding=0), language()
    left, right = (dense_hessian(p, whole(p.model)) for p in (padded, plain))
    assert torch.equal(left, right)
    torch.testing.assert_close(left, left.T, atol=1e-15, rtol=1e-12)
    assert left[0].norm() > 0  # row 0 of the embedding, which padding would zero
    assert padded.model.word.padding_idx == 0


def test_batch_statistics_are_studied_on_purpose_and_running_ones_put_back():
    norm = nn.BatchNorm1d(4)
    problem = Problem(stack(norm), square, [X], batch_statistics=True)
    before = {key: buffer.clone() for key, buffer in norm.named_buffers()}
    training = dense_hessian(problem, partition(problem.model)[0])
    assert norm.training
    assert all(torch.equal(before[key], buffer) for key, buffer in norm.named_buffers())
    evaluating = dense_hessian(problem, partition(problem.model.eval())[0])
    assert not torch.allclose(training, evaluating, rtol=0.01)


def state(model):
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.allow_tf32,
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "gradients": torch.is_grad_enabled(),
        "padding": [m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)],
        "buffers": {key: b.tolist() for key, b in model.named_buffers()},
        "training": [m.training for m in model.modules()],
    }


@pytest.mark.parametrize("cudnn", [True, False])
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("fails", [False, True])
def test_curvature_mode_puts_everything_back_even_where_something_fails(fails, precision, cudnn):
    model = nn.ModuleDict({"word": nn.Embedding(5, 3, padding_idx=2), "norm": nn.BatchNorm1d(3)})
    problem = Problem(model, square, [X], batch_statistics=True)
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn
        with torch.no_grad():
            before = state(model)
            try:
                with problem.curvature_mode():
                    inside = state(model)
                    model["norm"](X.float() + 1)
                    assert not fails
            except AssertionError:
                assert fails
            assert state(model) == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
    assert (inside["matmul"], inside["cudnn"]) == ("highest", False)
    assert (inside["flash"], inside["efficient"], inside["math"]) == (False, False, True)
    assert inside["gradients"]
    assert inside["padding"] == [None]


def test_a_hessian_can_be_had_where_gradients_are_switched_off():
    problem = Problem(linear(), square, [X])
    with torch.no_grad():
        assert dense_hessian(problem, partition(problem.model)[0]).norm() > 0


def test_batches_are_weighted_by_the_length_of_their_first_tensor():
    batches = [(X, "name"), {"inputs": X[:3], "weight": torch.ones(9)}, X[:1], ["id", X[:2]]]
    assert Problem(linear(), square, batches).weights == [6 / 12, 3 / 12, 1 / 12, 2 / 12]


def test_batches_may_come_from_a_generator_or_a_loader():
    from torch.utils.data import DataLoader, TensorDataset

    assert len(Problem(linear(), square, (X for _ in range(3))).batches) == 3
    loader = DataLoader(TensorDataset(X, X), batch_size=4)
    assert Problem(linear(), square, loader).weights == [4 / 6, 2 / 6]


def test_cross_entropy_is_a_mean_over_targets_that_count():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, -100, 4], [-100, 2, 0]])
    by_hand = -logits.log_softmax(-1)
    counted = [by_hand[0, 0, 1], by_hand[0, 2, 4], by_hand[1, 1, 2], by_hand[1, 2, 0]]
    loss = cross_entropy(nn.Identity(), (logits, targets))
    torch.testing.assert_close(loss, torch.stack(counted).mean())


def test_inference_mode_outside_does_not_matter():
    problem = setup("mixer", "tiny", samples=4).problem
    block = partition(problem.model)[:1]
    with torch.inference_mode():
        inside = block_spectra(problem, block, steps=3, probes=1)
    outside = block_spectra(problem, block, steps=3, probes=1)
    assert (inside.alpha == outside.alpha).all()
