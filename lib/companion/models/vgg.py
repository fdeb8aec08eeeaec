"""VGG, stacked 3x3 convolutions (Simonyan and Zisserman 2014), with torchvision's module names."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class VGGConfig:
    """Sizes of a VGG."""

    plan: tuple[int | str, ...]  # output channels of each convolution; "M" is a 2x2 max-pool
    pool: int  # side of the grid that features are average-pooled to before the linear layers
    hidden: int  # width of the two hidden linear layers
    # Standard deviation of the linear layers at initialisation: 0.01 in the paper at width 4096. It
    # does not follow the width by itself, and in a network of hidden width 128 the signal shrinks
    # about five times more at each linear layer than in VGG16.
    linear_std: float = 0.01
    channels: int = 3  # of the image
    classes: int = 1000
    batch_norm: bool = False  # after each convolution, as in torchvision's vgg16_bn


_PLAN16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
VGG16 = VGGConfig(_PLAN16, pool=7, hidden=4096)  # the paper's, for 224x224
# Ours, for 32x32 and 8x8: there the features have the grid's size and pooling changes nothing.
SMALL = VGGConfig((16, 16, "M", 32, 32, "M", 64, 64, "M"), pool=4, hidden=128, classes=10)
TINY = VGGConfig((8, "M", 8, "M"), pool=2, hidden=16, classes=10)


class VGG(nn.Module):
    """Convolutions, then three linear layers.

    Initialised as in the paper (and torchvision): convolutions N(0, 2/(k²·out)), linear layers
    N(0, linear_std²), biases 0. Without VGG16's dropout: curvature is measured with dropout off.
    """

    def __init__(self, config: VGGConfig):
        super().__init__()
        self.config = config
        layers, channels = [], config.channels
        for step in config.plan:
            if step == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            norm = [nn.BatchNorm2d(step)] if config.batch_norm else []
            layers += [nn.Conv2d(channels, step, 3, padding=1), *norm, nn.ReLU()]
            channels = step
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(config.pool)
        self.classifier = nn.Sequential(
            nn.Linear(channels * config.pool**2, config.hidden),
            nn.ReLU(),
            nn.Identity(),  # in place of torchvision's dropout, to keep its numbering
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(config.hidden, config.classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.linear_std)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        """Map images (B, C, H, W), of at least 2^pools pixels a side, to logits (B, classes)."""
        x = self.features(x)  # (B, last channels, H/2^pools, W/2^pools)
        x = torch.flatten(self.pool(x), 1)  # (B, last channels * pool²)
        return self.classifier(x)  # (B, classes)
