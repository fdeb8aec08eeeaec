"""Only this file sees a rate that goes to the wrong block, or a factor that is not what it says.

Every arm would still train, and the shares of the gap closed would be believed.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from blockspectra.blocks import partition
from blockspectra.hessian import dense_hessian
from companion import datasets, setups
from companion.experiments import interventions
from companion.experiments.interventions import (
    ARMS,
    BlockScales,
    Followed,
    InterventionRun,
    Interventions,
    Scaled,
    by_parameter,
    closed,
    coordinate_factors,
    fixed_factors,
)
from companion.experiments.optimizer_comparison import TrainingRun
from companion.setups import setup
from companion.training import OPTIMIZERS, schedule, train

SIZE = {"size": "tiny", "batch": 8}
OURS = [arm for arm in ARMS if arm not in OPTIMIZERS]
TABLE = pd.DataFrame(
    {
        "block": list("abcd"),
        "square": [4.0, 1.0, 0.25, 0.0],
        "largest": [8.0, 2.0, 1.0, 0.0],
    }
)


def by_hand(model, rates, steps, rate):
    """Train with PyTorch's parameter groups; ``rates`` is a number for each whole parameter."""
    parameters = list(model.parameters())
    groups = [{"params": [p], "lr": 0.0} for p in parameters]
    # the decay lies outside the factor, so a group's own has to be divided by it
    for group, factor in zip(groups, rates, strict=True):
        group["weight_decay"] = 1e-4 / factor
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    source = datasets.stream(setups.load("vgg", "tiny", 40, 0), 8, 0)
    model.train()
    for step in range(steps):
        for group, factor in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, steps) * factor
        loss = setup_loss(model, next(source))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


def setup_loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_factors_are_rates_of_the_blocks_as_by_parameter_groups():
    made = setup("vgg", "tiny", samples=40)
    model = made.problem.model
    blocks = partition(model, vectors=True)
    rates = np.geomspace(0.1, 3, len(blocks))
    expected = by_hand(setup("vgg", "tiny", samples=40).problem.model, rates, 6, 0.05)
    fixed = by_parameter(blocks, rates)
    optimizer = Scaled(list(fixed), lambda: list(fixed.values()))
    source = datasets.stream(made.data, 8, 0)
    train(model, setup_loss, source, optimizer, 0.05, steps=6)
    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_parts_of_a_fused_weight_have_rates_of_their_own():
    model = setup("gpt", "tiny", samples=2).problem.model
    blocks = partition(model, vectors=True)
    names = [block.name for block in blocks]
    tensors = by_parameter(blocks, range(len(blocks)))
    fused = tensors[model.h[0].attn.c_attn.weight]
    for part, name in zip(fused.chunk(3), "qkv", strict=True):
        assert (part == names.index(f"h.0.attn.c_attn.{name}")).all()
    assert len(tensors) == len(list(model.parameters()))
    entries = by_parameter(blocks, [torch.arange(b.size, dtype=torch.float64) for b in blocks])
    assert (entries[model.wpe.weight].flatten() == torch.arange(model.wpe.weight.numel())).all()


def test_relative_rates_follow_their_rule_and_keep_the_stiffest_block():
    found = {arm: fixed_factors(TABLE, arm, seed=3) for arm in OURS}
    assert found["gradient"][:3] == pytest.approx(2 * np.array([0.5, 1, 2]))
    assert found["sharpness-half"][:3] == pytest.approx([1, 2, 8**0.5])
    for values in found.values():
        assert (values * TABLE["largest"]).max() == pytest.approx(8)
        assert np.isfinite(values).all()
    assert found["gradient"][3] == pytest.approx(100 * 2 * 1.5)  # zero: 100 times the median
    unit = found["gradient"] / found["gradient"][0]
    dealt = found["shuffled"] / found["shuffled"].min()
    assert sorted(dealt) == pytest.approx(sorted(unit))
    assert dealt.tolist() != pytest.approx(unit.tolist())
    assert (fixed_factors(TABLE, "shuffled", 2) != found["shuffled"]).any()


def test_sizes_of_blocks_are_those_of_gradients_and_of_the_dense_hessian(store):
    job = BlockScales("vgg", seed=2, gradients=3, lanczos_steps=40, probes=2, **SIZE)
    table = store.get(job).set_index("block")
    problem = job.problem()
    blocks = {block.name: block for block in partition(problem.model, vectors=True)}
    assert list(table.index) == list(blocks)
    parameters = dict(problem.model.named_parameters())
    totals = 0
    for inputs, targets in problem.batches:
        problem.model.zero_grad()
        setup_loss(problem.model, (inputs, targets)).backward()
        totals = totals + parameters["classifier.0.weight"].grad.square().mean() / 3
    assert table.loc["classifier.0", "square"] == pytest.approx(totals.item(), rel=1e-4)
    block = blocks["classifier.6.bias"]
    first = type(problem)(problem.model, problem.loss, problem.batches[:1])
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(first, block).double())
    found = table.loc[block.name]
    assert found["largest"] == pytest.approx(eigenvalues[-1].item(), rel=1e-3)
    assert found["rms"] == pytest.approx(eigenvalues.square().mean().sqrt().item(), rel=0.5)


def test_followed_factors_are_those_of_the_gradients_so_far():
    model = torch.nn.Linear(3, 2)
    blocks = partition(model, vectors=True)
    followed = Followed(blocks, [1.0, 1.0])
    model.weight.grad, model.bias.grad = torch.full((2, 3), 4.0), torch.ones(2)
    first = [one.flatten()[0].item() for one in followed()]
    assert first[1] / first[0] == pytest.approx(4)
    model.weight.grad = torch.full((2, 3), 8.0)
    second = [one.flatten()[0].item() for one in followed()]
    mean = (0.95 * 16 + 64) / 1.95  # of squares, by age
    assert second[0] / first[0] == pytest.approx(4 / mean**0.5)
    assert second[1] == pytest.approx(first[1])


def test_controls_of_followed_factors():
    model = torch.nn.Linear(3, 2)
    blocks = partition(model, vectors=True)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 4.0), torch.ones(2)
    right = [one.flatten()[0].item() for one in Followed(blocks, [1.0, 1.0])()]
    wrong = [one.flatten()[0].item() for one in Followed(blocks, [1.0, 1.0], order=[1, 0])()]
    assert wrong == pytest.approx(right[::-1])
    followed = Followed(blocks, [1.0, 1.0], one=True)
    first = [one.flatten()[0].item() for one in followed()]
    assert first == pytest.approx([1, 1])
    model.weight.grad = torch.full((2, 3), 8.0)
    second = [one.flatten()[0].item() for one in followed()]
    old, new = (6 * 16 + 2) / 8, (6 * 64 + 2) / 8  # mean squares over all entries
    assert second[0] == second[1]
    assert second[0] == pytest.approx((old / ((0.95 * old + new) / 1.95)) ** 0.5)


def test_coordinates_have_the_inverse_of_their_own_gradient_and_blocks_keep_their_unit():
    squares = [torch.tensor([1.0, 4.0, 16.0]).double(), torch.tensor([0.0, 1.0]).double()]
    means = np.array([s.mean().item() for s in squares])
    found = coordinate_factors(squares, 3 / np.sqrt(means))
    assert found[0].tolist() == pytest.approx([3, 1.5, 0.75])
    assert found[1].tolist() == pytest.approx([3 * 100, 3])  # 100 times the median, which is 1


@pytest.mark.parametrize("arm", OURS)
def test_every_arm_trains_its_own_way_from_the_same_start(store, arm):
    settings = {"samples": 40, "steps": 4, "windows": 4, **SIZE}
    plain = store.get(TrainingRun("vit", "momentum", 0.05, 0, **settings))
    other = store.get(InterventionRun("vit", arm, 0.05, 0, gradients=2, **settings))
    assert other["loss"][0] == plain["loss"][0]
    assert other["loss"][3] != plain["loss"][3]
    assert list(other.columns) == list(plain.columns)
    assert set(other["optimizer"]) == {arm}


def test_runs_of_chapter_06_are_used_and_every_arm_has_as_many_rates(store, monkeypatch):
    arms = ("momentum", "gradient", "adamw")
    settings = {"samples": 100, "steps": 20, **SIZE}
    job = Interventions("vit", arms=arms, seeds=2, **settings)
    table = store.get(job)
    assert set(table["optimizer"]) == set(arms)
    counts = table[table["part"] == "search"].groupby("optimizer")["rate"].nunique()
    assert len(set(counts)) == 1
    assert set(table.loc[table["part"] == "best", "seed"]) == {1, 2}
    momentum = table[(table["optimizer"] == "momentum") & (table["part"] == "search")]
    run = TrainingRun("vit", "momentum", momentum["rate"].iloc[0], 0, **settings)
    assert store.has(run)
    with pytest.raises(ValueError, match="Unknown arm sgd: choose from momentum, gradient"):
        Interventions("vit", arms=("sgd",)).compute(store)


def best_runs(**scores):
    rows = [
        (name, seed, step, loss, score, "best")
        for name, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
        for step, loss in ((1, 5.0), (2, score))
    ]
    return pd.DataFrame(rows, columns=["optimizer", "seed", "step", "loss", "score", "part"])


def test_the_share_closed_is_between_those_of_sgd_and_adamw():
    runs = best_runs(momentum=[3.0, 3.5], gradient=[2.5, 3.0], adamw=[2.0, 2.0], rms=[np.inf, 3.0])
    table = closed(runs).set_index("arm")
    assert table.loc["momentum", ["gained", "share"]].tolist() == [0, 0]
    assert table.loc["adamw", "share"] == pytest.approx(1)
    assert table.loc["gradient", "gained"] == pytest.approx(0.5)
    assert table.loc["gradient", "share"] == pytest.approx(1 / 2.5)
    assert table.loc["rms", "gained"] == pytest.approx((3 - 5 + 3.5 - 3) / 2)
    left_out = [0.5 / 1.5, 0.5 / 1.0]
    error = np.std(left_out) * (2 - 1) ** 0.5
    assert table.loc["gradient", "share_error"] == pytest.approx(error)


def test_no_model_is_asked_for_more_windows_than_its_text_has():
    shared = {"train_steps": 4, "train_seeds": 3, "rates": 3, "train_samples": 12000, "batch": 8}
    wanted = interventions.jobs("momentum adamw", model="gpt-bpe", size="medium", **shared)
    assert wanted[0].samples <= 9520
