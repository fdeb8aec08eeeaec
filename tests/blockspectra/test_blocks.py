"""Only this file sees a partition that loses, doubles, misplaces or misnames weights.

The spectrum of the wrong entries is as smooth and plausible as that of the right ones.
"""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blockspectra import partition
from blockspectra.blocks import PARTITIONS, Block, Piece, whole
from companion.setups import ARCHITECTURES, REDUCED


def tiny(name):
    architecture = ARCHITECTURES[name]
    return architecture.build(architecture.configurations["tiny"])


def marks(model, blocks):
    """How many blocks hold each entry of each parameter, and the order in which they come."""
    count = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    names = {p: name for name, p in model.named_parameters()}
    for block in blocks:
        for piece in block.pieces:
            count[names[piece.parameter]][piece.index] += 1
    return count


def names(model, **arguments):
    return [block.name for block in partition(model, **arguments)]


def index(block):
    """Index of a block that is part of one parameter."""
    (piece,) = block.pieces
    return piece.index


@pytest.mark.parametrize("by", PARTITIONS)
@pytest.mark.parametrize("name", REDUCED)
def test_every_partition_covers_each_weight_entry_exactly_once(name, by):
    model = tiny(name)
    blocks = partition(model, by=by)
    for parameter, count in marks(model, blocks).items():
        is_weight = count.ndim > 1 and "cls_token" not in parameter
        assert (count == is_weight).all(), parameter
    assert len({block.name for block in blocks}) == len(blocks)
    assert sum(block.size for block in blocks) == sum(
        p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "cls_token" not in n
    )


@pytest.mark.parametrize("by", PARTITIONS)
@pytest.mark.parametrize("name", REDUCED)
def test_with_vectors_every_entry_of_the_model_is_covered_exactly_once(name, by):
    model = tiny(name)
    blocks = partition(model, by=by, vectors=True)
    assert all((count == 1).all() for count in marks(model, blocks).values())
    assert len({block.name for block in blocks}) == len(blocks)


@given(which=st.integers(0, 200), by=st.sampled_from(PARTITIONS), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_expand_undoes_flatten_and_leaves_zeros_outside(which, by, seed):
    blocks = partition(GPT, by=by, vectors=True)
    block = blocks[which % len(blocks)]
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(block.size, generator=generator)
    tensors = block.expand(vector)
    assert [t.shape for t in tensors] == [p.shape for p in block.parameters]
    assert torch.equal(block.flatten(tensors), vector)
    assert sum(int((t != 0).sum()) for t in tensors) == block.size


GPT = tiny("gpt")
LAYERS = {
    "vgg": ["features.0", "features.3", "classifier.0", "classifier.3", "classifier.6"],
    "resnet": ["conv1", "layer1.0", "layer2.0", "fc"],
    "mixer": ["patch_embed", "blocks.0", "blocks.1", "head"],
    "vit": ["pos_embed", "patch_embed", "blocks.0", "blocks.1", "head"],
    "bert": ["word=decoder", "position", "token_type", "layer.0", "layer.1", "head_dense"],
    "gpt": ["wte=lm_head", "wpe", "h.0", "h.1"],
}


@pytest.mark.parametrize("name", REDUCED)
def test_a_layer_is_what_shares_a_name_up_to_its_first_number(name):
    assert names(tiny(name), by="layer") == LAYERS[name]


def test_a_layer_holds_its_weights_and_on_request_its_vectors():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    (first,) = partition(model, by="layer")
    assert first.parameters == [model[0].weight]
    first, second = partition(model, by="layer", vectors=True)
    assert first.parameters == [model[0].weight, model[0].bias]
    assert second.size == 6


def test_the_gpt_has_the_papers_blocks_under_their_names():
    layer = "attn.c_attn.q attn.c_attn.k attn.c_attn.v attn.c_proj mlp.c_fc mlp.c_proj".split()
    expected = ["wte=lm_head", "wpe", *(f"h.{i}.{part}" for i in (0, 1) for part in layer)]
    assert names(GPT) == expected
    assert names(tiny("bert"))[3:6] == [
        f"layer.0.attn.{role}" for role in ("query", "key", "value")
    ]


def test_fused_attention_is_cut_into_q_k_and_v_in_this_order():
    blocks = partition(GPT, only="h.0.attn.c_attn.*")
    assert [index(block) for block in blocks] == [
        (slice(0, 8),),
        (slice(8, 16),),
        (slice(16, 24),),
    ]


def test_a_fused_name_on_a_matrix_of_another_shape_stays_whole():
    model = nn.ModuleDict({"qkv": nn.Linear(4, 8), "c_attn": nn.Linear(4, 4)})
    assert names(model) == ["qkv", "c_attn"]
    grouped = copy.deepcopy(GPT.h[0].attn)  # two heads of keys and values to four of queries
    grouped.c_attn = nn.Linear(12, 24)
    assert names(grouped)[0] == "c_attn"
    crossed = of_transformers("GPT2Model", **OLD | {"n_embd": 6}, add_cross_attention=True)
    found = names(crossed, only="h.0.*attn*")  # keys and values of another model's outputs
    assert found[:3] == [f"h.0.attn.c_attn.{role}" for role in "qkv"]
    assert found[4:6] == ["h.0.crossattention.c_attn", "h.0.crossattention.q_attn"]


class Attention(nn.Module):
    """A fused weight under a usual name, by default in an order that nobody knows."""

    def __init__(self, name="qkv", fused=None):
        super().__init__()
        self.add_module(name, nn.Conv1d(4, 12, 1) if name == "qkv" else nn.Linear(4, 12))
        if fused is not None:
            self.fused = fused


@pytest.mark.parametrize("name", ["qkv", "qkv_proj", "to_qkv", "query_key_value", "in_proj"])
def test_what_is_fused_in_an_unknown_order_stays_whole_and_is_told(name):
    with pytest.warns(UserWarning, match=f"^Left whole .* not known: {name} .*'\\*.qkv': 'q k v'"):
        assert names(Attention(name)) == [name]
    assert names(Attention(name), fused={"*": ""}) == [name]  # without a warning
    assert names(Attention(name), by="layer") == [name]


class CausalSelfAttention(nn.Module):
    """Under nanoGPT's name, Q, K and V of a head behind those of another."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.c_attn(x).view(*x.shape[:-1], 2, 6).chunk(3, dim=-1)
        return q + k + v


class ValuesFirst(CausalSelfAttention):
    def forward(self, x):
        v, q, k = self.c_attn(x).chunk(3, dim=-1)
        return q + k + v


class InTwoLines(CausalSelfAttention):
    def forward(self, x):
        qkv = self.c_attn(x)
        q, k, v = qkv.split(4, dim=2)
        return q + k + v


def test_attention_of_a_known_name_is_cut_where_its_code_reads_so():
    for model in (CausalSelfAttention(), ValuesFirst()):
        with pytest.warns(UserWarning, match="^Left whole .* not known: c_attn "):
            assert names(model) == ["c_attn"]
    assert names(InTwoLines()) == ["c_attn.q", "c_attn.k", "c_attn.v"]


def test_how_a_weight_is_fused_can_be_given_or_told_by_its_module():
    starts = [
        [(b.name, index(b)[0].start) for b in partition(model, **settings)]
        for model, settings in (
            (Attention(), {"fused": {"qkv": "k v q"}}),
            (Attention(fused={"qkv": "k v q"}), {}),
        )
    ]
    assert starts[0] == starts[1] == [("qkv.k", 0), ("qkv.v", 4), ("qkv.q", 8)]
    assert names(Attention(fused={"qkv": "k v"}), fused={"qkv": ""}) == ["qkv"]
    assert names(Attention(fused=True), fused={"qkv": "gate up"}) == ["qkv.gate", "qkv.up"]


def test_parts_that_are_interleaved_by_head_are_refused():
    with pytest.raises(ValueError, match=r"one upon the other.*fused=\{'qkv': ''\}\.$"):
        partition(Attention(), fused={"qkv": "q k v by head"})


@pytest.mark.parametrize("parts", ["q k v x y", "q q k"])
def test_parts_that_a_weight_cannot_have_are_refused(parts):
    with pytest.raises(ValueError, match=r"^'qkv' has 12 rows, which .*: correct `fused`\.$"):
        partition(Attention(), fused={"qkv": parts})


@pytest.mark.parametrize(
    ("model", "sizes", "name"),
    [
        ("CodeGen", {"n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 4}, "qkv_proj"),
        ("GPTNeoX", {"num_attention_heads": 2, "intermediate_size": 8}, "query_key_value"),
        (
            "Lfm2",
            {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv"]},
            "in_proj",
        ),
        ("Deberta", {"num_attention_heads": 2, "intermediate_size": 8}, "in_proj"),
    ],
)
def test_models_that_fuse_otherwise_are_not_cut_into_thirds(model, sizes, name):
    if "n_embd" not in sizes:
        sizes = sizes | {"hidden_size": 8, "num_hidden_layers": 1}
    model = of_transformers(f"{model}Model", **sizes)
    with pytest.warns(UserWarning, match=f"^Left whole because .*{name} "):
        assert any(found.endswith(name) for found in names(model))


def of_transformers(name, **sizes):
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(vocab_size=7, **sizes)).eval()


OLD = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6}
IDS = torch.tensor([[1, 2, 3, 4, 5]])
FUSING = {  # model, what it is called with, and the path of its attention
    "PyTorch": (lambda: nn.MultiheadAttention(8, 2), (torch.randn(5, 1, 8),) * 3, ""),
    "GPT2": (lambda: of_transformers("GPT2Model", **OLD), (IDS,), "h.0.attn"),
    "ImageGPT": (lambda: of_transformers("ImageGPTModel", **OLD), (IDS,), "h.0.attn"),
    "MPT": (
        lambda: of_transformers("MptModel", d_model=8, n_layers=1, n_heads=2, max_seq_len=6),
        (IDS,),
        "blocks.0.attn",
    ),
    "ModernBERT": (
        lambda: of_transformers(
            "ModernBertModel", hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1,
            eos_token_id=2,
        ),
        (IDS,),
        "layers.0.attn",
    ),
    "nanoGPT": (lambda: GPT, (IDS % 3,), "h.0.attn"),
    "our ViT": (lambda: tiny("vit"), (torch.randn(1, 3, 8, 8),), "blocks.0.attn"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "inputs", "path"), FUSING.values(), ids=FUSING)
def test_the_order_that_is_known_of_fused_attention_is_that_of_its_code(make, inputs, path):
    model, found = copy.deepcopy(make()), []
    attention = model.get_submodule(path)
    attention.register_forward_hook(
        lambda module, given, output: found.append(output if torch.is_tensor(output) else output[0])
    )
    parts = {}
    for block in partition(attention):
        role = block.name.rpartition(".")[2]
        if role in ("q", "k", "v"):
            parts[role] = block.pieces[0].parameter.data[block.pieces[0].index]
    for name, parameter in attention.named_parameters():
        parameter.data.mul_(0 if "bias" in name else 0.5 / parameter.data.std())
    with torch.no_grad():
        model(*inputs)
        parts["v"] *= 2  # what attention returns is linear in V
        model(*inputs)
        parts["q"] *= 2
        parts["k"] /= 2  # and depends on products of Q and K alone
        model(*inputs)
        parts["k"] *= 2
        model(*inputs)
    plain, doubled, same, other = found
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(same, doubled)
    assert not torch.allclose(other, same, rtol=1e-3)


HEADS = "{q}.head0 {q}.head1 {k}.head0 {k}.head1 {v}"


@pytest.mark.parametrize(
    ("name", "pattern", "q", "k", "v"),
    [
        ("gpt", "h.0.attn.c_attn.", "q", "k", "v"),
        ("vit", "blocks.0.attn.qkv.", "q", "k", "v"),
        ("bert", "layer.0.attn.", "query", "key", "value"),
    ],
)
def test_by_head_cuts_q_and_k_but_not_v(name, pattern, q, k, v):
    blocks = partition(tiny(name), by="head", only=f"{pattern}[qkv]*")
    assert [b.name.removeprefix(pattern) for b in blocks] == HEADS.format(q=q, k=k, v=v).split()
    assert [b.size for b in blocks] == [32, 32, 32, 32, 64]
    assert blocks[1].pieces[0].index[0].start == blocks[0].pieces[0].index[0].start + 4


def test_heads_of_grouped_keys_have_the_size_that_the_module_says():
    model = nn.Module()
    model.head_dim, model.q_proj, model.k_proj = 4, nn.Linear(16, 16), nn.Linear(16, 8)
    assert [b.size for b in partition(model, by="head")] == [4 * 16] * (4 + 2)


def test_by_neuron_cuts_filters_of_a_convolution_and_tokens_of_an_embedding():
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(2, 3, 3), "up": nn.ConvTranspose2d(2, 4, 3), "token": nn.Embedding(5, 2)}
    )
    blocks = {b.name: b for b in partition(model, by="neuron")}
    assert len(blocks) == 3 + 4 + 5
    assert blocks["conv[1]"].pieces[0].shape == (1, 2, 3, 3)
    assert index(blocks["conv[1]"]) == (slice(1, 2),)
    assert index(blocks["up[3]"]) == (slice(None), slice(3, 4))
    assert index(blocks["token[4]"]) == (slice(4, 5),)


@pytest.fixture(scope="module")
def hf_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=4, vocab_size=7))


def test_a_transposed_conv1d_of_huggingface_is_cut_by_columns(hf_gpt2):
    blocks = {b.name: b for b in partition(hf_gpt2)}
    assert index(blocks["transformer.h.0.attn.c_attn.k"]) == (slice(None), slice(8, 16))
    assert blocks["transformer.h.0.attn.c_attn.k"].size == 64
    assert "transformer.wte=lm_head" in blocks
    neurons = partition(hf_gpt2, by="neuron", only="transformer.h.0.mlp.c_fc*")
    assert [b.size for b in neurons] == [8] * 32
    assert index(neurons[3]) == (slice(None), slice(3, 4))
    heads = partition(hf_gpt2, by="head", only="*.q.head*")
    assert [index(b)[1] for b in heads] == [slice(0, 4), slice(4, 8)]
    count = marks(hf_gpt2, partition(hf_gpt2, by="head"))
    assert all((c == (c.ndim > 1)).all() for c in count.values())


def test_multihead_attention_is_cut_into_q_k_and_v_and_by_its_heads():
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(6, 3)})
    parts = [f"mha.in_proj_weight.{r}" for r in "qkv"]
    assert names(model) == [*parts, "mha.out_proj"]
    assert [index(b)[0].start for b in partition(model, only="mha.in_proj_weight.*")] == [0, 6, 12]
    assert names(model, by="head", only="*.q.*") == [f"{parts[0]}.head{i}" for i in range(3)]
    apart = nn.ModuleDict({"mha": nn.MultiheadAttention(6, 3, kdim=4, vdim=5)})
    assert names(apart)[:3] == [f"mha.{r}_proj_weight" for r in "qkv"]


def test_a_tied_weight_is_one_block_with_all_its_names():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    assert names(model, vectors=True) == ["a=b.c", "a.bias=b.c.bias"]


def test_frozen_parameters_are_left_out_warned_of_and_named():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["a"].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"frozen: a, a\.bias \(2 in all\)"):
        blocks = partition(model, only="b*")
    assert [b.name for b in blocks] == ["b"]
    assert whole(model).size == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(GPT)


def test_vectors_adds_biases_norms_and_class_token_as_whole_blocks():
    model = tiny("vit")
    extra = set(names(model, vectors=True)) - set(names(model))
    assert "cls_token" in extra
    assert {"norm", "norm.bias", "head.bias", "blocks.0.attn.qkv.bias"} <= extra
    bias = partition(model, by="head", vectors=True, only="blocks.0.attn.qkv.bias")[0]
    assert bias.size == 24


def test_only_keeps_the_blocks_of_a_name_a_pattern_or_several_in_model_order():
    assert names(GPT, only="wpe") == ["wpe"]
    assert names(GPT, only="lm_head") == ["wte=lm_head"]
    assert names(GPT, only=["h.1.mlp.*", "h.0.attn.c_proj"]) == [
        "h.0.attn.c_proj",
        "h.1.mlp.c_fc",
        "h.1.mlp.c_proj",
    ]
    assert names(GPT, by="neuron", only="wpe[3]") == ["wpe[3]"]


FROZEN = nn.Linear(2, 2).requires_grad_(False)
HEADLESS = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)})


@pytest.mark.filterwarnings("ignore:Left out because frozen")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: partition(GPT, by="block"), "Unknown partition 'block': choose one of tensor,"),
        (
            lambda: partition(GPT, only="h.0.attn.c_prj"),
            r"No block is named 'h.0.attn.c_prj': did you mean h\.0\.attn\.c_proj",
        ),
        (lambda: partition(GPT, only=["wpe", "zzz*"]), r"'zzz\*': did you mean wte=lm_head"),
        (lambda: partition(HEADLESS, by="head"), "heads of 'q_proj' apart: give its module"),
        (lambda: partition(nn.LayerNorm(3)), "no trainable weight: set requires_grad"),
        (lambda: partition(FROZEN), "no trainable weight: set requires_grad"),
        (lambda: whole(FROZEN), "no trainable parameter: set requires_grad"),
    ],
)
def test_what_cannot_be_cut_gets_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused():
    model = nn.Module()
    model.heads, model.q_proj = 3, nn.Linear(8, 8)
    with pytest.raises(ValueError, match="divides its width"):
        partition(model, by="head")


def test_a_block_shows_its_name_and_size():
    parameter = nn.Parameter(torch.zeros(30, 50))
    assert repr(Block("a", (Piece(parameter),))) == "Block('a', 1,500 parameters)"
