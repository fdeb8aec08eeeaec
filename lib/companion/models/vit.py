"""Vision Transformer (Dosovitskiy et al. 2020), with the parameter names of timm."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .layers import MLP


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT, whose MLP has the hidden width 4 * width."""

    image_size: int = 224  # pixels along the square image
    patch: int = 16  # pixels along a patch
    width: int = 768  # of a token
    layers: int = 12
    heads: int = 12  # of attention, per layer
    channels: int = 3  # of the image
    classes: int = 1000
    init_std: float = 0.02  # of the weights at initialisation: the paper's, at width 768
    post_norm: bool = False  # LayerNorm behind each shortcut's sum, not before attention and MLP


VIT_BASE = ViTConfig()  # the paper's, ViT-B/16
SMALL = ViTConfig(image_size=32, patch=4, width=64, layers=4, heads=4, classes=10)  # ours
TINY = ViTConfig(image_size=8, patch=4, width=8, layers=2, heads=2, classes=10)  # ours


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Not causal: under a causal mask the class token, which comes first, would see only itself, the
    logits would not depend on the image, and about half of the Hessian blocks would be zero.
    """

    fused = {"qkv": "q k v"}  # noqa: RUF012 -- `partition` cuts it so

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x):
        """Mix tokens, (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, nh, T, hs)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Attention, then MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config.width, 4 * config.width)

    def forward(self, x):
        """Map tokens to tokens, (B, T, C) to (B, T, C)."""
        if self.post_norm:
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches and a class token through Transformer blocks; the class token is classified.

    Without dropout. Initialisation is ours: every weight, the class token and the position
    embedding N(0, 0.02²), biases 0, LayerNorm 1 and 0.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        tokens = (config.image_size // config.patch) ** 2 + 1
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x):
        """Map images (B, C, H, W) to logits (B, classes)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, patches, width)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, T, width)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # (B, classes)
