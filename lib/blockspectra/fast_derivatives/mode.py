"""The context in which functions of PyTorch are replaced by those of `rows` and `attention`."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockspectra.fast_derivatives.attention import Attention
from blockspectra.fast_derivatives.rows import CrossEntropy, Gelu, LayerNorm


class FastDerivatives(TorchFunctionMode):
    """Inside this context these functions can be differentiated cheaply again.

    Not more than twice, and not by forward-mode AD or ``torch.func``: they raise then. Parameters
    that are not among those ``wanted`` (default: all) are constants to these functions.
    ``replaced`` says whether any function was.
    """

    def __init__(self, wanted: Iterable[nn.Parameter] | None = None):
        super().__init__()
        self.wanted = None if wanted is None else {id(p) for p in wanted}
        self.replaced = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func in OURS:
            ours, arguments = OURS[func]
            given = arguments(*args, **kwargs)
            if given is not None and _fits(given[0]):
                self.replaced = True
                result = ours.apply(*map(self._constant, given))
                return result if isinstance(result, Tensor) else result[0]
        return func(*args, **kwargs)

    def _constant(self, given):
        """Cut a parameter off that is not wanted."""
        known = not isinstance(given, nn.Parameter) or self.wanted is None
        return given if known or id(given) in self.wanted else given.detach()


def _fits(x: Tensor) -> bool:
    real = x.dtype in (torch.float32, torch.float64)
    return real and torch.is_grad_enabled() and x.requires_grad


# how each function may be called; None for a call that is left as it is


def _gelu_arguments(input, approximate="none"):
    return (input,) if approximate == "none" else None


def _layer_norm_arguments(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return input, tuple(normalized_shape), weight, bias, eps


def _cross_entropy_arguments(input, target, ignore_index=-100, reduction="mean", **others):
    """Of rows of logits and one class each; the mean, without weights or smoothing."""
    plain = (
        input.ndim == 2 and target.ndim == 1 and reduction == "mean" and not any(others.values())
    )
    return (input, target, ignore_index) if plain else None


def _attention_arguments(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Without dropout, of as many keys' heads as queries', under a mask that is constant."""
    alike = query.ndim >= 3 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    alike = alike and query.dtype == key.dtype == value.dtype
    constant = attn_mask is None or not attn_mask.requires_grad
    if dropout_p or not (alike and constant):
        return None
    bias = attn_mask
    if is_causal:
        bias = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -math.inf)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return query, key, value, bias, scale


OURS = {
    F.scaled_dot_product_attention: (Attention, _attention_arguments),
    F.cross_entropy: (CrossEntropy, _cross_entropy_arguments),
    F.gelu: (Gelu, _gelu_arguments),
    F.layer_norm: (LayerNorm, _layer_norm_arguments),
}
