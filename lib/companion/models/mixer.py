"""MLP-Mixer (Tolstikhin et al. 2021): a Transformer's layout without attention."""

from dataclasses import dataclass

from torch import nn

from .layers import MLP


@dataclass(frozen=True)
class MixerConfig:
    """Sizes of a Mixer."""

    image_size: int = 224  # pixels along the square image
    patch: int = 16  # pixels along a patch
    width: int = 768  # of a token
    layers: int = 12
    token_hidden: int = 384  # of the MLP across tokens
    channel_hidden: int = 3072  # of the MLP across channels
    channels: int = 3  # of the image
    classes: int = 1000


BASE = MixerConfig()  # Mixer-B/16; the paper does not say which Mixer it used
SMALL = MixerConfig(32, 4, width=64, layers=4, token_hidden=32, channel_hidden=256, classes=10)
TINY = MixerConfig(8, 4, width=8, layers=2, token_hidden=4, channel_hidden=32, classes=10)


class Block(nn.Module):
    """MLP across tokens, then MLP across channels, each after a LayerNorm, beside a shortcut."""

    def __init__(self, config: MixerConfig, tokens: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.token_mix = MLP(tokens, config.token_hidden)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.channel_mix = MLP(config.width, config.channel_hidden)

    def forward(self, x):
        """Map tokens to tokens, (B, T, C) to (B, T, C)."""
        across_tokens = self.norm1(x).transpose(1, 2)  # (B, C, T)
        x = x + self.token_mix(across_tokens).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    """Patches through Mixer blocks; the mean token is classified.

    Without dropout. Initialisation is ours: every weight LeCun normal, N(0, 1/fan-in), biases 0,
    LayerNorm 1 and 0. The original sets the head to zero, under which no gradient reaches anything
    before it, and all Hessian blocks but the head's are exactly zero at initialisation.
    """

    def __init__(self, config: MixerConfig):
        super().__init__()
        self.config = config
        tokens = (config.image_size // config.patch) ** 2
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.blocks = nn.ModuleList(Block(config, tokens) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x):
        """Map images (B, C, H, W) to logits (B, classes)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, T, width)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))  # (B, classes)
