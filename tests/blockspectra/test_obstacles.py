"""Only this file sees a model that cannot be measured blamed on the wrong module, or let through.

Also one that is measured as something else than it is, and settings that are not put back.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockspectra import Problem, ProblemError, block_spectra, cross_entropy, partition
from blockspectra.diagnosis.obstacles import find, refuse
from custom_functions import Kept, OnceOnly

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 0])
IDS = torch.tensor([[0, 1, 2], [3, 0, 4], [1, 1, 2], [5, 3, 0]])


class Apply(nn.Module):
    """A module that applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Words(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.word, self.out = embedding, nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.word(ids))


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = stack()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


def stack(*modules):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), *modules)
    return nn.Sequential(inner, nn.Tanh(), nn.Linear(6, 3)).eval()


def problem(model, x=X):
    return Problem(model.eval(), cross_entropy, [(x, Y)])


def at_zero(x):
    return x + (x * 0).norm()


class Whole(nn.Linear):
    """A model whose own forward is to blame, not a module in it."""

    def forward(self, x):
        return super().forward(OnceOnly.apply(super().forward(x)))


BLAMED = {
    "a function marked once_differentiable": (
        lambda: problem(stack(Apply(OnceOnly.apply))),
        r"once_differentiable; replace it \(it is in the Apply '0.1'\)\.$",
    ),
    "a function without second derivative": (
        lambda: problem(stack(Apply(lambda x: torch.cdist(x, x) @ x))),
        r"_cdist_backward' is not implemented \(it is in the Apply '0.1'\)\.$",
    ),
    "an EmbeddingBag": (
        lambda: problem(Words(nn.EmbeddingBag(6, 6)), IDS),
        r"_embedding_bag_backward' .*\(it is in the EmbeddingBag 'word'\)\.$",
    ),
    "a gradient kept from the forward pass": (
        lambda: problem(stack(Apply(Kept.apply))),
        r"derivative is wrong .*\(it is in the Apply '0.1'\)\.$",
    ),
    "a norm of zero": (
        lambda: problem(stack(Apply(at_zero))),
        r"not finite: .* square root of 0, .*\(it is in the Apply '0.1'\)\.$",
    ),
    "functional dropout": (
        lambda: problem(stack(Apply(lambda x: F.dropout(x, 0.5, training=True)))),
        r"^The loss changed from .*\(it is in the Apply '0.1'\)\.$",
    ),
    "padding in a function": (
        lambda: problem(
            stack(Apply(lambda x: x + F.embedding(IDS[:, 0], torch.eye(6) @ x.T @ x, 0)))
        ),
        r"padding_idx=0, .*\(it is in the Apply '0.1'\)\.$",
    ),
    "a loss that keeps its gradient from the forward pass": (
        lambda: Problem(stack(), lambda m, x: Kept.apply(m(x)).mean(), [X]),
        r"second derivative is wrong in .*\(no module fails by itself: it is in the loss\)\.$",
    ),
    "the model itself": (
        lambda: Problem(Whole(6, 6), lambda m, x: m(x).square().mean(), [X]),
        r"\(it is in the model itself, Whole\)\.$",
    ),
    "the loss": (
        lambda: Problem(stack(), lambda m, x: OnceOnly.apply(m(x)).square().mean(), [X]),
        r"\(no module fails by itself: it is in the loss\)\.$",
    ),
}
REFUSED = {
    "dropout left on, already named": (
        lambda: Problem(stack(nn.Dropout(0.5)).train(), cross_entropy, [(X, Y)]),
        r"^Dropout is on in '0.1': call model.eval\(\)[^(]*\.$",
    ),
    "bfloat16": (
        lambda: problem(stack().bfloat16(), X.bfloat16()),
        r"^Parameter '0.0.weight' is bfloat16, .* call model.float\(\)",
    ),
    "a module in half precision": (
        lambda: problem(nn.Sequential(stack(), nn.Linear(3, 3).half())),
        r"^Parameter '1.weight' is float16, ",
    ),
    "complex numbers": (
        lambda: problem(stack().to(torch.complex64), X.to(torch.complex64)),
        r"is complex64, and second derivatives need real numbers",
    ),
    "a model made in inference mode": (
        lambda: problem(torch.inference_mode()(stack)()),
        r"^Parameter '0.0.weight' was made in inference mode, .*: build the model outside of ",
    ),
    "a lazy layer": (
        lambda: problem(nn.Sequential(nn.LazyLinear(3))),
        r"^Parameter '0.weight' has no values yet: load them or run the model once first\.$",
    ),
    "an embedding with max_norm": (
        lambda: problem(Words(nn.Embedding(6, 6, max_norm=1.0)), IDS[:, 0]),
        r"^Evaluating the loss changes parameter 'word.weight', as max_norm .*: do not change",
    ),
    "autocast in the model": (
        lambda: problem(Autocast()),
        r"^Autocast is on in the Sequential 'inner', .*: leave it out",
    ),
}


@pytest.mark.filterwarnings("ignore:(Lazy|Complex) modules are a new feature")
@pytest.mark.parametrize(("make", "sentence"), (BLAMED | REFUSED).values(), ids=BLAMED | REFUSED)
def test_is_refused_in_one_line_with_the_module_to_blame(make, sentence):
    with pytest.raises(ProblemError, match=sentence) as caught:
        refuse(make())
    assert "\n" not in str(caught.value)


def test_an_error_of_the_model_itself_comes_out_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        refuse(problem(stack(), X[:, :5]))


def test_nothing_is_blamed_where_nothing_is_wrong():
    sound = problem(stack(nn.GELU(), nn.LayerNorm(6)))
    refuse(sound)
    assert find(sound) is None


def test_a_cache_that_a_call_fills_is_not_blamed():
    class Caching(nn.Linear):
        def forward(self, x, cache):
            cache.append(x)
            if len(cache) > 1:
                raise RuntimeError("the cache is full")
            return super().forward(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.bad = Caching(6, 3), Apply(OnceOnly.apply)

        def forward(self, x):
            return self.bad(self.inner(x, []))

    assert find(problem(Outer())).name == "bad"


def test_inputs_that_a_module_writes_into_are_no_obstacle():
    assert find(problem(stack(nn.ReLU(inplace=True)))) is None


class TestCurvatureMode:
    def test_sparse_embeddings_are_measured_as_dense_ones(self):
        found = []
        for sparse in (False, True):
            torch.manual_seed(0)
            embedding = nn.Embedding(6, 6, sparse=sparse)
            words = problem(
                nn.Sequential(embedding, nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)), IDS
            )
            refuse(words)
            found.append(block_spectra(words, partition(words.model), steps=5, probes=1))
            assert embedding.sparse == sparse
        assert (found[0].alpha == found[1].alpha).all()

    def test_autocast_of_the_caller_is_off_inside(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with problem(stack()).curvature_mode():
                assert not torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")

    @pytest.mark.parametrize(("layer", "on"), [(nn.LSTM(6, 3), False), (nn.Linear(6, 3), True)])
    def test_cudnn_is_off_for_recurrent_layers_alone_and_put_back_after_an_error(self, layer, on):
        before, inside = torch.backends.cudnn.enabled, []

        def fail():
            with problem(layer).curvature_mode():
                inside.append(torch.backends.cudnn.enabled)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert inside == [before and on]
        assert torch.backends.cudnn.enabled == before
