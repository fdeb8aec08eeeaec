"""BERT (Devlin et al. 2018) with its masked-language-model head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .layers import MLP


@dataclass(frozen=True)
class BERTConfig:
    """Sizes of a BERT, whose MLP has the hidden width 4 * width."""

    layers: int = 12
    heads: int = 12  # of attention, per layer
    width: int = 768  # of a token
    context: int = 512  # longest sequence, in tokens
    vocab: int = 30522
    init_std: float = 0.02  # of the weights at initialisation: the paper's, at width 768


BASE = BERTConfig()  # bert-base-uncased
PAPER = BERTConfig(layers=8, heads=8, width=512)  # the paper says only "40M": these sizes are ours
SMALL = BERTConfig(layers=4, heads=4, width=64, context=64, vocab=1000)  # ours
TINY = BERTConfig(layers=2, heads=2, width=8, context=8, vocab=65)  # ours


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, without a padding mask: sequences are full."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x):
        """Mix tokens, (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            linear(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, nh, T, hs)
            for linear in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Layer(nn.Module):
    """Attention, then MLP, each beside a shortcut and *before* a LayerNorm (post-LN)."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.mlp = MLP(config.width, 4 * config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x):
        """Map tokens to tokens, (B, T, C) to (B, T, C)."""
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class BERT(nn.Module):
    """Encoder-only Transformer whose output layer shares its weight with the word embedding.

    Without dropout: BERT trains with 0.1, but curvature is measured with dropout off. Initialised
    N(0, 0.02²), biases 0, LayerNorm 1 and 0, as in the original but for its truncation at two
    standard deviations.
    """

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.config = config
        # No padding_idx: it silently drops that token's row from the gradient of the embedding, but
        # not from that of the tied decoder, so gradient and double backward are those of no loss.
        self.word = nn.Embedding(config.vocab, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.token_type = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head_dense = nn.Linear(config.width, config.width)
        self.head_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.decoder = nn.Linear(config.width, config.vocab)
        self.decoder.weight = self.word.weight  # one tensor, one Hessian block
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x):
        """Map tokens (B, T), int64, all of token type 0, to logits (B, T, vocab)."""
        positions = torch.arange(x.shape[1], device=x.device)  # (T,)
        types = torch.zeros_like(x)  # (B, T)
        x = self.norm(self.word(x) + self.position(positions) + self.token_type(types))
        for layer in self.layer:
            x = layer(x)  # (B, T, width)
        x = self.head_norm(F.gelu(self.head_dense(x)))
        return self.decoder(x)  # (B, T, vocab)
