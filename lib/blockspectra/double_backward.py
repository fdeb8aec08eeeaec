"""Differentiating a gradient again: the graph that autograd kept of it, and what goes wrong."""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

_SAVED = re.compile(r"_saved_|saved_tensors$").match


class ProblemError(ValueError):
    """Something about the model, the loss or the data forbids a Hessian; says what to do."""


class OutOfMemory(ProblemError):
    """There is not enough memory, in the budget or at all; says what to do."""


def differentiate_again(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    batched: bool = False,
) -> list[Tensor]:
    """Second derivative along ``vectors`` from gradients that are still a graph.

    Parameters
    ----------
    gradients : sequence of Tensor or None
        ``∂L/∂p`` with ``create_graph=True``; None, or without a graph, where the loss does not
        depend on the parameter, or only linearly.
    parameters, vectors : sequence of Tensor
        Shaped like the gradients.
    batched : bool
        The vectors have one more dimension in front, and so do the results: one derivative for
        each, taken together by vmap.

    Returns
    -------
    list of Tensor
        ``∂(Σ gradient·vector)/∂p`` for each parameter, zero where nothing depends on it.

    Raises
    ------
    ProblemError
        If a function on the way has no second derivative, or memory runs out.
    """
    pairs = zip(gradients, vectors, strict=True)
    kept = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
    lead = vectors[0].shape[:1] if batched else ()
    if not kept:
        return [p.new_zeros(*lead, *p.shape) for p in parameters]
    outputs, seeds = zip(*kept, strict=True)
    try:
        result = torch.autograd.grad(
            outputs,
            parameters,
            seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        raise explained(error) from error
    return [
        p.new_zeros(*lead, *p.shape) if h is None else h
        for h, p in zip(result, parameters, strict=True)
    ]


def graph_bytes(tensors: Iterable[Tensor | None], outside: Iterable[Tensor] = ()) -> int:
    """Bytes that the autograd graph behind some tensors keeps alive, each storage once.

    Parameters
    ----------
    tensors : iterable of Tensor or None
    outside : iterable of Tensor
        What lives anyway, such as parameters: not counted.
    """
    seen = {t.untyped_storage().data_ptr() for t in outside}
    total, tensors = 0, [t for t in tensors if t is not None]
    saved = [getattr(node, name) for node in graph(tensors) for name in dir(node) if _SAVED(name)]
    for value in [*tensors, *saved]:
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    total += storage.nbytes()
    return total


def graph(tensors: Iterable[Tensor | None]) -> Iterator[torch.autograd.graph.Node]:
    """Walk the autograd graph behind some tensors, each node once."""
    seen, waiting = set(), [t.grad_fn for t in tensors if t is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
            yield node


def explained(error: Exception) -> ProblemError:
    """Turn what PyTorch says of a second derivative into a sentence that says what to do."""
    text = str(error).splitlines()[0]
    if is_out_of_memory(error):
        return OutOfMemory(f"Out of memory in a Hessian product: use smaller batches. {text}")
    if "attention" in text:
        return ProblemError(
            "The model uses fused (flash or efficient) attention, which has no second derivative: "
            "remove the sdpa_kernel(...) it sets itself, or build it with eager attention "
            f"(attn_implementation='eager'). PyTorch said: {text}"
        )
    return ProblemError(
        f"The loss cannot be differentiated twice: replace the function named here. {text}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an allocation failed, on a GPU or in the host's memory."""
    known = MemoryError | torch.OutOfMemoryError | OutOfMemory
    # the CPU's allocator says it in words of its own on each system
    said = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, known) or any(words in str(error) for words in said)
