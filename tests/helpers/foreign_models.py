"""Ten models of different kinds, none of them this project's: what a new user may come with.

Each function returns a `Problem` of a few thousand parameters on random data. Those of
`transformers` are built from a configuration, so nothing is loaded.
"""

import torch
import torch.nn.functional as F
from torch import nn

from blockspectra import Problem, cross_entropy


def tokens(size, *shape):
    return torch.randint(1, size, shape)


def own_loss(model, batch):
    """What `transformers` computes itself where it is given labels."""
    return model(**batch).loss


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=30, n_positions=10, n_embd=16, n_layer=2, n_head=2)
    ids = tokens(30, 4, 10)
    return Problem(GPT2LMHeadModel(config).eval(), own_loss, [{"input_ids": ids, "labels": ids}])


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=30, num_attention_heads=2, max_position_embeddings=12, **sizes)
    ids, mask = tokens(30, 4, 10), torch.ones(4, 10, dtype=torch.long)
    mask[0, 6:] = 0  # a padded sequence
    labels = torch.where(torch.rand(4, 10) < 0.3, ids, -100)
    labels[:, 0] = ids[:, 0]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Problem(BertForMaskedLM(config).eval(), own_loss, [batch])


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = ViTConfig(
        image_size=8, patch_size=4, num_attention_heads=2, num_channels=1, num_labels=3, **sizes
    )
    batch = {"pixel_values": torch.randn(4, 1, 8, 8), "labels": tokens(3, 4)}
    return Problem(ViTForImageClassification(config).eval(), own_loss, [batch])


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
        num_labels=3,
    )  # fmt: skip
    batch = {"pixel_values": torch.randn(4, 1, 16, 16), "labels": tokens(3, 4)}
    return Problem(ResNetForImageClassification(config).eval(), own_loss, [batch])


class Encoder(nn.Module):
    """PyTorch's own encoder, with a padding mask: in evaluation mode it has a fast path."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        padding = torch.arange(x.shape[1]) >= torch.tensor([6, 6, 4, 5])[:, None]
        return self.out(self.encoder(x, src_key_padding_mask=padding)[:, 0])


def encoder():
    return Problem(Encoder().eval(), cross_entropy, [(torch.randn(4, 6, 16), tokens(3, 4))])


class Recurrent(nn.Module):
    """A two-layer LSTM in both directions over a sparse, padded embedding."""

    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(20, 6, padding_idx=0, sparse=True)
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.out = nn.Linear(10, 3)

    def forward(self, ids):
        return self.out(self.lstm(self.word(ids))[0][:, -1])


def lstm():
    ids = tokens(20, 6, 7)
    ids[0, :3] = 0
    return Problem(Recurrent().eval(), cross_entropy, [(ids, tokens(3, 6))])


class UNet(nn.Module):
    """One level down and up again, with the skip that gives it its name."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        down = self.down(x)
        return self.out(torch.cat([down, self.up(self.middle(down))], 1))


def unet():
    def per_pixel(model, batch):
        return F.cross_entropy(model(batch["image"]), batch["mask"])

    batch = {"image": torch.randn(3, 1, 8, 8), "mask": tokens(2, 3, 8, 8)}
    return Problem(UNet().eval(), per_pixel, [batch])


class Graph(nn.Module):
    """Two graph convolutions: messages added up along edges."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, nodes, edges):
        source, target = edges
        for layer in (self.first, self.second):
            messages = layer(nodes)
            nodes = messages.index_add(0, target, messages[source])
            nodes = torch.tanh(nodes) if layer is self.first else nodes
        return nodes


def graph():
    def per_node(model, batch):
        nodes, edges, labels = batch
        return F.cross_entropy(model(nodes, edges), labels)

    edges = torch.randint(0, 10, (2, 30))
    return Problem(Graph().eval(), per_node, [(torch.randn(10, 5), edges, tokens(3, 10))])


class Tabular(nn.Module):
    """Numbers and categories, with BatchNorm and dropout; its first layer is frozen."""

    def __init__(self):
        super().__init__()
        self.category = nn.Embedding(6, 4, padding_idx=0)
        self.frozen = nn.Linear(10, 12).requires_grad_(False)
        self.body = nn.Sequential(
            nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.BatchNorm1d(8),
            nn.ReLU(), nn.Linear(8, 1),
        )  # fmt: skip

    def forward(self, numbers, categories):
        return self.body(self.frozen(torch.cat([numbers, self.category(categories)], 1)))


def tabular():
    def squared(model, batch):
        numbers, categories, target = batch
        return F.mse_loss(model(numbers, categories).squeeze(1), target)

    rows = torch.utils.data.TensorDataset(
        torch.randn(24, 6), torch.randint(0, 6, (24,)), torch.randn(24)
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=10)  # the last batch is smaller
    return Problem(Tabular().eval(), squared, loader)


class Mixture(nn.Module):
    """A mixture of experts: the two best of four for each token, weighed by the gate."""

    def __init__(self):
        super().__init__()
        self.word, self.gate = nn.Embedding(20, 8), nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)) for _ in range(4)
        )
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.word.weight  # tied

    def forward(self, ids):
        x = self.word(ids)
        scores, chosen = self.gate(x).topk(2, dim=-1)
        weights = scores.softmax(-1)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (weights * (chosen == i)).sum(-1, keepdim=True)
            mixed = mixed + share * expert(x)
        return self.out(x + mixed)


def mixture():
    return Problem(Mixture().eval(), cross_entropy, [(tokens(20, 4, 8), tokens(20, 4, 8))])


MODELS = (gpt2, bert, vit, resnet, encoder, lstm, unet, graph, tabular, mixture)


def make(function):
    """Call one of `MODELS`, the same every time, and leave the random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function()
