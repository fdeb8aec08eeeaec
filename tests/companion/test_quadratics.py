"""Sees what only closed forms, torch's own optimizers and numbers computed apart can show: a wrong
coefficient in an iteration or a bound, and a count of steps that iterating would not confirm."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.quadratics.convergence import (
    adam_upper_bound,
    best_step,
    gd_lower_bound,
    gradient_norms,
    modes,
    steps_to,
)
from companion.quadratics.quadratic import (
    CASES,
    Quadratic,
    adam,
    eigenvalues,
    frozen_adam,
    gd,
    heavy_ball,
    sampled_eigenvalues,
    sign_descent,
)

DRAWS = 200


def diagonal(*blocks):
    """A quadratic with these eigenvalues, its blocks not rotated."""
    blocks = tuple(torch.tensor(block, dtype=torch.float64) for block in blocks)
    return Quadratic(blocks, tuple(torch.eye(len(b), dtype=torch.float64)[None] for b in blocks))


def point(*coordinates):
    return torch.tensor([coordinates], dtype=torch.float64)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A case's number, its 200 draws and a Gaussian start each."""
    quadratic = Quadratic.draw(eigenvalues(request.param), draws=DRAWS, seed=0)
    return request.param, quadratic, quadratic.gaussian_start(seed=0)


# The problems


def test_a_hessian_is_block_diagonal_with_the_eigenvalues_asked_for():
    blocks = [torch.tensor([3.0, 1]), torch.tensor([2.0, 5, 4])]
    hessian = Quadratic.draw(blocks, draws=7, seed=3).hessian
    assert hessian[:, :2, 2:].abs().max() == hessian[:, 2:, :2].abs().max() == 0
    for part, expected in ((hessian[:, :2, :2], [1.0, 3]), (hessian[:, 2:, 2:], [2.0, 4, 5])):
        exact = torch.tensor(expected, dtype=torch.float64).expand(7, -1)
        torch.testing.assert_close(torch.linalg.eigvalsh(part), exact)
        assert part[0, 0, 1].abs() > 1e-3  # it is rotated


def test_rotations_are_haar_and_independent_of_starts_and_of_how_many_are_drawn():
    quadratic = Quadratic.draw([torch.ones(3)] * 2, draws=4000)
    first, second = quadratic.rotations
    trace = first.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(trace.mean()) < 0.05  # Householder's signs make it -1 or so
    assert trace.square().mean() == pytest.approx(1, abs=0.07)
    starts = quadratic.gaussian_start()[:, :3]
    for other in (second[..., 0], starts / starts.norm(dim=1, keepdim=True)):
        assert abs((first[..., 0] * other).sum(1).mean()) < 0.03
    few = Quadratic.draw([torch.ones(3)] * 2, draws=5)
    assert torch.equal(few.hessian, quadratic.hessian[:5])
    assert torch.equal(few.rotations[1], second[:5])
    assert torch.equal(few.gaussian_start(), quadratic.gaussian_start()[:5])


def test_sampled_eigenvalues_keep_their_relative_ranges():
    small, large = sampled_eigenvalues([[-1, 0], [1, 9]], np.ones((2, 2)), kappa=101, count=50)
    assert small.unique().tolist() == [1, 11]
    assert large.unique().tolist() == [21, 101]


@given(slope=st.floats(1e-4, 1e4), shift=st.floats(-10, 10), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_sampled_eigenvalues_do_not_see_the_unit_or_the_zero_of_what_was_measured(
    slope, shift, seed
):
    measured, weights = np.random.default_rng(seed).standard_normal((3, 40)), np.ones((3, 40))
    blocks = sampled_eigenvalues(measured, weights, seed=seed)
    again = sampled_eigenvalues(slope * (measured + shift), weights, seed=seed)
    torch.testing.assert_close(again, blocks, rtol=1e-9, atol=0)
    assert [len(block) for block in blocks] == [30] * 3
    assert torch.cat(blocks).min() == 1
    assert torch.cat(blocks).max() == pytest.approx(5000)


def test_samples_follow_the_weights_of_their_block_over_all_probes():
    nodes = [np.array([[-1.0, 0], [0, 3]]), np.array([10.0, 20])]
    weights = [np.array([[0.1, 0.2], [0.7, 0]]), np.array([1.0, 3])]
    small, large = sampled_eigenvalues(nodes, weights, count=4000, kappa=22, seed=1)
    assert small.unique().tolist() == [1, 2]  # -1 is shifted to 1, and 3 has no weight
    assert large.unique().tolist() == [12, 22]
    assert (small == 2).double().mean() == pytest.approx(0.9, abs=0.02)
    assert (large == 22).double().mean() == pytest.approx(0.75, abs=0.03)
    again = sampled_eigenvalues(nodes, weights, count=4000, kappa=22, seed=1)
    other = sampled_eigenvalues(nodes, weights, count=4000, kappa=22, seed=2)
    assert torch.equal(small, again[0])
    assert not torch.equal(small, other[0])


# The iterations


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (lambda *a: gd(*a, step=3e-4), torch.optim.SGD, {"lr": 3e-4}),
        (
            lambda *a: gd(*a, step=1e-4, momentum=0.9),
            torch.optim.SGD,
            {"lr": 1e-4, "momentum": 0.9},
        ),
        (lambda *a: adam(*a, step=0.01), torch.optim.Adam, {"lr": 0.01}),
        (
            lambda *a: adam(*a, step=0.01, betas=(0.5, 0.95), eps=1e-3),
            torch.optim.Adam,
            {"lr": 0.01, "betas": (0.5, 0.95), "eps": 1e-3},
        ),
        (
            lambda *a: sign_descent(*a, step=0.01),
            torch.optim.Adam,
            {"lr": 0.01, "betas": (0.0, 0.0), "eps": 0.0},
        ),
    ],
)
def test_an_iteration_follows_torchs_own_optimizer(ours, theirs, options):
    quadratic = Quadratic.draw(eigenvalues(4), draws=3)
    start = quadratic.gaussian_start()
    w = start.clone().requires_grad_()
    optimizer, norms, gaps = theirs([w], **options), [], []
    for _ in range(51):
        optimizer.zero_grad()
        loss = torch.einsum("ni,nij,nj->n", w, quadratic.hessian, w) / 2
        loss.sum().backward()
        norms.append(w.grad.norm(dim=1))
        gaps.append(loss.detach())
        end = w.detach().clone()
        optimizer.step()
    path = ours(quadratic, start, 50)
    torch.testing.assert_close(path.gradient_norm, torch.stack(norms, 1), rtol=1e-7, atol=0)
    torch.testing.assert_close(path.gap, torch.stack(gaps, 1), rtol=1e-7, atol=0)
    torch.testing.assert_close(path.end, end, rtol=1e-7, atol=1e-9)


def test_on_a_diagonal_hessian_frozen_adam_is_blind_to_the_eigenvalues():
    start = point(0.5, -2, 1)
    path = frozen_adam(diagonal([1, 30], [5000]), start, 20, step=0.1)
    torch.testing.assert_close(path.end, start * (1 - 0.1 / start.abs()) ** 20)


def test_heavy_ball_reaches_its_rate_and_no_other_momentum_does():
    quadratic = Quadratic.draw([torch.tensor([1.0, 7, 100])], draws=4)
    start, best = quadratic.gaussian_start(), heavy_ball(quadratic)
    norms = gd(quadratic, start, 200, **best).gradient_norm
    assert (norms[:, 200] / norms[:, 100]) ** 0.01 == pytest.approx(9 / 11, rel=0.02)
    for factor in (0.8, 1.2):
        other = gd(quadratic, start, 200, step=best["step"], momentum=best["momentum"] * factor)
        assert (other.gradient_norm[:, 200] > 10 * norms[:, 200]).all()


# Counting steps without iterating


@pytest.mark.parametrize("frozen", [False, True])
def test_norms_from_the_modes_are_those_of_the_iteration(case, frozen):
    _, quadratic, start = case
    found = modes(quadratic, start, frozen=frozen)
    step = found.minimax_step * 0.9
    path = (
        frozen_adam(quadratic, start, 60, step=step)
        if frozen
        else gd(quadratic, start, 60, step=step)
    )
    norms = gradient_norms(found, step, torch.arange(61))
    torch.testing.assert_close(norms, path.gradient_norm, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.parts.sum(-1), quadratic.gradient(start))


@pytest.mark.parametrize("search", [False, True])
def test_counted_steps_are_the_first_of_the_iteration_that_pass(search):
    quadratic = Quadratic.draw(eigenvalues(3), draws=100, seed=5)
    start = quadratic.gaussian_start(seed=5)
    found = modes(quadratic, start, frozen=True)
    step, counts = best_step(found) if search else (found.minimax_step, None)
    counts = steps_to(found, step) if counts is None else counts
    norms = frozen_adam(quadratic, start, 3000, step=step).gradient_norm
    passed = norms <= 1e-6 * norms[:, :1]
    first = torch.where(passed.any(1), passed.double().argmax(1).double(), torch.inf)
    within = counts[:, 0] <= 3000
    assert within.sum() > 90
    assert torch.equal(counts[within, 0], first[within])
    assert first[~within].isinf().all()


@given(rate=st.floats(0.01, 1.99))
@settings(max_examples=50, deadline=None)
def test_one_dimension_counts_as_its_logarithm_says(rate):
    found = modes(diagonal([4.0]), point(0.3), frozen=False)
    count = float(steps_to(found, rate / 4))
    exact = math.log(1e-6) / math.log(abs(1 - rate)) if rate != 1 else 0
    assert exact - 1e-6 <= count < max(exact, 0.5) + 1 + 1e-6


def test_what_diverges_or_crawls_is_counted_as_never():
    found = modes(diagonal([1.0, 4]), point(1, 1), frozen=False)
    steps = torch.tensor([[0.5, 0.49, 1e-20, 1e-9]], dtype=torch.float64)
    counts = steps_to(found, steps)
    assert counts.isinf().tolist() == [[True, False, True, False]]
    assert counts[0, 3] == pytest.approx(-math.log(1e-6 * 17**0.5) * 1e9, rel=1e-3)


def test_no_step_on_a_fine_grid_beats_the_best_step(case):
    _, quadratic, start = case
    quadratic = Quadratic(quadratic.blocks, tuple(q[:20] for q in quadratic.rotations))
    for frozen in (False, True):
        found = modes(quadratic, start[:20], frozen=frozen)
        step, counts = best_step(found)
        assert torch.equal(steps_to(found, step), counts)
        shares = torch.cat([torch.logspace(-2, 0, 60)[:-1], 1 - torch.logspace(-6, -1, 200)])
        grid = steps_to(found, 2 * shares.double() / found.rates[:, -1:])
        assert (counts <= 1.001 * grid.amin(1, keepdim=True)).all()


# The paper's cases, against numbers computed apart from this code


def test_steps_at_the_minimax_step_agree_with_the_papers_picture(case):
    number, quadratic, start = case
    slow, fast = (modes(quadratic, start, frozen=frozen) for frozen in (False, True))
    gd_steps, adam_steps = (steps_to(m, m.minimax_step)[:, 0] for m in (slow, fast))
    assert gd_steps.median() == pytest.approx(33_000, rel=0.03)
    assert slow.minimax_step.numpy() == pytest.approx(2 / 5001)
    low, median, high = np.quantile(adam_steps.numpy(), [0.1, 0.5, 0.9])
    wins = float((adam_steps < gd_steps).double().mean())
    if number == 3:
        assert median == pytest.approx(119, rel=0.25)
        assert 28 < low < 45
        assert 350 < high < 1100  # a heavy tail: 665 over 4,000 draws
        assert wins > 0.98
        assert fast.condition.median() == pytest.approx(20.9, rel=0.25)
    else:
        assert median == pytest.approx(50_000, rel=0.2)
        assert wins == pytest.approx(0.31, abs=0.1)
        assert fast.condition.median() == pytest.approx(8_300, rel=0.15)


def test_a_step_chosen_for_the_start_is_two_to_three_times_faster_than_the_minimax_one(case):
    number, quadratic, start = case
    gd_steps, adam_steps = (
        best_step(modes(quadratic, start, frozen=frozen))[1].median() for frozen in (False, True)
    )
    assert gd_steps == pytest.approx(11_200, rel=0.07)
    assert adam_steps == pytest.approx({3: 100, 4: 21_000}[number], rel=0.3)


def test_gd_lower_bound_holds_for_every_step_and_is_met_without_slack():
    quadratic = Quadratic.draw(eigenvalues(4), seed=2)
    best = 2 / 5001
    steps = torch.cat([torch.linspace(0.01, 1.99, 1000), torch.tensor([1.0])]).double() * best
    start = quadratic.worst_start().expand(len(steps), -1)
    gap = gd(quadratic, start, 30, step=steps).gap
    ratio = gap[:, 1:] / gap[:, :-1]
    bound = gd_lower_bound(quadratic.kappa)
    assert bound == pytest.approx(0.99920032, abs=5e-9)
    assert (ratio >= bound - 1e-10).all()
    gap = gd(quadratic, quadratic.worst_start(), 30).gap[0]  # at its default step
    assert (gap[1:] / gap[:-1]).numpy() == pytest.approx(bound, abs=1e-10)
    assert ratio.min() == pytest.approx(bound, abs=1e-10)
    assert ratio.min() < 1 - 2 / 5001  # without the square the bound is false


def test_adam_upper_bound_is_never_violated_in_ten_thousand_steps(case):
    _, quadratic, start = case
    quadratic = Quadratic(quadratic.blocks, tuple(q[:20] for q in quadratic.rotations))
    bound = adam_upper_bound(quadratic, start[:20])
    gap = frozen_adam(quadratic, start[:20], 10_000, step=bound.step).gap
    slack = 1e-12 * gap[:, :-1] + 1e-300  # rounding, and what is about to underflow
    assert (gap[:, 1:] <= bound.rate * gap[:, :-1] + slack).all()
    assert (gap[:, -1] < gap[:, 0] / 2).all()


def test_adam_upper_bound_is_tight_where_it_should_be():
    # Blocks of one: κ_l = 1, and the slowest block shrinks by exactly 1 − 1/r.
    quadratic, start = diagonal([1], [50], [9]), point(2, -0.5, 1)
    bound = adam_upper_bound(quadratic, start)
    assert (float(bound.step), float(bound.ratio)) == (0.5, 4)
    assert float(bound.rate) == pytest.approx((1 - 1 / 4) ** 2)
    gap = frozen_adam(quadratic, start, 60, step=bound.step).gap[0]
    assert gap[-1] / gap[-2] == pytest.approx(float(bound.rate), rel=1e-6)
    # One block, all |g⁰| equal: r = 1, and its slowest mode shrinks by exactly 1 − 1/κ.
    quadratic = Quadratic.draw([torch.tensor([1.0, 3, 10])], seed=4)
    start = torch.linalg.solve(quadratic.hessian[0], point(1, -1, 1)[0])[None]
    bound = adam_upper_bound(quadratic, start)
    assert float(bound.ratio) == pytest.approx(1)
    gap = frozen_adam(quadratic, start, 100, step=bound.step).gap[0]
    assert gap[-1] / gap[-2] == pytest.approx(0.81, rel=1e-6)
    assert float(bound.rate) == pytest.approx(0.81)


def test_how_often_r_is_below_1000_depends_on_its_square_and_on_the_case():
    found = {}
    for number in (3, 4):
        quadratic = Quadratic.draw(eigenvalues(number), draws=1000, seed=0)
        ratio = adam_upper_bound(quadratic, quadratic.gaussian_start(seed=0)).ratio
        found[number] = [float((r <= 1000).double().mean()) for r in (ratio, ratio**2)]
    assert found[3] == [pytest.approx(0.985, abs=0.012), pytest.approx(0.64, abs=0.045)]
    assert found[4] == [pytest.approx(0.965, abs=0.018), pytest.approx(0.43, abs=0.045)]


def test_from_far_away_adam_underflows_before_its_cycle_and_near_it_it_does_not():
    start = torch.tensor([[1.0], [0.055], [0.0]], dtype=torch.float64)
    path = adam(diagonal([1.0]), start, 2000, step=0.1, betas=(0, 0.999), eps=0)
    far, near, minimum = path.end.abs()
    assert far == minimum == 0
    assert 0.02 < near < 0.08


# Bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda q, w: sampled_eigenvalues([[1], [2]], [[1], [0]]), "weights of block 1"),
        (lambda q, w: sampled_eigenvalues([[1, 1], [1]], [[1, 1], [1]]), "no affine map"),
        (lambda q, w: Quadratic.draw([torch.tensor([1.0, 0])]), "eigenvalue must be positive"),
        (lambda q, w: Quadratic.draw([torch.tensor([1.0, -2])]), "eigenvalue must be positive"),
        (lambda q, w: gd(q, w, 3, step=0.0), "step must be positive"),
        (lambda q, w: frozen_adam(q, w, 3, step=-1.0), "step must be positive"),
        (lambda q, w: frozen_adam(q, 0 * w, 3, step=1.0), "g⁰. must be positive"),
        (lambda q, w: adam(q, w, 3, step=math.nan), "step must be positive"),
        (lambda q, w: sign_descent(q, w, 3, step=0), "step must be positive"),
        (lambda q, w: modes(q, 0 * w, frozen=True), "g⁰. must be positive"),
        (lambda q, w: steps_to(modes(q, w, frozen=False), -0.1), "step must be positive"),
        (lambda q, w: adam_upper_bound(q, 0 * w), "g⁰. must be positive"),
    ],
)
def test_bad_input_gets_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(diagonal([1, 2]), point(1, 1))
