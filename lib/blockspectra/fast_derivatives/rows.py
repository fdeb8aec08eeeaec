r"""GELU and cross-entropy whose second derivatives cost little.

PyTorch differentiates the gradients of these by formulas made of ten to forty elementwise
operations, many of which do not depend on the vector that a Hessian is multiplied by. Here what
does not is computed once, with the gradient, which is a function of its own.

For GELU, :math:`y = xΦ(x)`, the gradient :math:`g\,y'(x)` has the derivatives :math:`y'(x)` in
:math:`g` and :math:`g\,y''(x)` in :math:`x`, with :math:`y'' = φ(x)(2 - x^2)`.

For the cross-entropy of logits :math:`x` with :math:`y = \mathrm{softmax}(x)`, a row's gradient is
:math:`g(y - e)`, with a constant :math:`e`. Along :math:`v` it has the derivatives
:math:`v^\top(y - e)` in :math:`g` and :math:`g\,y(v - v^\top y)` in :math:`x`.

Others are left to PyTorch: replacing LayerNorm too saved a tenth of a spectrum's time, measured on
a GPT, a ViT and a BERT; softmax and matrix products, in attention that is written out, less.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function

softmax_backward = torch.ops.aten._softmax_backward_data


def refuse_third():
    """Refuse a third derivative: what is kept for products is a constant to autograd."""
    if torch.is_grad_enabled():
        raise RuntimeError("this gradient can be differentiated once more, not twice")


class Gelu(Function):
    """GELU, exact."""

    @staticmethod
    def forward(ctx, x):
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        ctx.save_for_backward(x, torch.special.ndtr(x).addcmul_(x, density))
        return F.gelu(x)

    @staticmethod
    def backward(ctx, g):
        x, slope = ctx.saved_tensors
        return GeluGradient.apply(g, x, slope) if torch.is_grad_enabled() else g * slope


class GeluGradient(Function):
    """Its gradient."""

    @staticmethod
    def forward(ctx, g, x, slope):
        bend = torch.exp(-x * x / 2) * (2 - x * x) / math.sqrt(2 * math.pi)
        ctx.save_for_backward(slope, bend.mul_(g))
        return g * slope

    @staticmethod
    def backward(ctx, v):
        refuse_third()
        slope, bend = ctx.saved_tensors
        return v * slope, v * bend, None


class CrossEntropy(Function):
    """Mean cross-entropy of (sample, class) logits and (sample,) classes."""

    @staticmethod
    def forward(ctx, x, target, ignored):
        ctx.save_for_backward(x, target)
        ctx.ignored = ignored
        return F.cross_entropy(x, target, ignore_index=ignored)

    @staticmethod
    def backward(ctx, g):
        x, target = ctx.saved_tensors
        with torch.no_grad():
            share = (target != ctx.ignored).to(x.dtype)
            share = (share / share.sum())[:, None]
            y = x.softmax(1)
            index = target.clamp_min(0)[:, None]  # what is ignored may lie outside
            error = y.scatter_add(1, index, -torch.ones_like(share)).mul_(share)
        return CrossEntropyGradient.apply(g, x, error, y, share), None, None


class CrossEntropyGradient(Function):
    """Its gradient."""

    @staticmethod
    def forward(ctx, g, x, error, y, share):
        ctx.save_for_backward(error, y, g * share)
        return g * error

    @staticmethod
    def backward(ctx, v):
        refuse_third()
        error, y, share = ctx.saved_tensors
        to_g = (v * error).sum() if ctx.needs_input_grad[0] else None
        return to_g, softmax_backward(v, y, 1, y.dtype).mul_(share), None, None, None
