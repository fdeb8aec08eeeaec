"""Only this file sees an architecture or an initialisation that is not the one it is named after.

Such a bug leaves every spectrum finite and plausible. Oracles: published parameter counts, the
models of `transformers`, sampling error, invariances, finite differences.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from companion.models import bert, gpt, mixer, resnet, vgg, vit
from companion.models.bert import BERT
from companion.models.gpt import GPT
from companion.models.mixer import Mixer
from companion.models.mlp import MLP, MLPConfig
from companion.models.resnet import ResNet
from companion.models.vgg import VGG
from companion.models.vit import ViT

GPT2_OPENAI = replace(gpt.GPT2, bias=True, vocab=50257)
TINY = [
    pytest.param(MLP, MLPConfig((64, 16, 10)), id="MLP"),
    pytest.param(VGG, vgg.TINY, id="VGG"),
    pytest.param(ResNet, resnet.TINY, id="ResNet"),
    pytest.param(ViT, vit.TINY, id="ViT"),
    pytest.param(Mixer, mixer.TINY, id="Mixer"),
    pytest.param(GPT, gpt.TINY, id="GPT"),
    pytest.param(BERT, bert.TINY, id="BERT"),
]


def build(Model, config):
    torch.manual_seed(0)
    return Model(config).double().eval()


def batch(Model, config, size=6):
    generator = torch.Generator().manual_seed(1)
    if Model in (GPT, BERT):
        shape = (size, config.context)
        x, y = torch.randint(config.vocab, (2, *shape), generator=generator)
        x[:, 0] = 0  # the row that padding_idx=0 would drop
        return x, y
    shape = (1, 8, 8) if Model is MLP else (3, 8, 8)
    x = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (size,), generator=generator)


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


@pytest.mark.parametrize(
    ("Model", "config", "published"),
    [
        (ResNet, resnet.RESNET18, 11_689_512),
        (VGG, vgg.VGG16, 138_357_544),
        (ViT, vit.VIT_BASE, 86_567_656),
        (Mixer, mixer.BASE, 59_880_472),
        (GPT, GPT2_OPENAI, 124_439_808),
        (BERT, bert.BASE, 109_514_298),
        (BERT, bert.PAPER, pytest.approx(40e6, rel=0.05)),
    ],
)
def test_parameter_count_is_the_published_one(Model, config, published):
    with torch.device("meta"):
        model = Model(config)
    assert sum(p.numel() for p in model.parameters()) == published


def randomise(model):
    """Make every tensor matter: biases away from 0, scales and running variances from 1."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model


def renamed(state, pairs):
    for pattern, name in pairs:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


GPT_NAMES = [("^(wte|wpe|h|ln_f)", r"transformer.\1")]
BERT_NAMES = [
    ("^norm", "bert.embeddings.LayerNorm"),
    ("^(word|position|token_type)", r"bert.embeddings.\1_embeddings"),
    ("^layer", "bert.encoder.layer"),
    ("attn.(query|key|value)", r"attention.self.\1"),
    ("attn.out", "attention.output.dense"),
    ("norm1", "attention.output.LayerNorm"),
    ("norm2", "output.LayerNorm"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("^head_dense", "cls.predictions.transform.dense"),
    ("^head_norm", "cls.predictions.transform.LayerNorm"),
    ("^decoder", "cls.predictions.decoder"),
]
VIT_NAMES = [
    ("^patch_embed", "vit.embeddings.patch_embeddings.projection"),
    ("^cls_token", "vit.embeddings.cls_token"),
    ("^pos_embed", "vit.embeddings.position_embeddings"),
    ("^norm", "vit.layernorm"),
    ("^head", "classifier"),
    ("^blocks", "vit.layers"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.(q|k|v|o)_proj", r"attention.\1_proj"),
]
RESNET_NAMES = [
    ("^conv1", "resnet.embedder.embedder.convolution"),
    ("^bn1", "resnet.embedder.embedder.normalization"),
    ("^layer1", "resnet.encoder.stages.0.layers"),
    ("^layer2", "resnet.encoder.stages.1.layers"),
    ("conv1", "layer.0.convolution"),
    ("bn1", "layer.0.normalization"),
    ("conv2", "layer.1.convolution"),
    ("bn2", "layer.1.normalization"),
    ("downsample.0", "shortcut.convolution"),
    ("downsample.1", "shortcut.normalization"),
    ("^fc", "classifier.1"),
]


def gpt_reference(hf, model):
    c = model.config
    config = hf.GPT2Config(
        vocab_size=c.vocab,
        n_positions=c.context,
        n_embd=c.width,
        n_layer=c.layers,
        n_head=c.heads,
        activation_function="gelu",
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    conv1d = re.compile("c_(attn|proj|fc).weight")  # stored as (in, out)
    state = {n: t.T if conv1d.search(n) else t for n, t in model.state_dict().items()}
    return hf.GPT2LMHeadModel(config), renamed(state, GPT_NAMES)


def bert_reference(hf, model):
    c = model.config
    config = hf.BertConfig(
        vocab_size=c.vocab,
        max_position_embeddings=c.context,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        attn_implementation="eager",
    )
    state = renamed(model.state_dict(), BERT_NAMES)
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    return hf.BertForMaskedLM(config), state


def vit_reference(hf, model):
    c = model.config
    config = hf.ViTConfig(
        image_size=c.image_size,
        patch_size=c.patch,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_labels=c.classes,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",  # its eager softmax rounds to float32
    )
    state = {n.replace("attn.proj", "attn.o_proj"): t for n, t in model.state_dict().items()}
    for name in [n for n in state if "qkv" in n]:  # transformers keeps the three apart
        for part, tensor in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv", f"{part}_proj")] = tensor
    return hf.ViTForImageClassification(config), renamed(state, VIT_NAMES)


def resnet_reference(hf, model):
    c = model.config
    config = hf.ResNetConfig(
        embedding_size=c.width,
        hidden_sizes=[c.width, 2 * c.width],
        depths=list(c.depths),
        layer_type="basic",
        num_labels=c.classes,
    )
    return hf.ResNetForImageClassification(config), renamed(model.state_dict(), RESNET_NAMES)


@pytest.mark.parametrize(
    ("Model", "config", "reference"),
    [
        (GPT, replace(gpt.TINY, bias=True), gpt_reference),
        (BERT, bert.TINY, bert_reference),
        (ViT, vit.TINY, vit_reference),
        (ResNet, resnet.ResNetConfig((2, 1), width=4, classes=10), resnet_reference),
    ],
)
def test_forward_is_that_of_transformers(Model, config, reference):
    hf = pytest.importorskip("transformers")
    model = randomise(build(Model, config))
    other, state = reference(hf, model)
    other.double().eval().load_state_dict(state)
    x = torch.randn(2, 3, 40, 40).double() if Model is ResNet else batch(Model, config)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("Model", "config", "name", "std"),
    [
        (GPT, gpt.NANO, "wte", 0.02),
        (GPT, gpt.NANO, "wpe", 0.02),
        (GPT, gpt.NANO, "h.3.attn.c_attn", 0.02),
        (GPT, gpt.NANO, "h.3.mlp.c_fc", 0.02),
        (GPT, gpt.NANO, "h.0.attn.c_proj", 0.02 / math.sqrt(12)),
        (GPT, gpt.NANO, "h.5.mlp.c_proj", 0.02 / math.sqrt(12)),
        (BERT, bert.SMALL, "word", 0.02),
        (BERT, bert.SMALL, "layer.0.attn.key", 0.02),
        (BERT, bert.SMALL, "layer.3.mlp.fc2", 0.02),
        (ViT, vit.SMALL, "patch_embed", 0.02),
        (ViT, vit.SMALL, "blocks.0.attn.qkv", 0.02),
        (ViT, vit.SMALL, "head", 0.02),
        (Mixer, mixer.SMALL, "patch_embed", 48**-0.5),
        (Mixer, mixer.SMALL, "blocks.0.token_mix.fc1", 64**-0.5),
        (Mixer, mixer.SMALL, "blocks.3.channel_mix.fc2", 256**-0.5),
        (Mixer, mixer.SMALL, "head", 64**-0.5),
        (VGG, vgg.SMALL, "features.5", math.sqrt(2 / (9 * 32))),
        (VGG, vgg.SMALL, "classifier.0", 0.01),
        (VGG, vgg.SMALL, "classifier.6", 0.01),
        (ResNet, resnet.SMALL, "conv1", math.sqrt(2 / (9 * 16))),
        (ResNet, resnet.SMALL, "layer3.0.conv1", math.sqrt(2 / (9 * 64))),
        (ResNet, resnet.SMALL, "layer4.0.downsample.0", math.sqrt(2 / 128)),
    ],
)
def test_initial_standard_deviation(Model, config, name, std):
    weight = build(Model, config).get_parameter(f"{name}.weight")
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize(("Model", "config"), TINY[1:])
def test_initial_biases_are_zero_and_scales_one(Model, config):
    for name, parameter in build(Model, config).named_parameters():
        if parameter.ndim == 1 and name != "fc.bias":  # ResNet's: PyTorch's default
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


@pytest.mark.parametrize(("Model", "config", "causal"), [(GPT, gpt.TINY, 1), (BERT, bert.TINY, 0)])
def test_a_later_token_changes_earlier_logits_unless_causal(Model, config, causal):
    model, (x, _) = randomise(build(Model, config)), batch(Model, config)
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % config.vocab
    moved = (model(x) - model(changed)).abs().amax(dim=(0, 2))  # (T,)
    assert (moved[5:] > 1e-6).all()
    assert (moved[:5] == 0).all() if causal else (moved[:5] > 1e-6).all()


# Biases that no logit depends on: a key's adds the same to all scores of a query, softmax ignores
# it; the second across tokens adds the same to all channels of a token, LayerNorm ignores it.
FLAT = ("key.bias", "token_mix.fc2.bias")


@pytest.mark.parametrize(("Model", "config"), TINY)
@sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
def test_every_block_has_a_hessian(Model, config):
    model, (x, y) = build(Model, config), batch(Model, config)
    loss = loss_of(model, x, y)
    for name, w in model.named_parameters():
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        inner = (gradient * torch.randn_like(w)).sum()
        (product,) = torch.autograd.grad(inner, w, retain_graph=True)
        if any(name.endswith(ending) for ending in FLAT):
            assert product.abs().max() < 1e-15, name
        else:
            assert product.norm() > 1e-12, name


@pytest.mark.parametrize(("Model", "config"), TINY)
@sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
def test_double_backward_is_the_difference_of_gradients(Model, config):
    model, (x, y) = build(Model, config), batch(Model, config)
    vector = {name: torch.randn_like(w) for name, w in model.named_parameters()}

    def moved(step):  # the gradient at weights + step * vector, and those weights
        weights = {n: w.detach() + step * vector[n] for n, w in model.named_parameters()}
        weights = {n: w.requires_grad_() for n, w in weights.items()}
        logits = functional_call(model, weights, x)
        loss = F.cross_entropy(logits.flatten(0, -2), y.flatten())
        at = list(weights.values())
        return torch.autograd.grad(loss, at, create_graph=True), at

    gradient, at = moved(0.0)
    product = torch.autograd.grad(gradient, at, list(vector.values()))
    h = 1e-6
    for exact, plus, minus in zip(product, moved(h)[0], moved(-h)[0], strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * h), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("Model", "config", "names"),
    [
        (GPT, gpt.TINY, ["h.0.attn", "h.1.attn"]),
        (ViT, vit.TINY, ["blocks.0.attn", "blocks.1.attn"]),
        (BERT, bert.TINY, ["layer.0.attn", "layer.1.attn"]),
        (Mixer, mixer.TINY, []),
    ],
)
def test_attention_says_how_many_heads_it_has(Model, config, names):
    found = {n: m.heads for n, m in Model(config).named_modules() if hasattr(m, "heads")}
    assert found == dict.fromkeys(names, 2)
