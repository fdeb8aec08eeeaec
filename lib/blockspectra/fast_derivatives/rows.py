r"""GELU, cross-entropy and LayerNorm whose second derivatives cost little.

PyTorch differentiates the gradients of these by formulas made of ten to forty elementwise
operations, many of which do not depend on the vector that a Hessian is multiplied by. Here what
does not is computed once, with the graph.

For GELU, :math:`y = xΦ(x)`, the gradient :math:`g\,y'(x)` has the derivatives :math:`y'(x)` in
:math:`g` and :math:`g\,y''(x)` in :math:`x`, with :math:`y'' = φ(x)(2 - x^2)`.

For LayerNorm without weight and bias, which PyTorch multiplies and adds, with
:math:`\hat x = (x - μ)r` and the projection
:math:`P = I - \frac1n 11^\top - \frac1n\hat x\hat x^\top`, the gradient :math:`rPg` along :math:`v`
has the derivative :math:`rPv` in :math:`g` and, in :math:`x`,

.. math:: -\frac{r}{n}\Big((v^\top d)\,\hat x + (g^\top\hat x)\,rPv + (\hat x^\top v)\,d\Big),
    \qquad d = rPg.

For the cross-entropy of logits :math:`x` with :math:`y = \mathrm{softmax}(x)`, a row's gradient is
:math:`g(y - e)`, with a constant :math:`e`. Along :math:`v` it has the derivatives
:math:`v^\top(y - e)` in :math:`g` and :math:`g\,y(v - v^\top y)` in :math:`x`.

GELU and LayerNorm have two parts. The gradient's own function, when it is differentiated along
:math:`v`, sends :math:`v`, or what it has made of it, back to the function itself through a further
output of that, a token. There, on the second visit, it meets the derivative of the value, and both
are added where they arise instead of in passes of their own.

Softmax and matrix products, as in attention that is written out, are left to PyTorch: measured on
two such models, replacing them saved less than a tenth.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function

softmax_backward = torch.ops.aten._softmax_backward_data
layer_norm_backward = torch.ops.aten.native_layer_norm_backward
ONCE = "this gradient can be taken once, and differentiated once more"


class Gelu(Function):
    """GELU, exact."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        slope, token = torch.special.ndtr(x).addcmul_(x, density), token_of(x)
        ctx.save_for_backward(x, slope, token)
        return F.gelu(x), token

    @staticmethod
    def backward(ctx, g, v):
        x, slope, token = ctx.saved_tensors
        if g is None and v is None:
            return None
        if torch.is_grad_enabled():
            first_visit(ctx)
            with torch.no_grad():
                curvature = torch.exp(-x * x / 2) * (2 - x * x) / math.sqrt(2 * math.pi)
                ctx._saved_once = [g * curvature]
            return GeluGradient.apply(g, token, slope)
        if v is None:  # in a product
            return g * slope
        (bend,) = ctx._saved_once
        return v * bend if g is None else (g * slope).addcmul_(v, bend)


class GeluGradient(Function):
    """Its gradient."""

    @staticmethod
    def forward(ctx, g, token, slope):
        ctx.save_for_backward(slope)
        return g * slope

    @staticmethod
    def backward(ctx, v):
        last_visit()
        (slope,) = ctx.saved_tensors
        return v * slope, v, None


def token_of(x):
    """Return an output through which the function of a gradient sends back what it is given.

    What depends on it is then worked out in one place: the second visit of the function itself.
    """
    return x.new_empty(()).expand(x.shape)


def first_visit(ctx):
    """Refuse a further gradient: the first visit keeps what the second one needs."""
    if hasattr(ctx, "_saved_once"):
        raise RuntimeError(ONCE)


def last_visit():
    """Refuse a third derivative."""
    if torch.is_grad_enabled():
        raise RuntimeError(ONCE)


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
        error, y, share = ctx.saved_tensors
        last_visit()
        to_g = (v * error).sum() if ctx.needs_input_grad[0] else None
        return to_g, softmax_backward(v, y, 1, y.dtype).mul_(share), None, None, None


class Normalize(Function):
    """LayerNorm over the last dimensions, without weight and bias."""

    @staticmethod
    def forward(ctx, x, shape, eps):
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.dims = shape, tuple(range(-len(shape), 0))
        y, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
        tokens = token_of(x), token_of(torch.stack([rstd, rstd]))
        ctx.save_for_backward(x, mean, rstd, *tokens)
        return y, *tokens

    @staticmethod
    def backward(ctx, g, v, dots):
        x, mean, rstd, *tokens = ctx.saved_tensors
        if g is not None and torch.is_grad_enabled():
            first_visit(ctx)
            with torch.no_grad():
                normal = (x - mean) * (rstd * rstd / -math.prod(ctx.shape))
                along = (g * normal).sum(ctx.dims, keepdim=True)
            dx, both = NormalizeGradient.apply(g, x, mean, rstd, normal, ctx.shape, *tokens)
            ctx._saved_once = [along, both]
            return dx, None, None
        dx = None if g is None else _project(g, x, mean, rstd, ctx.shape)  # in a product
        if v is not None:
            along, (normal, first) = ctx._saved_once
            with_normal, with_first = dots
            dx = v * along if dx is None else dx.addcmul_(v, along)
            dx.addcmul_(first, with_normal).addcmul_(normal, with_first)
        return dx, None, None


class NormalizeGradient(Function):
    """Its gradient, and side by side the two vectors that products need."""

    @staticmethod
    def forward(ctx, g, x, mean, rstd, normal, shape, *tokens):
        ctx.shape, ctx.dims = shape, tuple(range(-len(shape), 0))
        first = _project(g, x, mean, rstd, shape)
        both = torch.stack([normal, first])
        ctx.save_for_backward(x, mean, rstd, both)
        ctx.mark_non_differentiable(both)
        return first, both

    @staticmethod
    def backward(ctx, v, _):
        last_visit()
        x, mean, rstd, both = ctx.saved_tensors
        projected = _project(v, x, mean, rstd, ctx.shape)
        dots = (v * both).sum(ctx.dims, keepdim=True)
        return projected, *(None,) * 5, projected, dots


def _project(u, x, mean, rstd, shape):
    """``rPu``."""
    only = [True, False, False]
    return layer_norm_backward(u, x, shape, mean, rstd, None, None, only)[0]
