"""Sees eigenvalues that are not those asked for: zeros kept or left out, shifts joint or apart."""

import numpy as np
import pytest
import torch

from blockspectra.spectra import Spectra
from companion.quadratics.cases import VARIANTS, draw, family, fixed, from_spectra


def spectra(*diagonals):
    """Blocks with these eigenvalues, equally weighted: one probe a value, one step each."""
    alpha = np.array(diagonals, dtype=float)[..., None]  # (block, probe, 1)
    count = alpha.shape[:2]
    return Spectra(
        [f"b{i}" for i in range(len(diagonals))],
        [10] * len(diagonals),
        alpha,
        np.zeros_like(alpha),
        np.ones(count, dtype=int),
        np.zeros(count),
    )


MEASURED = spectra([-4, 0, 0, 1e-9, 6], [-0.5, 0, 0, 0, 0.5], [2, 3, 3, 3, 3])


def drawn(variant, blocks=("b0", "b1"), samples=6, count=40):
    settings = {"samples": samples, "variant": variant, "count": count, "kappa": 101.0}
    return as_lists(from_spectra(MEASURED, blocks, **settings))


def as_lists(samples):
    return [[block.tolist() for block in blocks] for blocks in samples]


@pytest.mark.parametrize(
    ("variant", "first", "second"),
    [
        ("one shift", {1, 101}, {36, 46}),  # 3.5 and 4.5 above the smallest, tenfold
        ("shift per block", {1, 101}, {1, 11}),
        ("positive only", {101}, {1}),
        ("zeros kept", {1, 41, 101}, {36, 41, 46}),  # rounding noise counts as zero
    ],
)
def test_a_variant_moves_and_leaves_out_what_it_says(variant, first, second):
    for large, small in drawn(variant):
        assert (set(large), set(small)) == (first, second)


def test_a_sample_of_nothing_but_zeros_is_drawn_again():
    mostly = spectra([0.0] * 19 + [1.0])
    found = from_spectra(mostly, ["b0"], samples=5, variant="zeros kept", count=3, kappa=10.0)
    assert len(found) == 5
    assert all(max(block) == 10 for (block,) in found)


def test_random_blocks_are_drawn_anew_for_each_sample_and_are_different_ones():
    apart = spectra([1, 2], [10, 20], [100, 200], [1000, 2000])
    settings = {"samples": 30, "variant": "random blocks", "count": 20, "kappa": 11.0}
    found = as_lists(from_spectra(apart, ["b0", "b1"], **settings))
    kinds = {tuple(len(set(block)) for block in blocks) for blocks in found}
    assert kinds == {(2, 2)}
    assert len({min(max(block) for block in blocks) for blocks in found}) > 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_differ_are_seeded_and_have_the_condition_number_asked_for(variant):
    blocks = spectra(*np.random.default_rng(0).standard_normal((3, 50)))
    few, many = (
        as_lists(from_spectra(blocks, blocks.names[:2], samples=n, variant=variant, count=5))
        for n in (2, 4)
    )
    assert many[:2] == few
    assert len({str(sample) for sample in many}) == 4
    for sample in many:
        assert max(map(max, sample)) / min(map(min, sample)) == pytest.approx(5000)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="Unknown variant 'none': choose one of one shift"):
        drawn("none")


@pytest.mark.parametrize(("kappa", "within"), [(1e4, 3.0), (50.0, 50.0)])
def test_the_family_has_both_condition_numbers(kappa, within):
    (blocks,) = family(kappa, within, 1)
    for block in blocks:
        assert max(block) / min(block) == pytest.approx(within)
    assert max(map(max, blocks)) == pytest.approx(kappa)
    assert min(map(min, blocks)) == 1


def test_blocks_of_the_family_cannot_be_worse_than_the_whole():
    with pytest.raises(ValueError, match="block_kappa must be above 1 and at most kappa, not 20"):
        family(10, 20, 1)


def test_a_problem_is_seeded_and_has_a_start_for_every_draw():
    (blocks,) = fixed(3, 1)
    quadratic, start = draw(blocks, 4, 7)
    assert start.shape == (4, 9)
    assert quadratic.kappa == 5000
    again, other = draw(blocks, 4, 7), draw(blocks, 4, 8)
    assert torch.equal(again[0].hessian, quadratic.hessian)
    assert torch.equal(again[1], start)
    assert not torch.equal(other[1], start)
