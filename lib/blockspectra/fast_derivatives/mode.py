"""The context in which functions of PyTorch are replaced by those of `rows` and `attention`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blockspectra.fast_derivatives.attention import Attention
from blockspectra.fast_derivatives.rows import CrossEntropy, Gelu


class FastDerivatives(TorchFunctionMode):
    """Inside this context these functions can be differentiated cheaply again.

    Not more than twice, and not by forward-mode AD or ``torch.func``: they raise then. ``replaced``
    says whether any function was.
    """

    replaced = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        result = OURS[func](*args, **kwargs) if func in OURS else None
        if result is None:
            return func(*args, **kwargs)
        self.replaced = True
        return result


def _fits(x: Tensor) -> bool:
    real = x.dtype in (torch.float32, torch.float64)
    return real and torch.is_grad_enabled() and x.requires_grad


# called as PyTorch's functions of these names; None for a call that is left to those


def gelu(input, approximate="none"):
    """Exact, not by tanh."""
    return Gelu.apply(input) if _fits(input) and approximate == "none" else None


def cross_entropy(input, target, ignore_index=-100, reduction="mean", **others):
    """Of rows of logits and one class each; the mean, without weights or smoothing."""
    rows = input.ndim == 2 and target.ndim == 1 and _fits(input)
    plain = rows and reduction == "mean" and not any(others.values())
    return CrossEntropy.apply(input, target, ignore_index) if plain else None


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Without dropout, of as many keys' heads as queries', under a mask that is constant."""
    alike = query.ndim >= 3 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    alike = alike and query.dtype == key.dtype == value.dtype
    constant = attn_mask is None or not attn_mask.requires_grad
    if dropout_p or not (alike and constant and _fits(query)):
        return None
    bias = attn_mask
    if is_causal:
        bias = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -math.inf)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return Attention.apply(query, key, value, bias, scale)[0]


def weight_norm(v, g, dim=0):
    """PyTorch's own second derivative takes the norm for a constant on the CPU."""
    return v * (g / torch.norm_except_dim(v, 2, dim)) if _fits(v) else None


OURS = {
    torch._weight_norm: weight_norm,
    F.scaled_dot_product_attention: attention,
    F.cross_entropy: cross_entropy,
    F.gelu: gelu,
}
