r"""The man-made MLP: one knob c sets how far apart the curvatures of its layers are.

Layer :math:`l = 0 … L-1` computes :math:`s_l (V_l x + u_l)` with a fixed multiplier
:math:`s_l = c^{(l - (L-1)/2)/2}` and trains :math:`V_l` and :math:`u_l`, which start at PyTorch's
initialisation divided by :math:`s_l`. So the function at initialisation is the same for every c,
the product of the multipliers is one, and the Hessian of layer l's block is :math:`s_l^2` times
that of the plain MLP: from each layer to the next it grows by a factor c. SGD with rate η is SGD on
the plain MLP with rate :math:`η s_l^2` in layer l. Adam, whose step does not grow with the
gradient, is Adam on the plain MLP with rate :math:`η s_l` (but for its ε): it sees the square root
of the spread.

The paper's own rescaling is not known; this one is ours.
"""

import torch
from torch import Tensor

from .mlp import MLP, MLPConfig

LAYERS = 4


def multipliers(c: float, layers: int = LAYERS) -> tuple[float, ...]:
    """Multipliers of the layers, from input to output: their squares are a factor c apart."""
    return tuple(c ** ((layer - (layers - 1) / 2) / 2) for layer in range(layers))


class ManMadeMLP(MLP):
    """An MLP whose layers' outputs are multiplied, weights and biases divided, by fixed numbers.

    c is the ratio of the block Hessians of a layer and the one before; 1 is the plain MLP.
    """

    def __init__(self, config: MLPConfig, c: float):
        super().__init__(config)
        self.multipliers = multipliers(c, len(self.layers))
        with torch.no_grad():
            for layer, s in zip(self.layers, self.multipliers, strict=True):
                for parameter in layer.parameters():
                    parameter /= s

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, H, W), or vectors (B, inputs), to logits (B, classes)."""
        x = x.flatten(1)
        for layer, s in zip(self.layers[:-1], self.multipliers, strict=False):
            x = torch.relu(s * layer(x))  # (B, hidden)
        return self.multipliers[-1] * self.layers[-1](x)


def man_made(c: float, side: int, width: int, seed: int) -> ManMadeMLP:
    """Build the four-layer MLP on images of side × side pixels; the seed draws its weights."""
    config = MLPConfig((side * side, *[width] * (LAYERS - 1), 10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ManMadeMLP(config, c)
