"""Attention as the models here compute it."""

import math

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mix values by softmax(q kᵀ / √d + bias).

    Written out, not `scaled_dot_product_attention`: fused kernels have no second derivative.
    Within a `torch.overrides.TorchFunctionMode` it counts as one function, like those of PyTorch.

    Parameters
    ----------
    q, k, v : Tensor, (…, token, entry)
    bias : Tensor, (token, token), optional
        Minus infinity forbids to look. Added, not filled in: adding a constant costs nothing in a
        derivative.

    Returns
    -------
    Tensor, (…, token, entry)
    """
    given = (q, k, v, bias)
    if has_torch_function(given):
        return handle_torch_function(attention, given, *given)
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
