r"""The Hessian of a problem's loss, by products with its diagonal blocks.

For blocks :math:`w_l` of the parameters, and the mean loss :math:`\mathcal L` over all batches,

.. math:: H_l = \frac{∂^2 \mathcal L}{∂w_l\,∂w_l^\top}, \qquad
    H_l v = \frac{∂\,(g_l^\top v)}{∂w_l}, \qquad g_l = \frac{∂\mathcal L}{∂w_l}.

The gradient is computed once and kept as a graph. For a product, autograd walks only the part of
the graph that lies between :math:`g_l` and :math:`w_l`, so it costs less than a full one: about
half a gradient on average over the blocks of a network. One product with all blocks' vectors
concatenated would *not* do: it adds the off-diagonal blocks.

A linear model under the mean squared error has the Hessian :math:`\frac2n X^\top X`:

>>> x, y = torch.tensor([[1.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]), torch.ones(4, 1)
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> problem = Problem(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
...                   [(x, y)])
>>> dense_hessian(problem, whole(model))
tensor([[1., 1.],
        [1., 4.]])

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blockspectra.blocks import Block, parameters_of, whole
from blockspectra.checks import check_unchanged, checked, not_finite
from blockspectra.gauss_newton import GaussNewtonGraph
from blockspectra.gradient_graph import GradientGraph
from blockspectra.memory import readable
from blockspectra.problem import OutOfMemory, Problem, ProblemError

SCRATCH = 2.0  # what a product needs beside the graph, as a share of it; measured: 0.4 to 1.9


class BlockHessians:
    """Products with the blocks of the Hessian of the mean loss over all batches.

    One forward and one backward a batch are done once and kept for all products, where that fits
    the budget; otherwise they are done again for each list of products, once for all blocks and
    vectors in it. The results are the same to the bit on a CPU.

    Parameters
    ----------
    problem : Problem
    blocks : iterable of Block
        Those that products will be asked for.
    first_graph : GradientGraph, optional
        From `checked` for the parameters of ``blocks``, in the order of `parameters_of`: says which
        derivatives to take, and is used for its batch, the first. The caller must drop its own
        reference, so that memory can be freed. By default `checked` is called here.
    budget : int, optional
        Bytes for graphs and for what products need beside them; no bound if None.
    matrix : {"hessian", "ggn"}
        Or the Gauss–Newton part of the Hessian, see `gauss_newton`.
    preconditioner : mapping, name of a block → Tensor, optional
        Diagonal of a positive P, of shape (size,), or () for one number a block. Products are those
        of P^(−1/2) H P^(−1/2) then, which gradient descent meets in coordinates scaled by P^(1/2).

    Attributes
    ----------
    kept : bool
        Whether all graphs are kept.
    nbytes : int
        Of one graph.
    derivatives : str
        `CHEAP`, or `PLAIN` and, after a colon, why the cheap ones were not taken.

    Raises
    ------
    ProblemError
        See `checked`; `OutOfMemory` if not even one batch's graph fits the budget.
    ValueError
        If a preconditioner is not positive or lacks a block.
    """

    def __init__(
        self,
        problem: Problem,
        blocks: Iterable[Block],
        *,
        first_graph: GradientGraph | None = None,
        budget: int | None = None,
        matrix: str = "hessian",
        preconditioner: Mapping[str, Tensor] | None = None,
    ):
        self.problem, blocks = problem, list(blocks)
        self.parameters = parameters_of(blocks)
        self.scales = coordinate_scales(blocks, preconditioner)
        first_graph = first_graph or checked(problem, self.parameters)
        self.matrix, self.fingerprints = matrix, first_graph.fingerprints
        first, *others = problem.batches
        graph = first_graph if matrix == "hessian" else self._graph(first)
        self.derivatives = graph.derivatives  # a Gauss–Newton graph has the plain ones
        self.nbytes = graph.nbytes()
        if budget is not None and self.nbytes * (1 + SCRATCH) > budget:
            raise OutOfMemory(
                f"The graph of one batch and a product with it take about "
                f"{readable(self.nbytes * (1 + SCRATCH))}, and {readable(max(0, budget))} are left "
                f"for them: use smaller batches, or raise `memory`."
            )
        every = self.nbytes * (len(problem.batches) + SCRATCH)
        self.kept = budget is None or every <= budget
        self.graphs = [graph, *map(self._graph, others)] if self.kept else []

    def products(self, wanted: Sequence[tuple[Block, Tensor]]) -> list[Tensor]:
        """Blocks of the Hessian times vectors, each batch's graph used for all of them in turn.

        Shapes as in `GradientGraph.product`; in the parameters' dtype, summed in float64 where
        there are several batches.
        """
        totals: list[Any] = [0] * len(wanted)
        wanted = [(b, self._scaled(b, vector)) for b, vector in wanted]
        batches, weights = self.problem.batches, self.problem.weights
        several = len(batches) > 1
        for i, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            graph = self.graphs[i] if self.kept else self._graph(batch)
            for k, (block, vector) in enumerate(wanted):
                product = graph.product(block, vector)
                totals[k] = totals[k] + weight * product.double() if several else product
            del graph  # before the next one is made
        return [
            self._scaled(block, t).to(block.parameters[0].dtype)
            for t, (block, _) in zip(totals, wanted, strict=True)
        ]

    def _scaled(self, block: Block, vector: Tensor) -> Tensor:
        return vector * self.scales[block.name] if self.scales else vector

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """One block of the Hessian times a vector."""
        return self.products([(block, vector)])[0]

    def check_unchanged(self) -> None:
        """Refuse products that were taken while the loss or its gradient changed."""
        check_unchanged(self.problem, self.parameters, self.fingerprints)

    def _graph(self, batch: Any) -> GradientGraph:
        if self.matrix == "ggn":
            return GaussNewtonGraph(self.problem, batch, self.parameters)
        return GradientGraph(self.problem, batch, self.parameters, self.derivatives)


def coordinate_scales(
    blocks: Sequence[Block], preconditioner: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """P^(−1/2) of each block, float64; raises `ValueError` where one lacks or is not positive."""
    scales = {}
    if preconditioner is None:
        return scales
    for block in blocks:
        if (diagonal := preconditioner.get(block.name)) is None:
            raise ValueError(f"The preconditioner lacks block {block.name!r}: give one a block.")
        if diagonal.shape not in ((), (block.size,)):
            raise ValueError(
                f"The preconditioner of {block.name!r} must have shape ({block.size},) or (), not "
                f"{tuple(diagonal.shape)}."
            )
        if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
            raise ValueError(
                f"The preconditioner of {block.name!r} must be positive and finite: add an epsilon."
            )
        scales[block.name] = diagonal.detach().double().rsqrt().to(block.parameters[0].device)
    return scales


def hessian_product(problem: Problem, vector: Tensor) -> Tensor:
    """Full Hessian over all trainable parameters times a flat vector, in the model's order."""
    return block_products(problem, [whole(problem.model)], [vector])[0]


def block_products(
    problem: Problem, blocks: Sequence[Block], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Each block's Hessian times its own vector, (block.size,) each, from one shared graph.

    The problem is checked before anything is computed.
    """
    for block, vector in zip(blocks, vectors, strict=True):
        if vector.shape != (block.size,):
            raise ValueError(
                f"Block {block.name!r} needs a vector of shape ({block.size},), "
                f"not {tuple(vector.shape)}."
            )
    with problem.curvature_mode():
        hessian = BlockHessians(problem, blocks)
        products = hessian.products(list(zip(blocks, vectors, strict=True)))
        hessian.check_unchanged()
    return products


def dense_hessian(problem: Problem, block: Block, *, limit: int = 10_000) -> Tensor:
    """Exact Hessian of a small block, (size, size), column by column.

    ValueError if it has more than ``limit`` parameters: it would take as many products.
    """
    if block.size > limit:
        raise ValueError(
            f"Block {block.name!r} has {block.size:,} parameters, above the limit of {limit:,} for "
            f"a dense Hessian: use block_spectra, or raise `limit`."
        )
    with problem.curvature_mode():
        hessian, (first, *_) = BlockHessians(problem, [block]), block.parameters
        unit = torch.eye(block.size, dtype=first.dtype, device=first.device)
        matrix = torch.stack([hessian.product(block, row) for row in unit], dim=1)
        hessian.check_unchanged()
    if not bool(torch.isfinite(matrix).all()):
        raise ProblemError(not_finite(f"block {block.name!r}"))
    return matrix
