"""Only this file sees the right Hessian of something else: other blocks, other weights, a mean.

A block of another model, a weight cached by the check's own evaluation, a loader that writes into
one buffer, or a loss that is a mean over labels gives numbers that look like any other. Oracles:
the same data in one batch, and second differences of the loss.
"""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.utils import parametrize

from blockspectra import Problem, ProblemError, block_spectra, cross_entropy, partition
from blockspectra.blocks import whole
from blockspectra.diagnosis import diagnose
from blockspectra.gradient_graph import CHEAP, PLAIN
from blockspectra.hessian import BlockHessians, block_products, dense_hessian
from custom_functions import Kept, OnceOnly

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])
FEW = torch.tensor([0, -100, -100, -100, -100, -100, -100, 1])


def stack(*modules, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *modules, nn.Linear(4, 3)).to(dtype)


def spectra(problem, blocks=None):
    return block_spectra(problem, blocks or partition(problem.model), steps=2, probes=1)


def classes(model, batches=((X, Y),), **settings):
    return Problem(model, cross_entropy, list(batches), **settings)


def square(model, x):
    return model(x).square().mean()


def own_mean(model, batch):
    """A mean over labels that count, as models of `transformers` return."""
    return F.cross_entropy(model(batch["x"]), batch["labels"])


class Adapted(nn.Module):
    """A low-rank adapter on a frozen weight of any type, merged by eval() as such libraries do."""

    def __init__(self, base, merges):
        super().__init__()
        self.base = nn.Parameter(base, requires_grad=False)
        self.down, self.up = nn.Parameter(X[:2].clone()), nn.Parameter(X[2:5, :2].clone())
        self.out, self.merges, self.merged = nn.Linear(3, 3).double(), merges, False

    def train(self, mode=True):
        if not mode and self.merges and not self.merged:
            self.base.data += self.up.data @ self.down.data
            self.merged = True
        return super().train(mode)

    def forward(self, x):
        weight = self.base.to(x.dtype) / 50
        return self.out(x @ (weight if self.merged else weight + self.up @ self.down).T)


class Cached(nn.Module):
    """A weight that is computed by the first evaluation and kept, with its graph or without."""

    def __init__(self, graph):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.weight = nn.Linear(3, 3), nn.Parameter(torch.randn(3, 3))
        self.graph, self.product = graph, None

    def forward(self, x):
        if self.product is None:
            with torch.set_grad_enabled(self.graph):
                self.product = self.weight @ self.weight
        return torch.tanh(self.inner(x)) @ self.product


class Counting(nn.Module):
    """Writes into a buffer, or puts another one in its place."""

    def __init__(self, replaces):
        super().__init__()
        self.replaces = replaces
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.replaces:
            self.mean = mean
        else:
            self.mean.copy_(mean)
        return x


class Growing(nn.Module):
    """Keeps positions for the longest input so far, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.zeros(0))

    def forward(self, x):
        if len(self.positions) < len(x):
            self.positions = torch.arange(len(x)) / 10
        return x * (1 + self.positions[: len(x), None])


def on_large(function):
    """A fourth power, by a function where the batch is large: in the second one alone."""
    return lambda model, x: square(function if x.max() > 90 else torch.square, model(x))


def frozen_later():
    problem = classes(stack())
    blocks = partition(problem.model)
    problem.model[0].requires_grad_(False)
    return spectra(problem, blocks)


def hooked_together():
    model = stack()
    register_multi_grad_hook(tuple(model.parameters()), lambda gradients: None)
    return classes(model)


def tied_by_data():
    model = stack()
    model[2].weight.data = model[0].weight.data.T
    return model


def in_the_cache(dtype):
    model = stack(dtype=dtype)
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    with parametrize.cached():
        spectra(classes(model, [(X.to(dtype), Y)]))


def max_norm():
    words = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 3)).double()
    before = words[0].weight.detach().clone()
    try:
        spectra(classes(words, [(Y, Y)]))
    finally:
        assert torch.equal(words[0].weight, before)


def instance_norm():
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv1d(1, 4, 2), norm, nn.Flatten(), nn.Linear(8, 3)).double()
    try:
        spectra(classes(model, [(X[:, None], Y)]))
    finally:
        assert norm.running_mean.abs().sum() == 0


def replaced_buffer():
    counting = Counting(True)
    before = counting.mean
    try:
        spectra(Problem(nn.Sequential(counting, *stack()), square, [X]))
    finally:
        assert counting.mean is before


def at_zero(model, x):
    return model(x).square().sum(-1).sqrt().mean()


def nowhere(model, kind):
    return nn.Sequential(*model, nn.LazyLinear(3)) if kind == "lazy" else model.to("meta")


REFUSED = {
    "blocks of another model": (
        lambda: spectra(classes(stack()), partition(stack())),
        r"^A block lies in a parameter of shape \(4, 3\) outside .* partition\(problem.model\)",
    ),
    "products with blocks of another model": (
        lambda: block_products(classes(stack()), [whole(stack())], [torch.ones(31)]),
        "^A block lies in a parameter of shape",
    ),
    "weights tied by their data": (
        lambda: spectra(Problem(tied_by_data(), square, [X])),
        r"^Parameter '2.weight' shares memory with another without being the same: tie them by",
    ),
    "a hook on several gradients at once": (
        lambda: spectra(hooked_together()),
        r"^A hook waits for several gradients at once, which only backward\(\) has: remove it\.$",
    ),
    "a block frozen after partition": (frozen_later, r"^Parameter '0.weight' is frozen: set "),
    "a weight that is cached with its graph": (
        lambda: spectra(classes(Cached(True).double())),
        "depends on .* which evaluating it again does not compute again: switch off",
    ),
    "a weight that is cached, in float32": (
        lambda: spectra(classes(Cached(True), [(X.float(), Y)])),
        "depends on .* which evaluating it again does not compute again: switch off",
    ),
    "the cache of parametrizations": (
        lambda: in_the_cache(torch.float64),
        r"does not compute again: .* parametrize.cached\(\)",
    ),
    "the cache of parametrizations, in float32": (
        lambda: in_the_cache(torch.float32),
        r"does not compute again: .* parametrize.cached\(\)",
    ),
    "a weight that is cached without a graph": (
        lambda: spectra(classes(Cached(False).double())),
        "^The loss changed from .* and what is kept between evaluations, such as a cached weight",
    ),
    "a second batch with nan": (
        lambda: spectra(Problem(stack(), square, [X, X * float("nan")])),
        r"^The loss is nan, .* \(in batch 2 of 2\)\.$",
    ),
    "a second derivative of nan in a third batch": (
        lambda: spectra(Problem(nn.Linear(3, 2, bias=False).double(), at_zero, [X, X + 1, 0 * X])),
        r"^The Hessian of 'weight' .* is not finite: .* \(in batch 3 of 3\)\.$",
    ),
    "a second derivative that is wrong in a second batch": (
        lambda: spectra(Problem(stack(), on_large(Kept.apply), [X, 100 * X])),
        r"^The second derivative is wrong in .* \(in batch 2 of 2\)\.$",
    ),
    "no second derivative in a second batch": (
        lambda: spectra(Problem(stack(), on_large(OnceOnly.apply), [X, 100 * X])),
        r"once_differentiable; .* \(in batch 2 of 2\)\.$",
    ),
    "a sum": (
        lambda: spectra(
            Problem(stack(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), [(X, Y)])
        ),
        "^The loss of a batch repeated is 2 times its own, .* so it is a sum, .*: take the mean",
    ),
    "a sum in one dict": (
        lambda: spectra(Problem(stack(), lambda m, b: m(b["x"]).square().sum(), [{"x": X}])),
        "so it is a sum",
    ),
    "a mean over labels, weighted by samples": (
        lambda: spectra(
            Problem(stack(), own_mean, [{"x": X, "labels": Y}, {"x": -X, "labels": FEW}])
        ),
        r"^The losses of batches 1 and 2 are .* not their mean .*: give Problem a weight=",
    ),
    "a mean over labels, in the last two batches of one sample": (
        lambda: spectra(
            Problem(
                stack(),
                lambda m, b: F.mse_loss(m(b[0])[b[1]], b[0][b[1]]),
                [(X[:1, None], b) for b in torch.tensor([[[True]], [[True]]])]
                + [(torch.stack([X[1:5]]), torch.tensor([[True, True, True, False]]))] * 2
                + [(torch.stack([X[4:8]]), torch.tensor([[True, False, False, False]]))],
            )
        ),
        "^The losses of batches 4 and 5 are",
    ),
    "a batch without labels": (
        lambda: classes(stack(), [(X, Y), (X, torch.full_like(Y, -100))]),
        "^Batch 2 has the weight 0: leave it out",
    ),
    "an embedding that changes its weights": (
        max_norm,
        "changes parameter '0.weight', as max_norm",
    ),
    "running statistics that nobody reads": (
        instance_norm,
        r"^Evaluating the loss changes buffer '1.running_mean': call model.eval\(\)",
    ),
    "a buffer that is replaced": (
        replaced_buffer,
        "changes buffer '0.mean'",
    ),
    "arguments the other way round": (
        lambda: spectra(Problem(stack(), lambda x, model: square(model, x), [X])),
        r"^The loss takes its arguments the other way round: define it as loss\(model, batch\)\.$",
    ),
    "a batch instead of a list": (
        lambda: classes(stack(), (X, Y)),
        r"^This is one batch rather than a list of them: give \[batch\]",
    ),
    "a tensor instead of a list": (lambda: Problem(stack(), square, X), "one batch rather than"),
    "a dict instead of a list": (lambda: Problem(stack(), square, {"x": X}), "one batch rather"),
    "BatchNorm of one sample": (
        lambda: spectra(classes(stack(nn.BatchNorm1d(4)), [(X[:1], Y[:1])], batch_statistics=True)),
        "^BatchNorm in training mode has no statistics of one value: use larger batches",
    ),
    "autocast in the loss": (
        lambda: spectra(
            Problem(
                stack(dtype=torch.float32),
                lambda m, x: torch.autocast("cpu", torch.bfloat16)(m)(x).float().square().mean(),
                [X.float()],
            )
        ),
        r"^The loss is computed in bfloat16 in part \(.*\), too coarse .*: leave out autocast",
    ),
    "half precision": (
        lambda: spectra(Problem(stack(dtype=torch.float16), square, [X.half()])),
        r"^Parameter '0.weight' is float16, .* call model.float\(\)",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_the_hessian_of_something_else_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ProblemError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("kind", ["lazy", "meta"])
def test_weights_without_values_cannot_be_cut(kind):
    with pytest.raises(ValueError, match=r"^Parameter '.*' has no values yet: load them or run"):
        partition(nowhere(stack(), kind))


UNUSED = {
    "a module": (
        lambda: Problem(
            nn.ModuleDict({"used": stack(), "unused": nn.Linear(3, 3).double()}),
            lambda m, x: square(m["used"], x),
            [X],
        ),
        "unused",
    ),
    "an adapter merged by eval()": (lambda: classes(Adapted(X[:3].clone(), True).eval()), "down"),
}


@pytest.mark.filterwarnings("ignore:Left out because frozen")
@pytest.mark.parametrize(("make", "block"), UNUSED.values(), ids=UNUSED)
def test_a_block_that_the_loss_does_not_depend_on_is_told(make, block):
    problem = make()
    with pytest.warns(UserWarning, match=f"^The loss does not depend on '{block}.*: leave them"):
        found = spectra(problem)
    assert found.largest[found.names.index(block)] == 0


def test_a_block_that_a_later_batch_alone_depends_on_is_not_told():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}).double()
    problem = Problem(model, lambda m, x: square(m["b" if x.max() > 90 else "a"], x), [X, 100 * X])
    with warnings.catch_warnings(action="error"):
        assert (spectra(problem).largest > 0).all()


# what is right


def second_difference(problem, parameter, vector, step=1e-4):
    """vᵀHv of the loss of all data in one batch, from the loss alone."""
    values, kept = [], parameter.data
    for t in (step, 0, -step):
        parameter.data = kept + t * vector
        values.append(problem.loss(problem.model, problem.batches[0]).item())
    parameter.data = kept
    return (values[0] - 2 * values[1] + values[2]) / step**2


def count(batch):
    return (batch["labels"] != -100).sum()


CUT = {
    "cross_entropy counts targets": (
        cross_entropy,
        [(X, Y), (-X, FEW)],
        (torch.cat([X, -X]), torch.cat([Y, FEW])),
        {},
    ),
    "a loss of ones own with weight=": (
        own_mean,
        [{"x": X, "labels": Y}, {"x": -X, "labels": FEW}],
        {"x": torch.cat([X, -X]), "labels": torch.cat([Y, FEW])},
        {"weight": count},
    ),
    "samples in unequal batches": (square, [X[:5], X[5:]], X, {}),
}


@pytest.mark.parametrize(("loss", "parts", "all_data", "settings"), CUT.values(), ids=CUT)
def test_the_hessian_is_that_of_all_data_in_one_batch(loss, parts, all_data, settings):
    problem = Problem(stack(), loss, parts, **settings)
    in_one = Problem(problem.model, loss, [all_data])
    for block in partition(problem.model):
        found = dense_hessian(problem, block)
        torch.testing.assert_close(found, dense_hessian(in_one, block), rtol=1e-10, atol=1e-12)
        (parameter,) = block.parameters
        vector = torch.randn(parameter.shape, dtype=torch.float64)
        curvature = block.flatten([vector]) @ found @ block.flatten([vector])
        assert second_difference(in_one, parameter, vector) == pytest.approx(
            float(curvature), rel=1e-5
        )


def load(kind, buffer):
    for i in range(3):
        buffer[:] = i
        batch = torch.from_numpy(buffer) if kind == "numpy" else buffer
        yield {"x": batch} if kind == "dict" else batch


@pytest.mark.parametrize("kind", ["tensor", "numpy", "dict"])
def test_a_loader_may_write_every_batch_into_the_same_memory(kind):
    buffer = np.zeros((2, 3)) if kind == "numpy" else torch.zeros(2, 3)
    batches = Problem(stack(), square, load(kind, buffer)).batches
    assert [float((b["x"] if kind == "dict" else b).mean()) for b in batches] == [0, 1, 2]


def test_buffers_that_change_are_put_back_where_batch_statistics_are_meant():
    for replaces in (False, True):
        model = stack(Counting(replaces))
        model[2].mean = torch.zeros(4, dtype=torch.float64)
        spectra(classes(model, batch_statistics=True))
        assert model[2].mean.abs().sum() == 0


@pytest.mark.parametrize("setting", ["sparse", "scale_grad_by_freq"])
def test_settings_of_embeddings_that_change_gradients_are_lifted_and_put_back(setting):
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        words = nn.Embedding(3, 4, **{setting: on})
        model = nn.Sequential(words, nn.Tanh(), nn.Linear(4, 3)).double()
        found.append(spectra(classes(model, [(Y, Y)])).largest)
        assert getattr(words, setting) == on
    assert found[1] == pytest.approx(found[0])


def test_a_cache_that_grows_is_no_obstacle():
    assert (spectra(classes(stack(Growing()))).largest > 0).all()


def test_a_loss_that_is_no_mean_is_told_where_there_are_several_batches():
    def contrastive(model, x):
        similar = F.normalize(model(x), dim=1) @ F.normalize(x, dim=1).T
        return F.cross_entropy(similar, torch.arange(len(x)))

    with warnings.catch_warnings(action="error"):
        assert (spectra(Problem(stack(), contrastive, [X])).largest > 0).all()
        spectra(Problem(stack(), contrastive, [X, -X], batch_statistics=True))
    with pytest.warns(UserWarning, match=r"repeated is .* times its own, so it is no mean"):
        spectra(Problem(stack(), contrastive, [X, -X]))


def test_batches_that_cannot_be_joined_are_no_obstacle():
    def per_node(model, batch):
        nodes, (source, target), labels = batch
        messages = torch.zeros_like(nodes).index_add(0, target, nodes[source])
        return F.cross_entropy(model(messages), labels)

    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    with warnings.catch_warnings(action="error"):
        assert (
            spectra(Problem(stack(), per_node, [(X, edges, Y), (-X, edges, Y)])).largest > 0
        ).all()


def test_cheap_derivatives_that_raise_in_a_later_batch_are_taken_for_none():
    def loss(model, x):
        u = F.gelu(model(x))
        if x.max() > 90:
            x = x.clone().requires_grad_()
            (u,) = torch.autograd.grad(F.gelu(model(x)).sum(), x, create_graph=True)
        return u.square().mean()

    problem = Problem(stack(), loss, [X, 100 * X], batch_statistics=True)
    first = Problem(stack(), loss, [X])
    for one, derivatives in ((first, CHEAP), (problem, f"{PLAIN}: the cheap ones raised")):
        with one.curvature_mode():
            found = BlockHessians(one, partition(one.model))
        assert found.derivatives.startswith(derivatives)


def test_a_frozen_base_in_int8_is_no_obstacle():
    base = torch.randint(-99, 99, (3, 3), generator=torch.Generator().manual_seed(0))
    model = Adapted(base.to(torch.int8), False)
    assert (diagnose(classes(model), quiet=True).blocks["lambda_max"] > 0).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_has_the_spectra_of_the_model():
    found = [
        diagnose(classes(model), quiet=True).blocks["lambda_max"]
        for model in (stack(), torch.jit.script(stack()))
    ]
    assert found[1].to_numpy() == pytest.approx(found[0].to_numpy(), rel=1e-6)


def test_scalars_and_empty_parameters_are_no_obstacle():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = stack(), nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))

        def forward(self, x):
            return self.scale * self.inner(x) + self.empty.sum()

    problem = Problem(Scaled(), square, [X])
    blocks = partition(problem.model, vectors=True)
    assert "empty" not in [block.name for block in blocks]
    scale = next(block for block in blocks if block.name == "scale")
    expected = 2 * float(problem.model.inner(X).square().mean())
    assert float(dense_hessian(problem, scale)) == pytest.approx(expected)
    for by in ("layer", "neuron"):
        spectra(problem, partition(problem.model, by=by, vectors=True))


SPARSE = torch.eye(8, dtype=torch.float64).roll(1, 0)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("adjacency", [SPARSE.to_sparse(), SPARSE.to_sparse_csr()])
def test_a_sparse_adjacency_is_that_of_the_dense_one(adjacency, tmp_path):
    def loss(model, batch):
        return F.cross_entropy(model(batch[0] @ batch[1]), batch[2])

    found, dense = (Problem(stack(), loss, [(a, X, Y)]) for a in (adjacency, SPARSE))
    assert spectra(found).largest == pytest.approx(spectra(dense).largest)
    block_spectra(found, partition(found.model), steps=2, probes=1, checkpoint=tmp_path)


def test_parameters_may_lie_beside_each_other_in_one_piece_of_memory():
    model, flat = stack()[:1], torch.zeros(5, 4, dtype=torch.float64)
    flat[:3], flat[3] = model[0].weight.data.T, model[0].bias.data
    expected = spectra(Problem(stack()[:1], square, [X])).largest
    model[0].weight.data, model[0].bias.data = flat[:3].T, flat[3]
    assert spectra(Problem(model, square, [X])).largest == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_batches_have_the_hessian_of_their_rows():
    rows = torch.nested.nested_tensor([X[:3], X[3:]], layout=torch.jagged)
    nested = Problem(stack()[:1], lambda m, x: m(x).values().square().mean(), [rows])
    assert spectra(nested).largest == pytest.approx(
        spectra(Problem(nested.model, square, [X])).largest
    )


def test_checks_evaluate_each_batch_no_more_than_ten_times():
    calls = []

    class Noting(nn.Sequential):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    for number in (1, 4):
        calls.clear()
        problem = classes(Noting(*stack()), [(X, Y)] * number)
        with problem.curvature_mode():
            BlockHessians(problem, partition(problem.model))
        assert sum(calls) / len(X) / number <= 10
