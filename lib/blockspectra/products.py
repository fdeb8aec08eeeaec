r"""Products with the Hessian and its diagonal blocks by double backward.

For a block :math:`w_l` the product is :math:`H_l v = ∂(g_l^\top v)/∂w_l` with the gradient
:math:`g_l = ∂L/∂w_l` kept as a graph. Autograd walks only the part of the graph that lies between
:math:`g_l` and :math:`w_l`, so a block's product costs less than a full one. One product with all
blocks' vectors side by side would *not* do: it adds the off-diagonal blocks.
Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blockspectra.blocks import Block, whole
from blockspectra.problem import Problem, ProblemError, differentiate_again


class GradientGraph:
    """The gradient of the mean loss with respect to some blocks, ready to be differentiated again.

    One forward and one backward a batch are done here, once; every product reuses them. Memory is
    that of all batches' graphs together, about three times their activations.

    Parameters
    ----------
    problem : Problem
        Its checks are not run here.
    blocks : sequence of Block
        The blocks that products will be asked for.
    """

    def __init__(self, problem: Problem, blocks: Sequence[Block]):
        parameters = list(dict.fromkeys(p for block in blocks for p in block.parameters))
        self.terms = []  # (share of the batch, {parameter: gradient}) for each batch
        for batch, share in zip(problem.batches, problem.weights, strict=True):
            gradient = torch.autograd.grad(
                problem.value(batch), parameters, create_graph=True, allow_unused=True
            )
            self.terms.append((share, dict(zip(parameters, gradient, strict=True))))

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """Hessian block times a vector.

        Parameters
        ----------
        block : Block
            One of those given at the start.
        vector : Tensor, (size,)
            Any float dtype; rounded to the parameters' for the product.

        Returns
        -------
        Tensor, (size,)
            In the parameters' dtype; float64 sums over several batches.
        """
        seeds, total = block.expand(vector), 0.0
        for share, gradients in self.terms:
            graph = [gradients[p] for p in block.parameters]
            part = block.flatten(differentiate_again(graph, block.parameters, seeds))
            if share == 1:
                return part
            total = total + share * part.double()
        return total.to(part.dtype)


def hessian_product(problem: Problem, vector: Tensor) -> Tensor:
    """Full Hessian over all trainable parameters times a flat vector, in the model's order."""
    return block_products(problem, [whole(problem.model)], [vector])[0]


def block_products(
    problem: Problem, blocks: Sequence[Block], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Each block's Hessian times its own vector, from one shared graph.

    Parameters
    ----------
    problem : Problem
        Checked before anything is computed.
    blocks : sequence of Block
        From `partition`.
    vectors : sequence of Tensor
        One of shape (block.size,) a block.

    Returns
    -------
    list of Tensor
        One of shape (block.size,) a block.
    """
    for block, vector in zip(blocks, vectors, strict=True):
        if vector.shape != (block.size,):
            raise ValueError(
                f"Block {block.name!r} needs a vector of shape ({block.size},), "
                f"not {tuple(vector.shape)}."
            )
    with problem.curvature_mode():
        problem.check()
        graph = GradientGraph(problem, blocks)
        return [graph.product(block, v) for block, v in zip(blocks, vectors, strict=True)]


def dense_hessian(problem: Problem, block: Block, *, limit: int = 10_000) -> Tensor:
    """Exact Hessian of a small block, (size, size), column by column.

    Raises
    ------
    ValueError
        If the block has more than ``limit`` parameters: it would take as many products.
    """
    if block.size > limit:
        raise ValueError(
            f"Block {block.name!r} has {block.size:,} parameters, above the limit of {limit:,} for "
            f"a dense Hessian: use block_spectra, or raise `limit`."
        )
    with problem.curvature_mode():
        problem.check()
        graph = GradientGraph(problem, [block])
        unit = torch.eye(
            block.size, dtype=block.parameters[0].dtype, device=block.parameters[0].device
        )
        hessian = torch.stack([graph.product(block, row) for row in unit], dim=1)
    if not bool(torch.isfinite(hessian).all()):
        raise ProblemError(
            f"The Hessian of block {block.name!r} is not finite: some function has no second "
            f"derivative at this point, or float32 overflows; try float64."
        )
    return hessian
