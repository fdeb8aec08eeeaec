"""Multi-layer perceptron: the one-hidden-layer and the man-made network (Figures 2 and 5a)."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class MLPConfig:
    """Widths, ``(inputs, hidden, ..., classes)``, and whether the layers have biases."""

    sizes: tuple[int, ...]
    bias: bool = True


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Initialised by PyTorch's default, uniform on ±1/sqrt(fan-in) (ours: the paper does not say).
    """

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        pairs = zip(config.sizes[:-1], config.sizes[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=config.bias) for i, o in pairs)

    def forward(self, x):
        """Map vectors (B, inputs), or images (B, C, H, W), to logits (B, classes)."""
        x = x.flatten(1)  # (B, inputs)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))  # (B, hidden)
        return self.layers[-1](x)  # (B, classes)
