"""Only this file sees a model measured on other data, or from another start, than its caption says.

A wrong split, a seed that is not used or an initialisation at the wrong scale changes every
spectrum and breaks nothing.
"""

from math import log

import pytest
import torch

from blockspectra import block_spectra, partition
from companion.models import gpt, vgg
from companion.setups import ARCHITECTURES, REDUCED, captions, load, setup

FAMILIES = {
    "vgg": "CNN",
    "resnet": "CNN",
    "mixer": "MLP-mixer",
    "vit": "Transformer",
    "bert": "Transformer",
    "gpt": "Transformer",
}


def weights(made):
    return torch.cat([p.detach().reshape(-1) for p in made.problem.model.parameters()])


@pytest.mark.parametrize("name", REDUCED)
def test_every_tiny_model_has_a_loss_near_chance_and_a_curvature(name):
    made = setup(name, "tiny", samples=4)
    assert (made.family, made.title) == (FAMILIES[name], ARCHITECTURES[name].title)
    assert not any(module.training for module in made.problem.model.modules())
    (batch,) = made.problem.batches
    assert len(batch[0]) == len(batch[1]) == 4
    assert made.problem.model(batch[0]).shape[-1] == made.data.classes > batch[1].max()
    loss = made.problem.value(batch).item()
    assert 0.5 * log(made.data.classes) < loss < 3 * log(made.data.classes)
    spectra = block_spectra(made.problem, partition(made.problem.model), steps=2, probes=1)
    assert (abs(spectra.nodes(0)) > 0).any()


@pytest.mark.parametrize("name", REDUCED)
def test_a_seed_decides_weights_and_data_and_leaves_the_global_one_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (setup(name, "tiny", samples=2, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    left, right = (made.problem.batches[0][0] for made in (first, again))
    assert torch.equal(left, right)
    assert not torch.equal(left, other.problem.batches[0][0])


@pytest.mark.parametrize("name", REDUCED)
def test_the_batches_are_the_same_samples_however_many_they_are(name):
    whole, parts = (setup(name, "tiny", samples=6, batches=n).problem for n in (1, 3))
    assert [len(batch[0]) for batch in parts.batches] == [2, 2, 2]
    for i in (0, 1):
        joined = torch.cat([batch[i] for batch in parts.batches])
        assert torch.equal(joined, whole.batches[0][i])


@pytest.mark.parametrize("name", ["vgg", "gpt"])
def test_float64_is_the_same_start_and_images_follow_but_tokens_do_not(name):
    single, double = (
        setup(name, "tiny", samples=2, dtype=t) for t in (torch.float32, torch.double)
    )
    assert weights(double).dtype == torch.float64
    assert torch.equal(weights(double).float(), weights(single))
    inputs = double.problem.batches[0][0]
    assert inputs.dtype == (torch.float64 if name == "vgg" else torch.int64)


@pytest.mark.parametrize(
    ("name", "parameter", "paper_std", "paper_width", "width"),
    [
        ("gpt", "wpe.weight", 0.02, 768, gpt.SMALL.width),
        ("vit", "pos_embed", 0.02, 768, 64),
        ("bert", "position.weight", 0.02, None, None),
        ("vgg", "classifier.0.weight", 0.01, 4096, vgg.SMALL.hidden),
    ],
)
def test_a_reduced_model_keeps_the_gain_of_the_papers_initialisation(
    name, parameter, paper_std, paper_width, width
):
    if name == "bert":
        configurations = ARCHITECTURES[name].configurations
        paper_width, width = configurations["paper"].width, configurations["small"].width
    for literal, expected in ((True, paper_std), (False, paper_std * (paper_width / width) ** 0.5)):
        model = setup(name, "small", samples=8, literal_init=literal).problem.model
        values = model.get_parameter(parameter)
        assert values.std().item() == pytest.approx(expected, rel=5 / (2 * values.numel()) ** 0.5)


def test_a_medium_model_sees_the_data_that_take_longer():
    made = {name: setup(name, "medium", samples=4) for name in [*REDUCED, "gpt-bpe"]}
    names = {name: one.data.name for name, one in made.items()}
    assert {names[name] for name in ("vgg", "resnet", "mixer", "vit")} == {
        "Fashion-MNIST 28x28, train"
    }
    assert names["gpt"].startswith("Shakespeare")
    assert names["gpt-bpe"].startswith("encyclopedia")
    assert made["gpt-bpe"].data.classes == made["bert"].data.classes == 4000
    for name, one in made.items():
        assert setup(name, "medium", samples=4, seed=1).data.checksum != one.data.checksum
        assert load(name, "medium", 4, 0, "test").name.endswith("test")
        loss = one.problem.value(one.problem.batches[0]).item()
        assert 0.5 * log(one.data.classes) < loss < 3 * log(one.data.classes)
    std = made["gpt-bpe"].problem.model.wpe.weight.std().item()  # GPT2's gain, at width 64
    assert std == pytest.approx(0.02 * (768 / 64) ** 0.5, rel=0.05)


def test_a_share_of_the_papers_widths_keeps_depth_data_and_gain():
    narrow, whole = (setup("nano", size, samples=1) for size in ("1/3", "paper"))
    assert narrow.data.checksum == whole.data.checksum
    one, other = narrow.problem.model.config, whole.problem.model.config
    assert (one.layers, one.context, one.vocab) == (other.layers, other.context, other.vocab)
    assert one.width / one.heads == other.width / other.heads
    assert (3 * one.width, one.init_std / 3**0.5) == (other.width, pytest.approx(other.init_std))
    plan = setup("vgg", "1/16", samples=1).problem.model.config.plan
    assert plan == tuple(step if step == "M" else step // 16 for step in vgg.VGG16.plan)


def test_the_caption_names_model_size_data_and_what_the_data_stand_for():
    caption = setup("vgg", "tiny", samples=2).caption
    assert caption.startswith("VGG, 1,778 parameters, photographs")
    assert caption.endswith("standing in for ImageNet")


def test_captions_name_models_on_the_same_data_together():
    about = [f"A, 1,000 parameters, {data}" for data in ("x, train", "y", "x, train")]
    joined = captions([{"caption": text} for text in about])
    assert joined == "A, A on x; A on y"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gtp",), "Unknown model 'gtp': choose one of vgg, resnet, mixer, vit, bert, gpt"),
        (("gpt", "huge"), "Unknown size 'huge' of gpt: choose one of tiny, small, medium, paper"),
        (("vgg", "tiny", 5, 2), "5 samples do not make 2 equal batches"),
        (("vgg", "tiny", 1, 2), "1 samples do not make 2 equal batches"),
        (("vgg", "tiny", 4, 0), "4 samples do not make 0 equal batches"),
    ],
)
def test_what_makes_no_model_with_data_is_refused(arguments, sentence):
    names = ("name", "size", "samples", "batches")
    with pytest.raises(ValueError, match=sentence):
        setup(**dict(zip(names, arguments, strict=False)))


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_a_model_of_the_papers_size_has_a_finite_loss_on_its_data(name):
    problem = setup(name, "paper", samples=1).problem
    with torch.no_grad():
        assert torch.isfinite(problem.value(problem.batches[0]))
