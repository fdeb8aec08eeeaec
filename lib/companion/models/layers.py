"""A layer that several of the architectures have."""

import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    """Two linear layers over the last axis, (..., width) to (..., width), with exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        """Apply the MLP to the last axis."""
        return self.fc2(F.gelu(self.fc1(x)))
