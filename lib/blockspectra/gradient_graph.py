"""The gradient of one batch's loss, kept as a graph, and the checks that a problem must pass."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from blockspectra.blocks import Block
from blockspectra.double_backward import (
    ProblemError,
    differentiate_again,
    explained,
    graph,
    graph_bytes,
    is_out_of_memory,
)
from blockspectra.fast_derivatives.context import CheapTwice
from blockspectra.problem import Problem


class GradientGraph:
    """The gradient of one batch's loss with respect to some blocks, kept as a graph.

    Parameters
    ----------
    problem : Problem
        Not checked here; see `checked`.
    batch
        One of the problem's.
    parameters : sequence of torch.nn.Parameter
        Those of the blocks that products will be asked for.

    Attributes
    ----------
    batch
    loss : Tensor
        That of the batch, detached.
    gradient : dict, parameter → Tensor or None
        None where the loss does not depend on it.

    Raises
    ------
    OutOfMemory
        If it does not fit.
    """

    def __init__(self, problem: Problem, batch: Any, parameters: Sequence[torch.nn.Parameter]):
        try:
            with CheapTwice(parameters):
                value = problem.value(batch)
            gradient = (
                torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
                if value.requires_grad
                else [None] * len(parameters)
            )
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            if is_out_of_memory(error):
                raise explained(error) from error
            raise
        self.batch, self.loss = batch, value.detach()
        self.gradient = dict(zip(parameters, gradient, strict=True))

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """Hessian block times a vector, or times several at once by vmap.

        Parameters
        ----------
        block : Block
            With parameters that were given at the start.
        vector : Tensor, (size,) or (vector, size)
            Any float dtype; rounded to the parameters' for the product.

        Returns
        -------
        Tensor, shaped like ``vector``
            In the parameters' dtype.
        """
        gradient = [self.gradient[p] for p in block.parameters]
        seeds = block.expand(vector)
        batched = vector.ndim > 1
        return block.flatten(
            differentiate_again(gradient, block.parameters, seeds, batched=batched)
        )

    def nbytes(self) -> int:
        """Bytes that the graph keeps alive beside the parameters."""
        return graph_bytes(self.gradient.values(), outside=self.gradient)


def checked(problem: Problem, parameters: Sequence[torch.nn.Parameter]) -> GradientGraph:
    """Refuse, in one sentence, a loss that is random, not finite or not twice differentiable.

    Evaluates the first batch twice and differentiates it twice; call inside
    `Problem.curvature_mode`.

    Parameters
    ----------
    problem : Problem
    parameters : sequence of torch.nn.Parameter
        Those to differentiate in.

    Returns
    -------
    GradientGraph
        That of the first batch, made for it.

    Raises
    ------
    ProblemError
        Dropout or BatchNorm in training mode, by name; a loss that changes between two
        evaluations; a non-finite loss; attention or another function without second derivative;
        a second derivative that is not symmetric.
    """
    _check_modes(problem)
    batch = problem.batches[0]
    with torch.no_grad():
        first = problem.value(batch).item()
    found = GradientGraph(problem, batch, parameters)
    second = found.loss.item()
    if not math.isclose(first, second, rel_tol=1e-6):
        raise ProblemError(
            f"The loss changed from {first:.8g} to {second:.8g} between two evaluations: call "
            f"model.eval(), and look for functional dropout or sampling."
        )
    if all(g is None for g in found.gradient.values()) and not problem.value(batch).requires_grad:
        raise ProblemError("The loss does not depend on any trainable parameter of the model.")
    for node in graph(found.gradient.values()):  # both would give a wrong Hessian in silence
        if 0 <= (row := getattr(node, "_saved_padding_idx", -1)) < 2**63:  # none is 2⁶⁴ - 1
            raise ProblemError(
                f"F.embedding is called with padding_idx={row}, which keeps a row out of the "
                f"gradient that the loss depends on: leave padding_idx out."
            )
        if node.name() == "torch::autograd::Error":
            raise ProblemError(
                "The loss cannot be differentiated twice: some autograd function is marked "
                "once_differentiable; replace it."
            )
    _check_symmetry(found)
    return found


def _check_modes(problem: Problem) -> None:
    for name, module in problem.model.named_modules():
        if module.training and isinstance(module, _DropoutNd) and module.p > 0:
            raise ProblemError(
                f"Dropout is on in {name or 'the model'!r}: call model.eval() so that the loss "
                f"is a function of the weights alone."
            )
        if module.training and isinstance(module, _BatchNorm) and not problem.batch_statistics:
            raise ProblemError(
                f"BatchNorm {name or 'the model'!r} is in training mode, where the loss is no "
                f"mean over samples: call model.eval(), or pass batch_statistics=True to study "
                f"this on purpose."
            )


def _check_symmetry(found: GradientGraph) -> None:
    parameters, gradient = list(found.gradient), list(found.gradient.values())
    generator = torch.Generator().manual_seed(0)
    u, v = ([torch.randn(p.shape, generator=generator).to(p) for p in parameters] for _ in range(2))
    hu, hv = (differentiate_again(gradient, parameters, vector) for vector in (u, v))
    left, right = _dot(v, hu), _dot(u, hv)
    scale = (max(_dot(u, u) * _dot(hv, hv), _dot(v, v) * _dot(hu, hu))) ** 0.5
    size = sum(p.numel() for p in parameters)
    tolerance = 0.01 / size**0.5 + 10 * torch.finfo(found.loss.dtype).eps  # |uᵀHv| ≈ ‖u‖‖Hv‖/√d
    if abs(left - right) > tolerance * scale:
        raise ProblemError(
            f"The second derivative is not symmetric (uᵀHv = {left:.6g}, vᵀHu = {right:.6g}): "
            f"some function has a gradient of its own making (a custom backward?); remove it."
        )


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)))
