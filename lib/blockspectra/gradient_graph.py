"""The gradient of one batch's loss, kept as a graph that second derivatives are taken from."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from blockspectra.blocks import Block, parameters_of
from blockspectra.fast_derivatives.mode import FastDerivatives
from blockspectra.problem import Problem, explained, is_out_of_memory

CHEAP, PLAIN = "cheap second derivatives", "plain derivatives"
_SAVED = re.compile(r"_saved_|saved_tensors$").match


class GradientGraph:
    """The gradient of one batch's loss with respect to some parameters, kept as a graph.

    The ``parameters`` are those of the blocks that products will be asked for; the problem is not
    checked here, see `checked`. The ``derivatives`` `CHEAP` replace functions of PyTorch by those
    of `fast_derivatives`; all else does not. Raises `OutOfMemory` if it does not fit.

    Attributes
    ----------
    loss : Tensor
        That of the batch, detached.
    gradient : dict, parameter → Tensor or None
        None where the loss does not depend on it.
    derivatives : str
        `CHEAP`, or `PLAIN` and, after a colon, why the cheap ones were not taken.
    fingerprints : list
        What `fingerprint` gave of each batch, where `checked` made the graph.
    """

    def __init__(
        self,
        problem: Problem,
        batch: Any,
        parameters: Sequence[torch.nn.Parameter],
        derivatives: str = CHEAP,
    ):
        self.derivatives = derivatives
        try:
            if derivatives == CHEAP:
                with FastDerivatives() as mode:
                    value = problem.value(batch)
                self.derivatives = CHEAP if mode.replaced else PLAIN
            else:
                value = problem.value(batch)
            gradient = [None] * len(parameters)
            if value.requires_grad:
                gradient = torch.autograd.grad(
                    value, parameters, create_graph=True, allow_unused=True
                )
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            if is_out_of_memory(error):
                raise explained(error) from error
            raise
        self.loss, self.fingerprints = value.detach(), []
        self.gradient = dict(zip(parameters, gradient, strict=True))

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """Hessian block times a vector, (size,), or several at once by vmap, (vector, size).

        The block's parameters were given at the start. A vector of any float dtype is rounded to
        theirs, which the product has.
        """
        return block.flatten(
            self.second_derivative(block.parameters, block.expand(vector), vector.ndim > 1)
        )

    def second_derivative(
        self, parameters: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool = False
    ) -> list[Tensor]:
        """``∂(Σ gradient·vector)/∂p`` for some parameters, zero where nothing depends on it.

        Vectors are shaped like the parameters, but for one more dimension in front if ``batched``:
        one derivative for each of them then, by vmap. Raises a `ProblemError` if a function on the
        way has no second derivative, or memory runs out.
        """
        pairs = [(self.gradient[p], v) for p, v in zip(parameters, vectors, strict=True)]
        pairs = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
        how = {"retain_graph": True, "allow_unused": True, "is_grads_batched": batched}
        result = [None] * len(parameters)
        try:
            if pairs:
                result = self._pulled(*zip(*pairs, strict=True), parameters, how)
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            raise explained(error) from error
        lead = vectors[0].shape[:1] if batched else ()
        return [
            p.new_zeros(*lead, *p.shape) if h is None else h
            for h, p in zip(result, parameters, strict=True)
        ]

    def _pulled(self, gradient, vectors, parameters, how) -> Sequence[Tensor | None]:
        return torch.autograd.grad(gradient, parameters, vectors, **how)

    def nbytes(self) -> int:
        """Bytes that the graph keeps alive beside the parameters, each storage once."""
        gradient = [g for g in self.gradient.values() if g is not None]
        saved = [getattr(node, k) for node in graph(gradient) for k in dir(node) if _SAVED(k)]
        storages = {}
        for value in [*gradient, *saved]:
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    with suppress(RuntimeError):  # wrappers of forward-mode AD have none
                        storage = tensor.untyped_storage()
                        storages[storage.data_ptr()] = storage.nbytes()
        for p in self.gradient:
            storages.pop(p.untyped_storage().data_ptr(), None)
        return sum(storages.values())


def gradients(problem: Problem, batch: Any, blocks: Sequence[Block]) -> list[Tensor]:
    """Gradient of one batch's loss in each block, (size,) float64 each; 0 where it is unused."""
    parameters = parameters_of(blocks)
    found = torch.autograd.grad(problem.value(batch), parameters, allow_unused=True)
    known = {
        p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    }
    return [block.flatten([known[p] for p in block.parameters]).double() for block in blocks]


def graph(tensors: Iterable[Tensor | None]) -> Iterator[torch.autograd.graph.Node]:
    """Walk the autograd graph behind some tensors, each node once."""
    seen, queue = set(), [t.grad_fn for t in tensors if t is not None]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
            yield node
