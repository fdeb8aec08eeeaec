"""Only this file sees a wrong update: another rate, momentum or decay than the text says.

Every curve would still fall. The reference is PyTorch's optimizer called in the ordinary way.
"""

import itertools

import numpy as np
import pytest
import torch

from blockspectra.problem import cross_entropy
from companion.datasets import Data, stream
from companion.models.mlp import MLP, MLPConfig
from companion.models.resnet import TINY, ResNet
from companion.training import OPTIMIZERS, schedule, train, train_together

STEPS = 12
REFERENCE = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=1e-4),
    "adam": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.9, 0.999)),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.9, 0.95), weight_decay=0.1),
}
# PyTorch's AdamW decays by its own default where none is given: Adam must not
assert OPTIMIZERS["adam"].decay == 0


def models(count, dtype=torch.float64):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(MLP(MLPConfig((6, 5, 3))).to(dtype))
    return made


def batches(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    while True:
        inputs = torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype)
        yield inputs, torch.randint(0, 3, (4,), generator=generator)


def by_hand(model, source, name, rate):
    optimizer = REFERENCE[name](model.parameters(), rate)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * schedule(step, STEPS)
        loss = cross_entropy(model, next(source))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def one_by_one(models, loss, sources, optimizer, rates, steps):
    runs = zip(models, sources, rates, strict=True)
    return np.stack([train(m, loss, b, optimizer, rate, steps=steps) for m, b, rate in runs])


ways = pytest.mark.parametrize("way", [one_by_one, train_together])


@ways
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_that_of_pytorchs_optimizer(name, way):
    rates = [0.01, 0.2, 0.05]
    ours, theirs = models(3), models(3)
    sources = [batches(seed) for seed in range(3)]
    losses = way(ours, cross_entropy, sources, OPTIMIZERS[name], rates, steps=STEPS)
    expected = [
        by_hand(model, batches(i), name, rate)
        for i, (model, rate) in enumerate(zip(theirs, rates, strict=True))
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-7)
    for left, right in zip(ours, theirs, strict=True):
        for a, b in zip(left.parameters(), right.parameters(), strict=True):
            # Adam divides a vanishing gradient by itself, so rounding shows there
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@ways
def test_a_run_that_diverges_ends_there_and_leaves_the_others_alone(way):
    def run(rates):
        count = len(rates)
        sources = [batches(seed) for seed in range(count)]
        sgd = OPTIMIZERS["sgd"]
        return way(models(3)[:count], cross_entropy, sources, sgd, rates, steps=STEPS)

    losses = run([0.1, 1e6, 0.1])
    assert np.isinf(losses[1, -1])
    assert np.isfinite(losses[1, 0])
    end = int(np.isinf(losses[1]).argmax())
    assert np.isinf(losses[1, end:]).all()
    assert np.isfinite(losses[1, :end]).all()
    assert not np.isnan(losses).any()
    np.testing.assert_allclose(losses[0], run([0.1])[0], rtol=1e-12)
    assert np.isfinite(losses[2]).all()


def test_a_loss_that_is_not_finite_is_recorded_as_divergence():
    def loss(model, batch):
        return cross_entropy(model, batch) * float("nan")

    losses = train(models(1)[0], loss, batches(0), OPTIMIZERS["adam"], 0.1, steps=3)
    assert losses.tolist() == [np.inf] * 3


def test_the_schedule_rises_and_falls_and_never_stops():
    shares = [schedule(step, 100) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert max(shares) == 1
    assert shares[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))
    assert schedule(0, 1) == 1


def test_the_model_is_seen_before_each_step_and_at_the_end_and_is_put_back():
    torch.manual_seed(0)
    model = ResNet(TINY).eval()
    seen = []

    def observe(step):
        seen.append((step, model.training, model.fc.weight.detach().clone()))

    images = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    settings = {"steps": 2, "observe": observe}
    images = itertools.repeat(images)
    train(model, cross_entropy, images, OPTIMIZERS["momentum"], 0.1, **settings)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert all(training for _, training, _ in seen)
    assert not model.training
    assert not torch.equal(seen[0][2], seen[1][2])
    assert torch.equal(seen[2][2], model.fc.weight)


def test_frozen_parameters_stay():
    model = models(1)[0]
    model.layers[0].weight.requires_grad_(False)
    before = model.layers[0].weight.clone()
    train(model, cross_entropy, batches(0), OPTIMIZERS["adamw"], 0.1, steps=3)
    assert torch.equal(model.layers[0].weight, before)


def test_the_stream_shows_every_sample_once_an_epoch_in_a_new_order():
    inputs = torch.arange(10.0)
    data = Data("ten", inputs, inputs.long(), 10, "", "")
    source = stream(data, 3, seed=1)
    epochs = [[next(source)[0] for _ in range(3)] for _ in range(2)]
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    assert all(len(set(order)) == 9 for order in orders)  # the tenth does not fill a batch
    assert orders[0] != orders[1]
    again = stream(data, 3, seed=1)
    assert torch.equal(next(again)[0], epochs[0][0])
    with pytest.raises(ValueError, match="A batch of 11 needs as many samples, ten has 10"):
        next(stream(data, 11))
