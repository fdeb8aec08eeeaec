"""Multi-layer perceptron: the one-hidden-layer and the man-made network (Figures 2 and 5a)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an MLP.

    Attributes
    ----------
    sizes
        Widths from input to output: ``(inputs, hidden, ..., classes)``.
    bias
        Whether the linear layers have biases.
    activation
        ``"relu"`` or ``"gelu"`` (exact), applied after every layer but the last.
    """

    sizes: tuple[int, ...] = (784, 64, 64, 10)
    bias: bool = True
    activation: Literal["relu", "gelu"] = "relu"


# The paper has 8 hidden neurons; inputs, classes and the missing biases are those of the author's
# later code, on CIFAR-100 and on Gaussian data.
ONE_HIDDEN = MLPConfig((3072, 8, 100), bias=False)
ONE_HIDDEN_GAUSSIAN = MLPConfig((500, 8, 500), bias=False)
MAN_MADE = MLPConfig((784, 128, 128, 128, 10))  # four layers on MNIST; the widths are ours
SMALL = MLPConfig()
TINY = MLPConfig((64, 16, 10))


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Initialised by PyTorch's default, uniform on ±1/sqrt(fan-in) (ours: the paper does not say).

    Parameters
    ----------
    config
        Sizes of the network.
    """

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        pairs = zip(config.sizes[:-1], config.sizes[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=config.bias) for i, o in pairs)
        self.activation = {"relu": torch.relu, "gelu": F.gelu}[config.activation]

    def forward(self, x):
        """Map inputs to logits.

        Parameters
        ----------
        x
            Inputs, (B, inputs), or images (B, C, H, W), which are flattened.

        Returns
        -------
        Tensor
            Logits, (B, classes).
        """
        x = x.flatten(1)  # (B, inputs)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))  # (B, hidden)
        return self.layers[-1](x)  # (B, classes)
