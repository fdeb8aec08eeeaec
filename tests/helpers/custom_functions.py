"""Autograd functions that stand in the way of a second derivative."""

import torch


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Kept(torch.autograd.Function):
    """The square, with a gradient kept from the forward pass: its own derivative is missing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]
