"""A problem so small that it can be computed hundreds of times, and one way of computing it."""

import torch
from torch import nn

from blockspectra import Problem, cross_entropy
from blockspectra.hessian import BlockHessians


def two_matrices(batches, seed=0):
    """Two weight matrices, and up to three batches of other sizes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    data = [
        (torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator))
        for n in [7, 12, 9][:batches]
    ]
    return Problem(model, cross_entropy, data)


class MadeAgain(BlockHessians):
    """As where the memory does not do for all graphs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop()
