"""ResNet with basic blocks (He et al. 2015), with the module names of torchvision."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet; every stage but the first halves the image and doubles the width."""

    depths: tuple[int, ...] = (2, 2, 2, 2)  # blocks of each stage
    width: int = 64  # channels of the stem and of the first stage
    small_images: bool = False  # 3x3 stem of stride 1, no max-pool; else 7x7 of stride 2, with one
    channels: int = 3  # of the image
    classes: int = 1000


RESNET18 = ResNetConfig()  # the paper's, for 224x224
SMALL = ResNetConfig(width=16, small_images=True, classes=10)  # ours, for 32x32
TINY = ResNetConfig(depths=(1, 1), width=4, small_images=True, classes=10)  # ours, for 8x8


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, (B, inputs, H, W) to (B, outputs, H/stride, ...)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        """Add the two convolutions to the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))  # (B, outputs, H/stride, W/stride)
        x = self.bn2(self.conv2(x))
        return torch.relu(x + shortcut)


class ResNet(nn.Module):
    """Stem, stages of basic blocks, average over the image, one linear layer.

    Initialised as in the paper (and torchvision): convolutions N(0, 2/(k²·out)), BatchNorm 1 and 0,
    the linear layer by PyTorch's default. The paper measures in ``eval()`` mode, where BatchNorm
    uses running statistics, 0 and 1 at initialisation.
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        width = config.width
        if config.small_images:
            self.conv1 = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(config.channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for i, depth in enumerate(config.depths):
            outputs, stride = width * 2**i, 1 if i == 0 else 2
            blocks = [BasicBlock(inputs, outputs, stride)]
            blocks += [BasicBlock(outputs, outputs, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, config.classes)
        # The last BatchNorm of a block keeps its scale of 1. Set to 0, as is often done, it would
        # put the block's last ReLU exactly at its kink, where no second derivative exists, wherever
        # the shortcut is 0.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        """Map images (B, C, H, W) to logits (B, classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))  # (B, width, H/2, W/2), or H, W for small images
        x = self.maxpool(x)  # (B, width, H/4, W/4), or H, W for small images
        for i in range(len(self.config.depths)):
            stage = self.get_submodule(f"layer{i + 1}")
            x = stage(x)  # (B, width * 2^i, H/2^i, W/2^i) of the above
        return self.fc(x.mean(dim=(2, 3)))  # (B, classes)
