"""Only this file sees what users bring break what each part of the library takes for sure.

Batches of other types, losses with state, weights replaced or cached in new ways, hooks of all
kinds: one table of those that must be right, one of those that must be refused, with the sentence.
Oracle: second differences of the loss of all batches, which share no derivative with the library.
"""

import functools
import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from blockspectra import Problem, ProblemError, block_spectra, cross_entropy, partition
from blockspectra.hessian import block_products

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])
CLASSES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
IDS = torch.tensor([[0, 1, 2], [3, 0, 4], [1, 1, 2], [5, 3, 0], [2, 2, 1], [4, 0, 0], [1, 5, 3]])


def stack(*modules):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *modules, nn.Linear(4, 3))


def square(model, x):
    return model(x).square().mean()


def labelled(model, batch):
    return F.cross_entropy(model(batch.x), batch.y)


def of(loss, *modules, batches=None, **settings):
    """A loss of a small network with these modules in the middle."""
    data = [X.clone()] if batches is None else batches
    return lambda: Problem(stack(*modules).double().eval(), loss, data, **settings)


def pairs(*sizes):
    """Batches of inputs and classes, of these sizes."""
    return [(X[:n].clone(), Y[:n].clone()) for n in sizes]


def changed(change, loss=square):
    """A loss of a small network that was changed, as by a hook."""

    def make():
        change(model := stack().double())
        return Problem(model, loss, [X])

    return make


class Two(nn.Module):
    """Two layers; the first has what it does given by a function of itself, the model and input."""

    def __init__(self, first):
        super().__init__()
        self.a, self.b, self.first, self.kept = nn.Linear(3, 3), nn.Linear(3, 3), first, {}
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.arange(3.0)).conj())
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x):
        return self.b(self.first(self, x).tanh())

    def once(self, key, make):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    @functools.lru_cache  # noqa: B019
    def doubled(self):
        return 2 * self.a.weight


def two(first, loss=square):
    return lambda: Problem(Two(first).double(), loss, [X])


@dataclass
class Labelled:
    x: torch.Tensor
    y: torch.Tensor


class Adapter(nn.Module):
    """A low-rank update of a frozen weight in half precision."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 3).half().requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return F.linear(x, self.base.weight.to(x)) + x @ self.down.T @ self.up.T


class Recurrent(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.cells, self.out = kind(1, 4, batch_first=True, **settings), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.cells(x[..., None])[0][:, -1])


class Tied(nn.Module):
    """One weight in two layers, in the first of them by way of a parametrization."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        parametrize.register_parametrization(self.a, "weight", nn.Tanh())

    def forward(self, x):
        return self.b(self.a(x).tanh())


def noisy(model, x):
    """Noise by a seed, which draws other numbers in another precision."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return (model(x) * (1 + noise)).square().mean()


def compiled():
    return Problem(torch.compile(stack().double(), backend="aot_eager"), square, [X])


def called_with_others(model, x):
    others = {name: 1.5 * p for name, p in model.named_parameters()}
    return torch.func.functional_call(model, others, (x,)).square().mean()


def rows(model, x):
    return torch.vmap(lambda row: model(row).square().mean())(x).mean()


def batch_normed(model, x):
    return F.batch_norm(model(x), None, None, training=True).pow(3).mean() + square(model, x)


RIGHT = {
    "batches in a dataclass": of(labelled, batches=[Labelled(X, Y), Labelled(X[:3], Y[:3])]),
    "dataclasses of a loader": of(labelled, batches=(Labelled(X[:n], Y[:n]) for n in (8, 3))),
    "a buffer that is conjugate": two(lambda m, x: (m.a(x) * m.turn).abs()),
    "a buffer of integers": two(lambda m, x: m.a(x)[:, m.order]),
    "a batch that is conjugate": of(
        lambda m, z: square(m, z.imag + z.real), batches=[torch.complex(X, X.flip(0)).conj()]
    ),
    "noise of one seed": of(noisy),
    "a compiled model": compiled,
    "several devices": lambda: Problem(nn.DataParallel(stack().double()), square, [X]),
    "outputs in a dict": of(
        lambda m, x: {"logits": m(x), "n": 3}["logits"].pow(3).mean(),
    ),
    "class weights of the closure": of(
        lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=CLASSES),
        batches=pairs(8),
    ),
    "penalties of weights": of(
        lambda m, b: cross_entropy(m, b) + sum(p.pow(4).sum() for p in m.parameters()),
        batches=pairs(8, 3),
    ),
    "statistics of one batch": of(batch_normed),
    "spectral norm": of(square, parametrizations.spectral_norm(nn.Linear(4, 4))),
    "spectral norm by hooks": lambda: Problem(
        stack(nn.utils.spectral_norm(nn.Linear(4, 4))).double().eval(), square, [X]
    ),
    "orthogonal weights": of(square, parametrizations.orthogonal(nn.Linear(4, 4))),
    "in-place activations": of(square, nn.Linear(4, 4), nn.SiLU(inplace=True)),
    "synchronised statistics": of(square, nn.SyncBatchNorm(4)),
    "an adapter of a base in half precision": lambda: Problem(Adapter().double(), square, [X]),
    "a tied weight in a parametrization": lambda: Problem(Tied().double(), square, [X]),
    "a GRU": lambda: Problem(Recurrent(nn.GRU).double(), square, [X]),
    "an LSTM with a projection": lambda: Problem(
        Recurrent(lambda *a, **k: nn.LSTM(a[0], 5, proj_size=4, **k)).double(), square, [X]
    ),
    "other weights by functional_call": of(called_with_others),
    "a model of one sample by vmap": of(rows),
    "hooks that change what goes forward": changed(
        lambda m: [m[0].register_forward_hook(lambda *a: 2 * a[2]),
                   m[2].register_forward_pre_hook(lambda _, given: (given[0].sin(),))]
    ),
    "hooks that wait for backward()": changed(
        lambda m: m[0].weight.register_post_accumulate_grad_hook(lambda p: 1 / 0)
    ),
    "a hook that clips nothing": changed(
        lambda m: m[0].weight.register_hook(lambda g: g.clamp(-1e3, 1e3))
    ),
}  # fmt: skip


def second_differences(problem, block, vector, step):
    """vᵀHv of the mean over batches, from the loss alone, to fourth order in the step."""
    values, kept = [], [p.data for p in block.parameters]
    for k in (-2, -1, 0, 1, 2):
        for p, data, v in zip(block.parameters, kept, block.expand(vector), strict=True):
            p.data = data + k * step * v
        losses = [problem.loss(problem.model, batch).item() for batch in problem.batches]
        values.append(sum(w * x for w, x in zip(problem.weights, losses, strict=True)))
    for p, data in zip(block.parameters, kept, strict=True):
        p.data = data
    stencil = zip((-1, 16, -30, 16, -1), values, strict=True)
    return sum(c * x for c, x in stencil) / (12 * step**2)


def made(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def in_float32(problem):
    problem.model.float()
    problem.batches[:] = [x.float() for x in problem.batches]
    return problem


@pytest.mark.filterwarnings("ignore:Left out because frozen", "ignore:.*weight_norm")
@pytest.mark.parametrize("name", [*RIGHT, "noise of one seed, in float32"])
def test_the_hessian_is_that_of_the_loss_as_it_is_given(name):
    single = name.endswith(", in float32")
    problem = made(RIGHT[name.removesuffix(", in float32")])
    step, rel = (2e-2, 2e-2) if single else (1e-3, 1e-5)
    problem = in_float32(problem) if single else problem
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    blocks = partition(problem.model, vectors=True)
    vectors = [torch.randn(b.size, generator=torch.Generator().manual_seed(1)) for b in blocks]
    with warnings.catch_warnings(action="error", category=UserWarning):
        products = block_products(problem, blocks, vectors)
        block_spectra(problem, blocks, steps=2, probes=1)
    assert all(torch.equal(before[k], v) for k, v in problem.model.state_dict().items())
    found = [float(v.double() @ h.double()) for v, h in zip(vectors, products, strict=True)]
    wanted = [
        second_differences(problem, b, v.double(), step)
        for b, v in zip(blocks, vectors, strict=True)
    ]
    largest = max(map(abs, wanted))
    assert largest > 1e-4
    assert found == pytest.approx(wanted, rel=rel, abs=rel * largest / 10)


# what must be refused


class Reversed(torch.autograd.Function):
    """The identity, with the opposite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


def writing(model, batch):
    batch[1][batch[1] == 0] = -100
    return cross_entropy(model, batch)


def centred(module, x):
    y = module.a(x)
    module.mean.data = y.data.mean(0)
    return y - module.mean


def replaced(module, x):
    module.a.weight = nn.Parameter(module.a.weight.detach().clone())
    return module.a(x)


def written(change):
    def first(module, x):
        with torch.no_grad():
            change(module.a.weight)
        return module.a(x)

    return first


def remembered(module, x):
    module.mean_before, before = module.a(x).detach(), getattr(module, "mean_before", 0)
    return module.a(x) + 0.1 * before


class Limited(nn.Embedding):
    """Bags of words, by a function that limits the norm of each."""

    def forward(self, ids):
        return F.embedding(ids, self.weight, max_norm=1.0).mean(1)


def words(embed):
    """A classifier of bags of words, of which the loss is a mean over the bags."""

    def make():
        model = nn.ModuleDict({"word": embed(6, 4), "out": nn.Linear(4, 3)}).double()
        return Problem(model, lambda m, b: cross_entropy(m["out"], (m["word"](b), Y[:7])), [IDS])

    return make


def acting(when, at=0):
    """A hook that doubles a weight's gradient in those of its calls that are chosen."""

    def change(model):
        calls = itertools.count(1)
        model[at].weight.register_hook(lambda g: 2 * g if when(next(calls)) else g)

    return changed(change)


def weak(size):
    """Beside a strong layer a weak one, of which the gradient is too large by a third."""

    def outputs(model, x):
        y = model["weak"](x).tanh()
        return model["strong"](x).tanh().square().mean() + size * (4 * y - y.detach()).mean() / 3

    layers = {"strong": nn.Linear(3, 3), "weak": nn.Linear(3, 3)}
    return lambda: Problem(nn.ModuleDict(layers).double(), outputs, [X])


def kept_square(module, x):
    if not hasattr(module, "square"):
        module.square = module.a.weight.detach() ** 2
    return x @ (module.a.weight + module.square).T


def kept_in_a_buffer(module, x):
    if "norm" not in module._buffers:
        module.register_buffer("norm", module.a.weight.detach().norm())
    return module.a(x) / module.norm


def kept_by_shape(module, x):
    return module.once(x.shape, lambda: module.a(x).detach()) + module.a(x)


def counted(calls):
    """A layer that halves its outputs after some calls."""

    def first(module, x):
        module.calls = getattr(module, "calls", 0) + 1
        return module.a(x) / (1 + (module.calls > calls))

    return first


TWICE = "^The loss cannot be differentiated twice: replace the function named here. .*"
CHANGED = "The loss or its gradient changed while products were taken: look for hooks that do not"
KEPT = "^The loss changed from .* what is kept between evaluations, such as a cached weight"
CACHED = "which evaluating it again does not compute again: switch off"
HOOKS = r"^The (gradient|second derivative) is .*: look for hooks .* use_reentrant=True, and for"
SUM = "times its own, and grows as much again the third time, so it is a sum"
WEIGHT = "^Evaluating the loss changes parameter '.*weight', as max_norm"
REFUSED = {
    **{
        f"bags of words by {mode}": (words(functools.partial(nn.EmbeddingBag, mode=mode)),
                                     f"{TWICE}_embedding_bag_backward")
        for mode in ("sum", "mean", "max")
    },
    "CTC": (
        of(lambda m, x: F.ctc_loss(m(x)[:, None].log_softmax(-1), IDS[:1, 1:], (8,), (2,))),
        f"{TWICE}ctc_loss_backward",
    ),
    "margins of classes": (
        of(lambda m, b: F.multi_margin_loss(m(b[0]), b[1]), batches=pairs(8)),
        f"{TWICE}multi_margin_loss_backward",
    ),
    # sums and means
    "a sum and a penalty": (
        of(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum")
           + 0.1 * sum(p.square().sum() for p in m.parameters()), batches=pairs(8)),
        SUM,
    ),
    "a sum beside a large constant": (
        of(lambda m, b: 100 + F.cross_entropy(m(b[0]), b[1], reduction="sum"), batches=pairs(8, 3)),
        SUM,
    ),
    "a sum in a dataclass": (
        of(lambda m, b: m(b.x).square().sum(), batches=[Labelled(X, Y)]),
        SUM,
    ),
    "statistics of several batches": (
        of(batch_normed, batches=[X, X[:5]]),
        "^The losses of batches 1 and 2 are .*, not their mean",
    ),
    # what an evaluation changes
    "labels that are written into": (
        of(writing, batches=pairs(8, 3)),
        r"^Evaluating the loss writes into its batch: let it write into a clone \(in batch 1 of 2",
    ),
    "a mean in a buffer": (two(centred), "^Evaluating the loss changes buffer 'mean': call "),
    "statistics of spectral norm": (
        lambda: Problem(stack(nn.utils.spectral_norm(nn.Linear(4, 4))).double(), square, [X]),
        "^Evaluating the loss changes buffer '2.weight_u'",
    ),
    "a weight that is clamped": (two(written(lambda w: w.clamp_(-0.3, 0.3))), WEIGHT),
    "a weight that shrinks by little": (two(written(lambda w: w.mul_(1 - 1e-7))), WEIGHT),
    "a weight that is replaced": (two(replaced), WEIGHT),
    "max_norm of a function": (
        words(Limited), WEIGHT,
    ),
    "what the last call left": (two(remembered), "^The loss changed from .* two evaluations"),
    # caches
    "a cache by the weight's version": (
        two(lambda m, x: x @ m.once(m.a.weight._version, lambda: m.a.weight * 2)), CACHED,
    ),
    "a cache by the input": (two(lambda m, x: m.once(id(x), lambda: m.a(x))), CACHED),
    "a cache of functools": (two(lambda m, x: x @ m.doubled()), CACHED),
    "a square that is kept": (two(kept_square), KEPT),
    "a norm that is kept in a new buffer": (two(kept_in_a_buffer), KEPT),
    "outputs that are kept by shape": (two(kept_by_shape), KEPT),
    "outputs that halve after the checks": (two(counted(7)), CHANGED),
    # gradients that are not the loss's
    "a hook on every other call": (acting(lambda call: call % 2 == 0), CHANGED),
    "a hook on every third call": (acting(lambda call: call % 3 == 0, 2), CHANGED),
    "a hook that begins after the checks": (acting(lambda call: call > 5), CHANGED),
    "a hook that begins within products": (acting(lambda call: call > 6), CHANGED),
    **{f"a gradient in a layer {size:g} times as strong": (weak(size), HOOKS)
       for size in (1e-3, 1e-5, 1e-7)},
    "checkpoints of the older kind": (
        of(lambda m, x: checkpoint(m, x.requires_grad_(), use_reentrant=True).square().mean()),
        HOOKS,
    ),
    "a gradient that is reversed": (of(lambda m, x: Reversed.apply(m(x)).pow(3).mean()), HOOKS),
    "a weight that is rounded": (
        two(lambda m, x: x @ (m.a.weight + ((8 * m.a.weight).round() / 8 - m.a.weight).detach())),
        HOOKS,
    ),
    "a weight through numpy": (
        two(lambda m, x: m.a(x) + x @ torch.from_numpy(m.a.weight.detach().numpy())), HOOKS,
    ),
    "a hook before a module's backward": (
        changed(lambda m: m[1].register_full_backward_pre_hook(lambda _, g: (0.9 * g[0],))), HOOKS,
    ),
    "a hook that drops what is small": (
        changed(lambda m: m[0].weight.register_hook(lambda g: g * (g.abs() > 1e-3))), HOOKS,
    ),
    "a hook by way of the forward pass": (
        changed(lambda m: m[0].register_forward_hook(lambda *a: 2 * a[2] - a[2].detach())), HOOKS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_right_value_is_refused_in_one_sentence(make, sentence):
    problem = made(make)
    with pytest.raises(ProblemError, match=sentence) as caught:
        block_spectra(problem, partition(problem.model), steps=2, probes=1)
    assert "\n" not in str(caught.value)


def test_objects_of_a_loader_are_copied_whole():
    def load(memory):
        for i in range(3):
            memory.x[:] = i
            yield memory.x[:1], memory

    batches = Problem(stack(), square, load(Labelled(torch.zeros(2, 3), Y))).batches
    assert [float(memory.x.mean()) for _, memory in batches] == [0, 1, 2]


def test_batches_that_cannot_be_joined_are_told_unless_their_weights_are_given():
    batches = [(X.view(2, 4, 3), Y.view(2, 4)), (X[:4].view(2, 2, 3), Y[:4].view(2, 2))]

    def mean(model, batch):
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    problem = made(of(mean, batches=batches))
    with pytest.warns(
        UserWarning, match="^Batches 1 and 2 have other shapes .* give Problem a wei"
    ):
        block_spectra(problem, partition(problem.model), steps=2, probes=1)
    with warnings.catch_warnings(action="error"):
        problem = made(of(mean, batches=batches, weight=lambda batch: batch[1].numel()))
        found = block_products(problem, partition(problem.model), [torch.ones(12)] * 2)
    joined = made(of(mean, batches=[(torch.cat([X, X[:4]])[None], torch.cat([Y, Y[:4]])[None])]))
    right = block_products(joined, partition(joined.model), [torch.ones(12)] * 2)
    torch.testing.assert_close(found, right)


def test_runs_taken_under_a_hook_that_changes_are_not_used_again(tmp_path):
    problem = made(acting(lambda call: call > 6))
    for _ in range(2):
        with pytest.raises(ProblemError, match=CHANGED):
            block_spectra(problem, partition(problem.model), steps=3, probes=1, checkpoint=tmp_path)
        assert not list(tmp_path.glob("block*"))
        problem = made(acting(lambda call: call > 6))
