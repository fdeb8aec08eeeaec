r"""Attention whose second derivatives cost little.

With scores :math:`S = s\,qk^\top + M`, weights :math:`P = \mathrm{softmax}(S)` and the value
:math:`Pv`, the gradient along :math:`g` is

.. math:: \big(s\,Gk,\; s\,G^\top q,\; P^\top g\big), \qquad G = P ∘ C,
    \qquad C = gv^\top - (P ∘ gv^\top)11^\top.

Along :math:`(a, b, c)` it has the derivative :math:`\dot Pv + Pc` in :math:`g`, where
:math:`\dot P = P ∘ \dot S - P ∘ (P ∘ \dot S)11^\top` and :math:`\dot S = s(ak^\top + qb^\top)`.
With the derivative :math:`u` of the value, those in :math:`q, k, v` are

.. math:: s(Xk + Gb), \quad s(X^\top q + G^\top a), \quad P^\top u + \dot P^\top g, \qquad
    X = Y - P ∘ Y11^\top, \quad Y = P ∘ (uv^\top + gc^\top) + \dot P ∘ C.

As one function, attention has none of the copies, scalings and sums between those of its parts.

It has two parts. The function of the gradient, differentiated along :math:`a, b, c`, sends
these and :math:`\dot P` back to the function itself through further outputs of that, tokens. There,
on the second visit, they meet the derivative of the value, and both are added where they arise.
"""

import torch
from torch.autograd import Function

from blockspectra.fast_derivatives.rows import refuse_third, softmax_backward


class Attention(Function):
    """Attention with a constant bias, or None, and a scale."""

    @staticmethod
    def forward(ctx, q, k, v, bias, scale):
        ctx.set_materialize_grads(False)
        ctx.shapes, ctx.scale = [x.shape for x in (q, k, v)], scale
        scores = q * scale @ k.mT
        if bias is None:
            p = scores.softmax(-1)
        else:  # rows in which all is forbidden are zero, as in PyTorch's own attention
            p = (scores + bias).softmax(-1).masked_fill_(bias.isneginf().all(-1, keepdim=True), 0)
        kept = [_flat(x) for x in (q * scale, k * scale, v, p)]
        tokens = [x.new_empty(()).expand(x.shape) for x in kept]
        ctx.save_for_backward(*kept, *tokens)
        return p @ v, *tokens

    @staticmethod
    def backward(ctx, u, a, b, c, p_dot):
        qs, ks, v, p, *tokens = ctx.saved_tensors
        u = _flat(u)
        if u is None and a is None and b is None and c is None:
            return (None,) * 5
        if torch.is_grad_enabled():
            if hasattr(ctx, "_saved_once"):  # kept for the second visit, which follows one gradient
                raise RuntimeError("this gradient of attention can be taken once")
            kept = (x.detach() for x in (qs, ks, v, p))
            *found, centred, slope = AttentionGradient.apply(u, *tokens, *kept, ctx.scale)
            ctx._saved_once = [u.detach(), centred, slope]
        else:  # in a product
            g, centred, slope = ctx._saved_once
            x = _sum((u, v.mT), (g, _mT(c)))
            x = None if x is None else x.mul_(p)
            if p_dot is not None:
                x = p_dot * centred if x is None else x.addcmul_(p_dot, centred)
            if x is not None:
                x.addcmul_(x.sum(-1, keepdim=True), p, value=-1)
            found = (
                _sum((x, ks), (slope, b)),
                _sum((_mT(x), qs), (slope.mT, a)),
                _sum((p.mT, u), (_mT(p_dot), g)),
            )
        pairs = zip(found, ctx.shapes, strict=True)
        return *(None if x is None else x.view(shape) for x, shape in pairs), None, None


class AttentionGradient(Function):
    """Its gradients, and the constants C and sG that products need."""

    @staticmethod
    def forward(ctx, g, token_q, token_k, token_v, token_p, qs, ks, v, p, scale):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(qs, ks, v, p)
        along = g @ v.mT
        centred = along - (along * p).sum(-1, keepdim=True)
        slope = p * centred
        constants = centred, slope * scale
        ctx.mark_non_differentiable(*constants)
        return slope @ ks, slope.mT @ qs, p.mT @ g, *constants

    @staticmethod
    def backward(ctx, a, b, c, *_):
        refuse_third()
        qs, ks, v, p = ctx.saved_tensors
        p_dot = _sum((a, ks.mT), (qs, _mT(b)))
        p_dot = None if p_dot is None else softmax_backward(p_dot, p, -1, p.dtype)
        return _sum((p_dot, v), (p, c)), a, b, c, p_dot, *(None,) * 5


def _flat(x):
    """Matrices with one dimension in front, as `torch.bmm` wants them; a copy where need be."""
    return None if x is None else x.reshape(-1, *x.shape[-2:])


def _mT(x):
    return None if x is None else x.mT


def _sum(*pairs):
    """Sum of the products of those pairs that are there."""
    total = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = a @ b if total is None else total.baddbmm_(a, b)
    return total
