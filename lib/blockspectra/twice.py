"""The context in which some functions are replaced by those of `twice_functions`."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockspectra.twice_functions import Gelu, LayerNorm, Matmul, Softmax


class CheapTwice(TorchFunctionMode):
    """Inside this context these functions can be differentiated cheaply again.

    Not more than twice, which is why it is for making a `GradientGraph` alone. Calls of them in
    other dtypes, under autocast or inside ``torch.func``, are left as they are.

    Parameters
    ----------
    wanted : iterable of torch.nn.Parameter, optional
        Those that will be differentiated in: to these functions, others are constants. All if None.
    """

    def __init__(self, wanted: Iterable[nn.Parameter] | None = None):
        super().__init__()
        self.wanted = None if wanted is None else {id(p) for p in wanted}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func in OURS:
            ours, arguments = OURS[func]
            given = arguments(*args, **kwargs)
            if given is not None and _fits(given[0]):
                result = ours.apply(*map(self._constant, given))
                return result if isinstance(result, Tensor) else result[0]
        return func(*args, **kwargs)

    def _constant(self, given):
        """Cut a parameter off that is not wanted."""
        known = not isinstance(given, nn.Parameter) or self.wanted is None
        return given if known or id(given) in self.wanted else given.detach()


def _fits(x: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    plain = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled()
    return plain and not wrapped and torch.is_grad_enabled() and x.requires_grad


# how each function may be called; None for a call that is left as it is


def _gelu_arguments(input, approximate="none"):
    return (input,) if approximate == "none" else None


def _matmul_arguments(input, other):
    """Products of many matrices at once, as in attention; those of vectors and one are cheap."""
    many = input.ndim == other.ndim >= 3 and input.shape[:-2] == other.shape[:-2]
    return (input, other) if many and input.dtype == other.dtype and other.requires_grad else None


def _softmax_arguments(input, dim, dtype=None):
    return (input, dim) if type(dim) is int and dtype is None else None


def _functional_softmax_arguments(input, dim=None, _stacklevel=3, dtype=None):
    return _softmax_arguments(input, dim, dtype)


def _layer_norm_arguments(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return input, tuple(normalized_shape), weight, bias, eps


OURS = {
    F.gelu: (Gelu, _gelu_arguments),
    torch.matmul: (Matmul, _matmul_arguments),
    Tensor.matmul: (Matmul, _matmul_arguments),
    Tensor.__matmul__: (Matmul, _matmul_arguments),
    F.softmax: (Softmax, _functional_softmax_arguments),
    torch.softmax: (Softmax, _softmax_arguments),
    Tensor.softmax: (Softmax, _softmax_arguments),
    F.layer_norm: (LayerNorm, _layer_norm_arguments),
}
