"""Only this file sees a model, or a loss, of a common kind turned away or given a wrong Hessian.

Every type is built tiny, at random, from a configuration, in float64. Oracle: central differences
of plain gradients along one direction in each block, written here.
"""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from blockspectra import Problem, partition
from blockspectra.hessian import block_products

WIDTH, VOCABULARY, LENGTH = 16, 32, 6
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 1}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
OLD = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 16}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_channels": 1, "num_labels": 3}
ENCODER_DECODER = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 1,
}
# model class of `transformers`, whose configuration it names itself; and what sizes it beside SIZES
LANGUAGE = {
    "GPT2LMHeadModel": OLD,
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": OLD | {"rotary_dim": 4},
    "GPTBigCodeForCausalLM": OLD,
    "CodeGenForCausalLM": OLD | {"n_head": 4, "rotary_dim": 4},
    "BloomForCausalLM": {"n_layer": 2, "n_head": 2},
    "MptForCausalLM": {"d_model": WIDTH, "n_layers": 2, "n_heads": 2, "max_seq_len": 16},
    "OPTForCausalLM": {"ffn_dim": 32, "word_embed_proj_dim": WIDTH},
    "FalconForCausalLM": {"alibi": False},
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": GROUPED | {"head_dim": 8},
    "Gemma2ForCausalLM": GROUPED | {"head_dim": 8},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": GROUPED,
    "StableLmForCausalLM": GROUPED | {"partial_rotary_factor": 1.0},
    "Starcoder2ForCausalLM": GROUPED,
    "OlmoForCausalLM": {},
    "CohereForCausalLM": {},
    "MixtralForCausalLM": GROUPED | EXPERTS,
    "OlmoeForCausalLM": EXPERTS,
    "MambaForCausalLM": {"state_size": 4, "time_step_rank": 2},
    "Lfm2ForCausalLM": GROUPED | {"layer_types": ["conv", "full_attention"]},
    "BertForMaskedLM": {},
    "RobertaForMaskedLM": {},
    "AlbertForMaskedLM": {"embedding_size": 8},
    "ElectraForMaskedLM": {"embedding_size": 8},
    "DistilBertForMaskedLM": {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "DebertaForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "ModernBertForMaskedLM": {"cls_token_id": 1, "sep_token_id": 2},
    "FNetForMaskedLM": {"tpu_short_seq_length": LENGTH},
    "XLNetLMHeadModel": {"d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "T5ForConditionalGeneration": {
        "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": ENCODER_DECODER,
    "PegasusForConditionalGeneration": ENCODER_DECODER,
}  # fmt: skip
VISION = {
    "ViTForImageClassification": IMAGE,
    "DeiTForImageClassification": IMAGE,
    "BeitForImageClassification": IMAGE | {"use_relative_position_bias": True},
    "Dinov2ForImageClassification": IMAGE,
    "SwinForImageClassification": IMAGE
    | {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "ConvNextForImageClassification": STAGES | {"num_stages": 2, "patch_size": 2},
    "ResNetForImageClassification": STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "RegNetForImageClassification": STAGES | {"embedding_size": 8, "groups_width": 4},
    "PoolFormerForImageClassification": STAGES
    | {"num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1]},
}
WAVES = {"conv_dim": [8, 8], "conv_kernel": [4, 2], "conv_stride": [4, 2]}
WAVES |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SPECTROGRAM = {"num_mel_bins": 8, "max_length": 16, "patch_size": 4}
AUDIO = {  # with the shape of a sample
    "ASTForAudioClassification": (SPECTROGRAM, (16, 8)),
    "Wav2Vec2ForSequenceClassification": (WAVES, (64,)),
    "HubertForSequenceClassification": (WAVES, (64,)),
}


def integers(size, *shape):
    return torch.randint(3, size, shape)


class AllInFloat64(TorchFunctionMode):
    """Norms and losses of `transformers` are in float32 whatever the model is: not here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        swap = {torch.float32: torch.float64}
        args, kwargs = tree_map(
            lambda x: swap.get(x, x) if isinstance(x, torch.dtype) else x, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def own_loss(model, batch):
    with AllInFloat64():
        return model(**batch).loss


def configured(name, sizes):
    """A model of `transformers`, its sizes given by whatever names its configuration knows."""
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class
    known = {key: key for key in inspect.signature(config).parameters} | config.attribute_map
    usual = {
        key: value for key, value in SIZES.items() if known.get(key, "no") not in {*sizes, "no"}
    }
    config = config(**usual | sizes)
    config._attn_implementation = "sdpa" if kind._supports_sdpa else "eager"
    config._experts_implementation = "eager"  # the fused product of experts is in float32 alone
    return kind(config)


def of_transformers(name):
    if name in LANGUAGE:
        ids = integers(VOCABULARY, 3, LENGTH)
        batch = {"input_ids": ids, "labels": ids.flip(0) if "Masked" in name else ids}
        return Problem(configured(name, LANGUAGE[name]), own_loss, [batch])
    if name in VISION:
        pictures = (
            torch.randn(3, 1, 8, 8) if "image_size" in VISION[name] else torch.randn(3, 1, 16, 16)
        )
        batch = {"pixel_values": pictures, "labels": torch.tensor([0, 2, 1])}
        return Problem(configured(name, VISION[name]), own_loss, [batch])
    sizes, shape = AUDIO[name]
    batch = {"input_values": torch.randn(3, *shape), "labels": torch.tensor([0, 1, 1])}
    return Problem(configured(name, sizes), own_loss, [batch])


class HeadsFirst(nn.Module):
    """Attention of diffusion models: Q, K and V of one head after those of the other."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(2, 8), nn.Conv1d(8, 24, 1)
        self.out = nn.Conv1d(8, 8, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x.flatten(2))).view(-1, 2, 12, 16).chunk(3, dim=2)
        weights = torch.einsum("bhct,bhcs->bhts", q, k).softmax(-1)
        mixed = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(-1, 8, 16)
        return x + self.out(mixed).view(x.shape)


class Denoiser(nn.Module):
    """Noise from a noisy picture and the time, which scales and shifts."""

    def __init__(self):
        super().__init__()
        self.time, self.into, self.out = (
            nn.Linear(4, 16),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 1, 1),
        )
        self.attention = HeadsFirst()

    def forward(self, x, t):
        waves = torch.stack([(t * k).sin() for k in (1, 2)] + [(t * k).cos() for k in (1, 2)], -1)
        scale, shift = F.silu(self.time(waves)).view(-1, 16, 1, 1).chunk(2, 1)
        return self.out(F.silu(self.attention(self.into(x) * (1 + scale) + shift)))


def diffusion():
    def noise(model, batch):
        clean, added, t = batch
        mixed = t.cos().view(-1, 1, 1, 1) * clean + t.sin().view(-1, 1, 1, 1) * added
        return F.mse_loss(model(mixed, t), added)

    return Problem(
        Denoiser(), noise, [(torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.rand(3))]
    )


class DilatedConvolutions(nn.Module):
    """WaveNet's gates and skips."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv1d(1, 6, 1)
        self.gates = nn.ModuleList(nn.Conv1d(6, 12, 2, dilation=d) for d in (1, 2))
        self.skips = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2))
        self.out = nn.Conv1d(6, VOCABULARY, 1)

    def forward(self, x):
        x = self.into(x)
        for gate, skip in zip(self.gates, self.skips, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            x = x + skip(a.tanh() * b.sigmoid())
        return self.out(x)


def wavenet():
    def next_sample(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    return Problem(
        DilatedConvolutions(), next_sample, [(torch.randn(2, 1, 12), integers(VOCABULARY, 2, 12))]
    )


class Recognizer(nn.Module):
    """A GRU over frames of a spectrogram, trained without alignment."""

    def __init__(self):
        super().__init__()
        self.frames, self.gru = nn.Conv1d(5, 8, 3, padding=1), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 6)

    def forward(self, x):
        return self.out(self.gru(self.frames(x).relu().transpose(1, 2))[0]).log_softmax(-1)


def speech():
    def alignments(model, batch):
        """Sum over alignments by the forward algorithm; F.ctc_loss has no second derivative."""
        total = 0.0
        for log, target in zip(model(batch[0]), batch[1], strict=True):
            states = torch.stack([torch.zeros_like(target), target], 1).flatten()
            never = log.new_full((1,), -1e4)  # logaddexp has a second derivative of nan there
            alpha = torch.cat([log[0, states[:2]], never.expand(len(states) - 2)])
            for row in log[1:]:
                before = torch.stack([alpha, torch.cat([never, alpha[:-1]])])
                alpha = before.logsumexp(0) + row[states]
            total = total - alpha[-2:].logsumexp(0)
        return total / len(batch[1])

    return Problem(Recognizer(), alignments, [(torch.randn(2, 5, 9), torch.randint(1, 6, (2, 3)))])


class GraphAttention(nn.Module):
    """Attention over a sparse adjacency, then a product with it."""

    def __init__(self):
        super().__init__()
        self.values, self.score, self.out = nn.Linear(4, 6), nn.Linear(12, 1), nn.Linear(6, 3)
        edges = torch.randint(0, 8, (2, 24))
        self.register_buffer("edges", edges)
        self.register_buffer("adjacency", torch.eye(8).to_sparse())

    def forward(self, nodes):
        source, target = self.edges
        values = self.values(nodes)
        scores = self.score(torch.cat([values[source], values[target]], 1)).squeeze(1)
        weights = F.leaky_relu(scores, 0.2).exp()
        total = torch.zeros(8, dtype=nodes.dtype).index_add(0, target, weights)
        messages = (weights / total[target]).unsqueeze(1) * values[source]
        values = torch.sparse.mm(self.adjacency, values) + torch.zeros_like(values).index_add(
            0, target, messages
        )
        return self.out(values)


def graph():
    def per_node(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    return Problem(GraphAttention(), per_node, [(torch.randn(8, 4), integers(6, 8) - 3)])


class Flow(nn.Module):
    """Two affine couplings: a density."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)
        )

    def forward(self, x):
        logarithm = 0.0
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            x, logarithm = torch.cat([b * scale.exp() + shift, a], 1), logarithm + scale.sum(1)
        return (0.5 * x.square().sum(1) - logarithm).mean()


def flow():
    return Problem(Flow(), lambda model, x: model(x), [torch.randn(6, 4)])


class Pairs(nn.Module):
    """A network of two views, in a space of three dimensions, with a scale without dimension."""

    def __init__(self, outputs=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, outputs)
        )
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.body(x) * self.scale


def contrastive(a, b):
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return F.cross_entropy(a @ b.T, torch.arange(len(a)))


def focal(a, labels):
    own = a.log_softmax(1).gather(1, labels[:, None])
    return -((1 - own.exp()).square() * own).mean()


def dice(a, b):
    p, y = a.sigmoid(), (b > 0).to(a)
    return (1 - 2 * (p * y).sum(1) / (p + y).sum(1)).mean()


def gaussian(a, b):
    return F.gaussian_nll_loss(a, b.detach(), F.softplus(a) + 0.1)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
LOSSES = {
    "cross-entropy, smoothed": lambda a, b: F.cross_entropy(
        a, LABELS[: len(a)], label_smoothing=0.1
    ),
    "squares": F.mse_loss,
    "Huber": F.huber_loss,
    "binary cross-entropy": lambda a, b: F.binary_cross_entropy_with_logits(a, (b > 0).to(a)),
    "Kullback-Leibler": lambda a, b: F.kl_div(
        a.log_softmax(1), b.softmax(1), reduction="batchmean"
    ),
    "cosine": lambda a, b: (1 - F.cosine_similarity(a, b)).mean(),
    "triplets": lambda a, b: F.softplus(
        (a - b).square().sum(1) - (a - b.flip(1)).square().sum(1)
    ).mean(),
    "contrastive": contrastive,
    "focal": lambda a, b: focal(a, LABELS[: len(a)]),
    "Dice": dice,
    "Gaussian": gaussian,
    "Poisson": lambda a, b: F.poisson_nll_loss(a, b.abs()),
}


def of_loss(name):
    def loss(model, batch):
        return LOSSES[name](model(batch[0]), batch[1])

    return Problem(Pairs(), loss, [(torch.randn(6, 5), torch.randn(6, 3))])


MAKE = {name: of_transformers for name in (*LANGUAGE, *VISION, *AUDIO)}
MAKE |= {f.__name__: f for f in (diffusion, wavenet, speech, graph, flow)}
MAKE |= dict.fromkeys(LOSSES, of_loss)


def real(x):
    return x.double() if x.is_floating_point() else x


def in_float64(problem):
    batches = [
        {key: real(x) for key, x in batch.items()}
        if isinstance(batch, dict)
        else tuple(map(real, batch))
        if isinstance(batch, tuple)
        else real(batch)
        for batch in problem.batches
    ]
    model = problem.model.double().eval()
    with torch.no_grad():  # away from zeros, where norms and ReLUs have no second derivative
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return Problem(model, problem.loss, batches)


def by_differences(problem, block, vector, step=1e-6):
    """Product of one block with a vector, from plain gradients on both sides."""
    sides, parameters = [], block.parameters
    for sign in (1, -1):
        for p, v in zip(parameters, block.expand(vector), strict=True):
            p.data += sign * step * v
        with sdpa_kernel(SDPBackend.MATH):
            loss = problem.loss(problem.model, problem.batches[0])
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        sides.append(block.flatten(found))
        for p, v in zip(parameters, block.expand(vector), strict=True):
            p.data -= sign * step * v
    return (sides[0] - sides[1]) / (2 * step)


@pytest.mark.parametrize("name", MAKE)
def test_products_with_all_blocks_are_those_of_differences_of_plain_gradients(name):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.filterwarnings("ignore", "Left whole because|The loss does not depend on")
        make = MAKE[name]
        problem = in_float64(make() if make.__name__ == name else make(name))
        for module in problem.model.modules():  # zeroes a row that the loss does depend on
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
        blocks = partition(problem.model, vectors=True)
        vectors = [torch.randn(b.size, dtype=torch.float64) for b in blocks]
        products = block_products(problem, blocks, vectors)
    largest = 0.0
    for block, vector, product in zip(blocks, vectors, products, strict=True):
        wanted = by_differences(problem, block, vector)
        largest = max(largest, float(product.norm()))
        assert float((product - wanted).norm()) <= 1e-5 * float(wanted.norm()) + 1e-8, block.name
    assert largest > 1e-3
