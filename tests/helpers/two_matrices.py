"""A problem so small that it can be computed hundreds of times."""

import torch
from torch import nn

from blockspectra import Problem, cross_entropy


def two_matrices(batches, seed=0):
    """Two weight matrices, and up to three batches of other sizes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    data = [
        (torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator))
        for n in [28, 48, 36][:batches]
    ]
    return Problem(model, cross_entropy, data)
