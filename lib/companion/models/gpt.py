"""GPT-2 (Radford et al. 2019) in the layout and with the parameter names of nanoGPT."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT, whose MLP has the hidden width 4 * width."""

    layers: int = 12
    heads: int = 12  # of attention, per layer
    width: int = 768  # of a token
    context: int = 1024  # longest sequence, in tokens
    vocab: int = 50304
    bias: bool = False  # in linear layers and LayerNorms
    init_std: float = 0.02  # of the weights at initialisation: the paper's, at width 768
    post_norm: bool = False  # LayerNorm behind each shortcut's sum, not before attention and MLP


GPT2 = GPTConfig()  # the authors' for training; OpenAI's has biases and 50257 tokens
NANO = GPTConfig(layers=6, heads=6, width=384, context=256, vocab=65)  # nanoGPT's for Shakespeare
SMALL = GPTConfig(layers=4, heads=4, width=64, context=64, vocab=65)  # ours
TINY = GPTConfig(layers=2, heads=2, width=8, context=8, vocab=65)  # ours


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.heads
        self.c_attn = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.c_proj = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x):
        """Mix tokens, (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        heads = B, T, self.heads, C // self.heads
        q, k, v = (part.view(heads).transpose(1, 2) for part in (q, k, v))  # (B, nh, T, hs)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """The position-wise half of a block, (B, T, C) to (B, T, C).

    The GELU is exact, as in nanoGPT; OpenAI's is the tanh approximation.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x):
        """Apply the same MLP to every token."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.post_norm = config.post_norm
        self.ln_1 = nn.LayerNorm(config.width, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        """Map tokens to tokens, (B, T, C) to (B, T, C)."""
        if self.post_norm:
            x = self.ln_1(x + self.attn(x))
            return self.ln_2(x + self.mlp(x))
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Decoder-only Transformer whose output layer shares its weight with the token embedding.

    Without dropout. Initialised as in the paper (and nanoGPT): every weight N(0, 0.02²), except
    that of ``c_proj``, with standard deviation 0.02/sqrt(2·layers); biases 0, LayerNorm 1 and 0.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.h = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, bias=config.bias)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.lm_head.weight = self.wte.weight  # one tensor, one Hessian block
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # these write to the shortcut, 2·layers times
                nn.init.normal_(parameter, std=config.init_std / math.sqrt(2 * config.layers))
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x):
        """Map tokens (B, T), int64, to logits of the token after each, (B, T, vocab)."""
        positions = torch.arange(x.shape[1], device=x.device)  # (T,)
        x = self.wte(x) + self.wpe(positions)  # (B, T, width)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))  # (B, T, vocab)
