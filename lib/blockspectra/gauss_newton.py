r"""The Gauss–Newton part of the Hessian of one batch's loss.

For a loss :math:`\ell(f(w))` of outputs :math:`f` with Jacobian :math:`J`, the Hessian is

.. math:: H = J^\top \nabla^2\ell\, J + \sum_k \frac{∂\ell}{∂f_k} \nabla^2 f_k ,

and the first term is the generalised Gauss–Newton matrix. It has no more than samples × outputs
eigenvalues that are not zero, none of them negative if the loss is convex in the outputs.

Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
2002. Products with J come from J^T s, which is linear in s, by a derivative with respect to s.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from blockspectra.gradient_graph import PLAIN, GradientGraph
from blockspectra.problem import Problem, ProblemError, explained


class GaussNewtonGraph(GradientGraph):
    """Outputs of one batch and their derivative, kept as graphs for products.

    Takes a problem, a batch and parameters, as `GradientGraph` does, and has its methods;
    ``gradient`` holds J^T s, by parameter.

    Raises
    ------
    ProblemError
        If the problem's loss was not given in two parts, or its outputs are no tensor.
    """

    def __init__(self, problem: Problem, batch: Any, parameters: Sequence[torch.nn.Parameter]):
        if problem.parts is None:
            raise ProblemError(
                "The Gauss-Newton matrix needs the loss in two parts: Problem(model, (outputs, "
                "loss), batches) with outputs(model, batch) and loss(outputs, batch)."
            )
        outputs, loss = problem.parts
        self.derivatives = PLAIN
        try:
            self.outputs = outputs(problem.model, batch)
            if not isinstance(self.outputs, Tensor):
                kind = type(self.outputs).__name__
                raise ProblemError(f"The outputs must be a tensor, not {kind}: return the logits.")
            self.cut = self.outputs.detach().requires_grad_()
            self.loss = loss(self.cut, batch)
            (self.slope,) = grad(self.loss, self.cut, create_graph=True)
            self.seed = torch.zeros_like(self.outputs, requires_grad=True)
            pulled = grad(self.outputs, parameters, self.seed, create_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            raise explained(error) from error
        self.loss = self.loss.detach()
        self.gradient = dict(zip(parameters, pulled, strict=True))

    def _pulled(self, pulled, vectors, parameters, how) -> Sequence[Tensor | None]:
        if not self.slope.requires_grad:  # a loss that is linear in the outputs
            return [None] * len(parameters)
        inner = how | {"allow_unused": False}
        (moved,) = grad(pulled, self.seed, vectors, **inner)
        (curved,) = grad(self.slope, self.cut, moved, **inner)
        return grad(self.outputs, parameters, curved, **how)
