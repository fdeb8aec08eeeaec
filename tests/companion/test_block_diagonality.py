"""Only this file sees a mass that is counted in the wrong place.

A share of squared entries is a number between 0 and 1 whatever the blocks, the order of the weights
or the comparison: here they are held against matrices with known blocks, against draws of what the
comparisons are expectations of, and against closed forms of the MLP's Hessian.
"""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from blockspectra import partition
from blockspectra.blocks import whole
from blockspectra.hessian import dense_hessian
from blockspectra.problem import Problem
from companion import datasets
from companion.experiments.block_diagonality import (
    BlockShares,
    HessianImage,
    block_ratio,
    coarse,
    grouping,
    mass_shares,
)
from companion.experiments.one_hidden_layer import (
    LOSSES,
    Training,
    clusters,
    gaussian,
    images,
    pairs,
    snapshots,
    text,
)
from companion.models.mlp import MLP, MLPConfig

SIZES = (5, 3, 4)  # inputs, hidden, classes
SHAPES = [(3, 5), (4, 3)]
TINY = {"hidden": 3, "side": 4, "inputs": 4, "samples": 32, "steps": 100, "batch": 16}


def random_matrix(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, n))


def symmetric(n, seed=0):
    matrix = random_matrix(n, seed)
    return matrix + matrix.T + np.diag(np.arange(n))


@pytest.fixture(params=list(LOSSES))
def network(request):
    """A network in float64 with its inputs, outputs, activations and full Hessian."""
    torch.manual_seed(0)
    model = MLP(MLPConfig(SIZES, bias=False)).double()
    x, y = torch.randn(20, SIZES[0]).double(), torch.randint(SIZES[2], (20,))
    problem = Problem(model, LOSSES[request.param], [(x, y)])
    return request.param, model, x, problem, dense_hessian(problem, whole(model)).numpy()


class TestShares:
    def test_exact_blocks_have_a_share_of_one(self):
        matrix = np.zeros((7, 7))
        matrix[:3, :3], matrix[3:, 3:] = random_matrix(3), random_matrix(4)
        assert mass_shares(matrix, [3, 4]).share == pytest.approx(1)

    def test_mass_outside_is_not_counted(self):
        matrix = np.ones((4, 4))
        matrix[0, 2] = matrix[2, 0] = 3.0
        assert mass_shares(matrix, [2, 2]).share == pytest.approx(8 / (14 + 18))

    def test_a_diagonal_matrix_holds_no_more_than_its_permutation(self):
        found = mass_shares(np.diag([1.0, 2.0, 3.0]), [2, 1])
        assert found.share == found.permuted == 1

    def test_permuted_is_the_mean_over_permutations(self):
        rng, matrix, sizes = np.random.default_rng(1), symmetric(9), [2, 4, 3]
        orders = [rng.permutation(9) for _ in range(4000)]
        drawn = [mass_shares(matrix[np.ix_(o, o)], sizes).share for o in orders]
        error = np.std(drawn) / len(drawn) ** 0.5
        assert mass_shares(matrix, sizes).permuted == pytest.approx(np.mean(drawn), abs=4 * error)

    def test_zeros_have_no_share(self):
        assert np.isnan(mass_shares(np.zeros((3, 3)), [1, 2]).share)


class TestGrouping:
    @pytest.mark.parametrize("layer", ["hidden", "output"])
    def test_blocks_by_neuron_are_those_of_the_partition(self, network, layer):
        _, model, _, problem, hessian = network
        order, sizes = grouping(SHAPES, layer, "neuron")
        part = hessian[np.ix_(order, order)]
        blocks = partition(model, by="neuron", only=f"layers.{('hidden', 'output').index(layer)}*")
        assert [block.size for block in blocks] == sizes
        for block, end in zip(blocks, np.cumsum(sizes), strict=True):
            rows = slice(end - block.size, end)
            expected = dense_hessian(problem, block).numpy()
            np.testing.assert_allclose(part[rows, rows], expected, atol=1e-12)

    @pytest.mark.parametrize(
        ("by", "belongs"),
        [
            # (name of the block) of hidden weight (neuron, input) and output weight (class, neuron)
            ("neuron", (lambda i, k: ("h", i), lambda c, i: ("o", c))),
            ("input", (lambda i, k: ("h", k), lambda c, i: ("o", i))),
            ("unit", (lambda i, k: i, lambda c, i: i)),
        ],
    )
    def test_each_weight_is_once_in_the_block_it_belongs_to(self, by, belongs):
        names = [
            belong(*place)
            for shape, belong in zip(SHAPES, belongs, strict=True)
            for place in np.ndindex(shape)
        ]
        order, sizes = grouping(SHAPES, "both", by)
        assert sorted(order) == list(range(len(names)))
        ends = np.cumsum(sizes)
        blocks = [
            {names[row] for row in order[end - size : end]}
            for end, size in zip(ends, sizes, strict=True)
        ]
        assert all(len(block) == 1 for block in blocks)
        assert len(set.union(*blocks)) == len(blocks)


class TestClosedForms:
    def parts(self, network):
        """(p_c δ - p_c p_c') or its like under the squared error, gates, activations."""
        loss, model, x, _, hessian = network
        with torch.no_grad():
            h = torch.relu(model.layers[0](x))
            p = F.softmax(model.layers[1](h), 1)
        bends = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        if loss == "squared error":
            bends = (2 / SIZES[2] * torch.eye(SIZES[2]).double()).expand_as(bends)
        return bends, (h > 0).double(), h, model.layers[1].weight.detach(), x, hessian

    def test_output_layer(self, network):
        bends, _, h, _, _, hessian = self.parts(network)
        expected = torch.einsum("nab,ni,nj->aibj", bends, h, h) / len(h)
        first = SIZES[0] * SIZES[1]
        np.testing.assert_allclose(hessian[first:, first:], expected.reshape(12, 12), atol=1e-12)

    def test_hidden_layer(self, network):
        bends, gates, _, v, x, hessian = self.parts(network)
        core = torch.einsum("ai,nab,bj->nij", v, bends, v) * gates[:, :, None] * gates[:, None]
        expected = torch.einsum("nij,nk,nl->ikjl", core, x, x) / len(x)
        np.testing.assert_allclose(hessian[:15, :15], expected.reshape(15, 15), atol=1e-12)

    @pytest.mark.parametrize("classes", [2, 10, 100])
    def test_even_predictions_leave_one_part_in_c_outside(self, classes):
        """With output weights of zero the output layer's share is 1 - 1/C."""
        torch.manual_seed(0)
        model = MLP(MLPConfig((5, 3, classes), bias=False)).double()
        torch.nn.init.zeros_(model.layers[1].weight)
        batch = (torch.randn(20, 5).double(), torch.randint(classes, (20,)))
        problem = Problem(model, LOSSES["cross-entropy"], [batch])
        (block,) = partition(model, only="layers.1")
        hessian = dense_hessian(problem, block).numpy()
        assert mass_shares(hessian, [3] * classes).share == pytest.approx(1 - 1 / classes)


class TestCoarse:
    def test_cells_average_and_stay_inside_blocks(self):
        matrix = symmetric(10)
        means, blocks = coarse(matrix, [4, 4, 2], cells=4)
        assert blocks == [0, 0, 1, 1, 2, 2]
        assert means[1, 2] == pytest.approx(np.abs(matrix[2:4, 4:6]).mean())
        assert means[5, 0] == pytest.approx(np.abs(matrix[9, 0:2]).mean())

    def test_a_block_has_at_least_one_cell(self):
        means, blocks = coarse(symmetric(12), [3] * 4, cells=2)
        assert means.shape == (4, 4)
        assert blocks == [0, 1, 2, 3]


class TestTasks:
    def test_fewer_classes_change_the_targets_alone(self):
        few, many = images(2, side=4), images(10, side=4)
        assert torch.equal(few.inputs, many.inputs)
        assert torch.equal(few.targets, many.targets % 2)

    def test_text_keeps_the_frequent_characters_and_merges_the_others(self):
        few, every = text(10, inputs=4), text(76, inputs=4)
        assert torch.equal(few.inputs, every.inputs)
        assert torch.equal(few.targets, every.targets.clamp(max=9))
        counts = torch.bincount(every.targets, minlength=76)
        assert (counts.diff() <= 0).all()

    def test_text_shows_the_same_character_as_the_same_numbers(self):
        codes = text(76, inputs=8).inputs.view(-1, 2, 4)
        assert len(codes.flatten(0, 1).unique(dim=0)) <= 76
        assert len(codes[:, 0].unique(dim=0)) > 40

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda: images(11), "2 to 10 classes, not 11"),
            (lambda: pairs(10), "4, 9, 16 … 100 classes, not 10"),
            (lambda: text(77), "2 to 76 classes"),
            (lambda: text(10, inputs=5), "a multiple of 2 inputs"),
        ],
    )
    def test_what_is_not_there_is_refused(self, make, sentence):
        with pytest.raises(ValueError, match=sentence):
            make()

    def test_gaussian_labels_cover_all_classes(self):
        assert len(gaussian(100, inputs=4).targets.unique()) == 100

    def test_a_pair_shows_its_two_digits(self):
        every, alone = pairs(100, side=28), datasets.mnist("train")
        known = {
            x.numpy().tobytes(): int(y) for x, y in zip(alone.inputs, alone.targets, strict=True)
        }
        for image, target in zip(every.inputs[:20], every.targets[:20], strict=True):
            left, right = image[:, :, :28].contiguous(), image[:, :, 28:].contiguous()
            assert 10 * known[left.numpy().tobytes()] + known[right.numpy().tobytes()] == target
        assert (pairs(4).targets == every.targets // 10 % 2 * 2 + every.targets % 2).all()
        assert torch.bincount(every.targets).min() > 20

    def test_clusters_are_as_large_as_each_other_and_apart(self):
        found = clusters(10, inputs=64)
        assert (torch.bincount(found.targets) == 500).all()
        centres = torch.stack([found.inputs[found.targets == c].mean(0) for c in range(10)])
        nearest = torch.cdist(found.inputs, centres).argmin(1)
        assert (nearest == found.targets).double().mean() > 0.99


def test_the_block_ratio_of_blocks_all_alike_is_one():
    shares, blocks = pd.Series([1 / 10, 0.9]), pd.Series([10, 10])
    assert block_ratio(shares, blocks).tolist() == pytest.approx([1, 1 / 9])


class TestTraining:
    def test_stages_are_taken_before_and_after_learning(self):
        first, last = snapshots(Training("images", 10, stages=(1, 100), **(TINY | {"rate": 0.05})))
        assert (first.stage, last.stage) == (1, 100)
        assert last.loss < first.loss - 0.1
        assert first.loss == pytest.approx(np.log(10), abs=0.3)

    def test_too_few_steps_are_refused(self):
        with pytest.raises(ValueError, match="20 steps are too few to look at"):
            snapshots(Training("gaussian", 4, **(TINY | {"steps": 20})))

    def test_a_run_that_diverges_is_refused(self):
        with pytest.raises(ValueError, match="diverged at rate 1e"):
            snapshots(Training("gaussian", 4, rate=1e6, **TINY))

    def test_masses_of_the_layers_do_not_exceed_that_of_both(self, store):
        table = store.get(BlockShares("gaussian", 6, **TINY))
        mass = table[table["by"] == "neuron"].pivot_table("mass", "stage", "layer")
        assert (mass["hidden"] + mass["output"] < mass["both"]).all()
        whole_matrix = table[table["layer"] == "both"].groupby("stage")["mass"]
        assert np.allclose(whole_matrix.max(), whole_matrix.min())

    def test_pictures_cover_both_layers(self, store):
        picture = store.get(HessianImage("gaussian", 6, cells=8, **TINY))
        one = picture[picture["stage"] == 50]
        assert list(one["layer"].unique()) == ["hidden", "output"]
        assert one["block"].nunique() == 3 + 6
        values = one.drop(columns=["stage", "layer", "block"]).to_numpy()
        assert values.shape[0] == values.shape[1]
        np.testing.assert_array_equal(values, values.T)
